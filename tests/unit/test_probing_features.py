"""Bags come from real shards, through real encoders."""

import numpy as np
import pytest
import torch

from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.models.encoder import ENCODER_SIZES
from neurovfm_core.probing.features import encode_study, histogram_bag, random_encoder
from neurovfm_core.shards import NormalizationStats, ShardSet, VolumeTokens, write_shard
from neurovfm_core.vocabulary import Modality, Split
from neurovfm_core.volumes import Prepared, decode_table, windows_of
from neurovfm_core.volumes.intensity import encode_ct

SIZE = ENCODER_SIZES["tiny-demo"].model_copy(update={"depth": 1})


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prepared(seed: int, modality: Modality, patient: bool = True) -> Prepared:
    rng = np.random.default_rng(seed)
    foreground = np.zeros((8, 48, 32), bool)
    foreground[:, 5:40, 4:30] = True
    code = rng.integers(0, 256, foreground.shape).astype(np.uint8)
    if modality is Modality.CT:
        code = encode_ct(rng.integers(-900, 1500, foreground.shape).astype(np.float32))
    if not patient:
        foreground[:] = False
        foreground[0, 0, 0] = True
    return Prepared(code, foreground, modality, (4.0, 1.0, 1.0), 0, np.diag([1.0, 1, 4, 1]), {})


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    kinds = {
        "ser_a_v0": (0, Modality.MR, True),
        "ser_b_v0": (1, Modality.MR, True),
        "ser_c_v0": (2, Modality.CT, True),
        "ser_d_v0": (3, Modality.MR, False),
    }
    volumes = [
        VolumeTokens.from_prepared(
            prepared(*kind), volume_id=name, study_id="stu_a", patient_id="pat_a", split=Split.TRAIN
        )
        for name, kind in kinds.items()
    ]
    write_shard(folder, "one", volumes)
    return ShardSet(folder)


@pytest.fixture(scope="module")
def stats(shards):
    return NormalizationStats.of_volumes(shards, shards.ids)


def test_a_bag_is_every_foreground_token_of_every_volume_in_order(shards, stats):
    encoder = random_encoder(SIZE, seed=0)
    both = encode_study(encoder, shards, "stu_a", ["ser_a_v0", "ser_b_v0"], stats)
    lengths = [len(shards.get(name).select(0.25)) for name in both.volume_ids]
    assert both.features.shape == (sum(lengths), 96)
    assert both.num_tokens_seen == sum(lengths)
    np.testing.assert_array_equal(both.volume_index, np.repeat([0, 1], lengths))
    second = shards.get("ser_b_v0").select(0.25)
    np.testing.assert_array_equal(both.coords[lengths[0] :], second.coords)
    tokens = torch.from_numpy(stats.table(Modality.MR, None)[second.tokens])
    with torch.no_grad():
        expected = encoder(tokens, torch.from_numpy(second.coords.copy()), [len(tokens)]).numpy()
    np.testing.assert_array_equal(both.features[lengths[0] :], expected)


def test_a_ct_volume_is_seen_through_every_window(shards, stats):
    bag = encode_study(random_encoder(SIZE, seed=0), shards, "stu_a", ["ser_c_v0"], stats)
    tokens = len(shards.get("ser_c_v0").select(0.25))
    assert len(windows_of(Modality.CT)) == 3
    np.testing.assert_array_equal(np.bincount(bag.window_index), [tokens] * 3)
    brain, blood = bag.features[bag.window_index == 0], bag.features[bag.window_index == 1]
    assert not np.allclose(brain, blood)


def test_capped_tokens_have_the_features_they_have_in_the_whole_volume(shards, stats):
    encoder = random_encoder(SIZE, seed=0)
    whole = encode_study(encoder, shards, "stu_a", ["ser_a_v0"], stats)
    capped = encode_study(encoder, shards, "stu_a", ["ser_a_v0"], stats, max_tokens=5, seed=1)
    assert len(capped) == 5
    assert capped.num_tokens_seen == len(whole)
    rows = [int(np.flatnonzero((whole.coords == coords).all(1))[0]) for coords in capped.coords]
    np.testing.assert_array_equal(capped.features, whole.features[rows])


def test_a_volume_without_tokens_is_left_out_and_a_study_without_any_is_refused(shards, stats):
    encoder = random_encoder(SIZE, seed=0)
    bag = encode_study(encoder, shards, "stu_a", ["ser_d_v0", "ser_a_v0"], stats)
    assert set(bag.volume_index) == {1}
    for make in (
        lambda: encode_study(encoder, shards, "stu_a", ["ser_d_v0"], stats),
        lambda: histogram_bag(shards, "stu_a", ["ser_d_v0"]),
    ):
        with pytest.raises(Excluded) as refused:
            make()
        assert refused.value.reason is Reason.EMPTY_FOREGROUND


def test_a_random_encoder_belongs_to_its_seed_alone():
    one, same, other = (random_encoder(SIZE, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["token_embed.proj.weight"], other["token_embed.proj.weight"])


def test_an_mr_histogram_agrees_with_numpy(shards):
    bag = histogram_bag(shards, "stu_a", ["ser_a_v0", "ser_b_v0"])
    assert bag.features.shape == (2, 64)
    voxels = shards.get("ser_b_v0").select(0.25).tokens
    expected = np.histogram(voxels, bins=64, range=(0, 256))[0] / voxels.size
    np.testing.assert_allclose(bag.features[1] ** 2, expected, atol=1e-6)


def test_a_ct_histogram_holds_the_histogram_of_every_window(shards):
    bag = histogram_bag(shards, "stu_a", ["ser_c_v0"])
    assert bag.features.shape == (1, 128)
    voxels = shards.get("ser_c_v0").select(0.25).tokens
    assert (bag.features[0] ** 2).sum() == pytest.approx(1, abs=1e-5)
    for window in windows_of(Modality.CT):
        table = decode_table(Modality.CT, window)
        levels, where = np.unique(table, return_inverse=True)
        ours = np.bincount(where[:128], bag.features[0] ** 2, minlength=len(levels))
        theirs = np.array([(table[voxels] == level).mean() for level in levels])
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
