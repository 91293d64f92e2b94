"""Shards: what was written is read, turned as voxels would be, and never read once damaged."""

import json
import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovfm_core.errors import Excluded, IntegrityError, Reason, UsageError
from neurovfm_core.shards import (
    OFFICIAL_NORMALIZATION,
    SCHEMA_VERSION,
    NormalizationStats,
    ShardParams,
    ShardSet,
    VolumeTokens,
    verify_shard,
    write_shard,
)
from neurovfm_core.shards.layout import INDEX_SCHEMA
from neurovfm_core.vocabulary import PATCH_SHAPE, Modality, Split, Window
from neurovfm_core.volumes import Prepared, View, decode_ct, to_patches

VOLUMES = st.lists(
    st.tuples(
        st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
        st.integers(0, 2**32 - 1),
        st.sampled_from(Modality),
        st.sampled_from(Split),
    ),
    min_size=1,
    max_size=5,
)


def prepared_of(grid, seed, modality=Modality.MR):
    """Return a volume of random voxels, of which random boxes are patient."""
    rng = np.random.default_rng(seed)
    shape = tuple(np.array(grid) * PATCH_SHAPE)
    foreground = np.zeros(shape, bool)
    for _ in range(3):
        low = rng.integers(0, shape)
        high = rng.integers(low, shape) + 1
        foreground[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    code = rng.integers(0, 104 if modality is Modality.CT else 256, shape).astype(np.uint8)
    affine = np.vstack([rng.normal(size=(3, 4)), [0, 0, 0, 1]])
    spacing = (4.0, float(rng.uniform(0.5, 2)), float(rng.uniform(0.5, 2)))
    return Prepared(code, foreground, modality, spacing, View(int(rng.integers(3))), affine, {})


def volume_of(prepared, number, split=Split.TRAIN):
    return VolumeTokens.from_prepared(
        prepared, volume_id=f"ser_{number:04d}_v0", study_id=f"stu_{number}", patient_id=f"pat_{number}", split=split
    )


def three_volumes():
    grids = [(3, 4, 2), (2, 2, 5), (1, 3, 3)]
    modalities = [Modality.MR, Modality.CT, Modality.MR]
    splits = [Split.TRAIN, Split.TRAIN, Split.TEST]
    prepared = [prepared_of(grid, 7 + i, m) for i, (grid, m) in enumerate(zip(grids, modalities, strict=True))]
    return [volume_of(one, i, split) for i, (one, split) in enumerate(zip(prepared, splits, strict=True))]


def kept_voxels(prepared):
    """Return the stored volume with every patch blanked that holds no patient: by voxels, not tokens."""
    d, h, w = PATCH_SHAPE
    code = prepared.code.copy()
    for start in np.ndindex(prepared.grid):
        a, b, c = np.array(start) * PATCH_SHAPE
        here = (slice(a, a + d), slice(b, b + h), slice(c, c + w))
        if not prepared.foreground[here].any():
            code[here] = 0
    return code


def assert_same(found, expected):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.coords, expected.coords)
    np.testing.assert_array_equal(found.foreground_count, expected.foreground_count)
    np.testing.assert_array_equal(found.affine, expected.affine)
    names = ("volume_id", "study_id", "patient_id", "split", "modality", "grid", "spacing_mm", "view")
    assert [getattr(found, name) for name in names] == [getattr(expected, name) for name in names]
    assert (found.tokens.dtype, found.coords.dtype, found.foreground_count.dtype) == (np.uint8, np.int32, np.uint16)


@pytest.fixture
def shard(tmp_path):
    """Return the folder of one shard named `first`, with three volumes."""
    write_shard(tmp_path, "first", three_volumes())
    return tmp_path


# --- round trip ---------------------------------------------------------------------------------


@given(drawn=VOLUMES)
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("shards")
    prepared = [prepared_of(grid, seed, modality) for grid, seed, modality, _ in drawn]
    volumes = [volume_of(one, i, draw[3]) for i, (one, draw) in enumerate(zip(prepared, drawn, strict=True))]
    facts = write_shard(folder, "one", volumes)
    shards = ShardSet(folder)
    assert shards.ids == [volume.volume_id for volume in volumes]
    assert len(shards) == facts.num_volumes == len(volumes)
    assert facts.num_tokens == sum(len(volume) for volume in volumes)
    assert facts.bytes == sum((folder / name).stat().st_size for name in facts.files)
    for one, volume in zip(prepared, volumes, strict=True):
        found = shards.get(volume.volume_id)
        assert_same(found, volume)
        np.testing.assert_array_equal(shards.dense(volume.volume_id), kept_voxels(one))
        patches = to_patches(one)
        kept = patches.foreground_count > 0
        np.testing.assert_array_equal(found.tokens, patches.patches[kept].reshape(-1, 1024))
        inside = one.foreground
        np.testing.assert_array_equal(found.dense()[inside], one.code[inside])
    shards.verify()


@given(
    drawn=VOLUMES, turns=st.lists(st.sampled_from([0, 1, 2, "swap"]), max_size=4), share=st.sampled_from([0.0, 0.25])
)
@settings(max_examples=30, deadline=None)
def test_turns_and_crops_of_stored_tokens_are_those_of_the_voxels(tmp_path_factory, drawn, turns, share):
    folder = tmp_path_factory.mktemp("shards")
    grid, seed, modality, _ = drawn[0]
    prepared = prepared_of(grid, seed, modality)
    write_shard(folder, "one", [volume_of(prepared, 0)])
    tokens = ShardSet(folder).get("ser_0000_v0").select(share)
    voxels, corner = kept_voxels(prepared), np.indices(prepared.code.shape).astype(float)
    if share:
        patches = to_patches(prepared)
        voxels *= np.kron(patches.foreground_count.reshape(prepared.grid) >= 256, np.ones(PATCH_SHAPE, np.uint8))
    places = np.einsum("ab,bijk->aijk", prepared.affine[:3, :3], corner) + prepared.affine[:3, 3].reshape(3, 1, 1, 1)
    for turn in turns:
        if turn == "swap":
            tokens, voxels, places = tokens.swap_in_plane(), voxels.swapaxes(1, 2), places.swapaxes(2, 3)
        else:
            tokens, voxels, places = tokens.flip(turn), np.flip(voxels, turn), np.flip(places, turn + 1)
    rng = np.random.default_rng(seed)
    start = rng.integers(0, tokens.grid)
    size = rng.integers(1, np.array(tokens.grid) - start + 1)
    box = tuple(slice(a * p, (a + n) * p) for a, n, p in zip(start, size, PATCH_SHAPE, strict=True))
    cropped = tokens.crop(tuple(start.tolist()), tuple(size.tolist()))
    np.testing.assert_array_equal(tokens.dense(), voxels)
    np.testing.assert_array_equal(cropped.dense(), voxels[box])
    index = np.indices(cropped.dense().shape).reshape(3, -1)
    found = cropped.affine[:3, :3] @ index + cropped.affine[:3, 3:]
    np.testing.assert_allclose(found, places[:, *box].reshape(3, -1), atol=1e-9)


def test_every_volume_starts_on_a_page_and_the_view_is_read_only(shard):
    with pa.memory_map(str(shard / "first.arrow")) as source:
        rows = pa.ipc.open_file(source).read_all().to_pylist()
    assert all(row["token_offset"] * 1024 % 4096 == 0 for row in rows)
    tokens = ShardSet(shard).get("ser_0001_v0").tokens
    assert not tokens.flags.writeable
    assert not tokens.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        tokens[0, 0] = 1


def test_a_token_without_patient_is_not_stored_and_a_volume_without_any_is_excluded():
    prepared = prepared_of((2, 2, 2), 1)
    prepared.foreground[:] = False
    with pytest.raises(Excluded) as refused:
        volume_of(prepared, 0)
    assert refused.value.reason is Reason.EMPTY_FOREGROUND
    prepared.foreground[5, 20, 3] = True
    volume = volume_of(prepared, 0)
    np.testing.assert_array_equal(volume.coords, [[1, 1, 0]])
    np.testing.assert_array_equal(volume.foreground_count, [1])


def test_a_crop_outside_the_grid_is_refused():
    volume = volume_of(prepared_of((2, 3, 4), 1), 0)
    for start, size in [((0, 0, 0), (3, 1, 1)), ((-1, 0, 0), (1, 1, 1)), ((0, 0, 0), (1, 0, 1))]:
        with pytest.raises(ValueError, match="not inside the grid"):
            volume.crop(start, size)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.25, 0.5, 1.0])
def test_selecting_keeps_tokens_of_which_at_least_that_share_is_patient(share):
    prepared = prepared_of((1, 1, 4), 0)
    prepared.foreground[:] = False
    counts = [1, 255, 256, 1024]
    for column, count in enumerate(counts):
        block = prepared.foreground[:, :, 16 * column : 16 * column + 16]
        block[np.unravel_index(np.arange(count), block.shape)] = True
    volume = volume_of(prepared, 0)
    np.testing.assert_array_equal(volume.foreground_count, counts)
    expected = [column for column, count in enumerate(counts) if count / 1024 >= share]
    assert volume.select(share).coords[:, 2].tolist() == expected


# --- same bytes ---------------------------------------------------------------------------------


def test_the_same_volumes_give_the_same_bytes(tmp_path):
    facts = [write_shard(tmp_path / place, "one", three_volumes()) for place in "ab"]
    assert facts[0] == facts[1]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {*facts[0].files, "FORMAT.md"}


def test_writing_a_shard_again_is_harmless_and_other_content_is_refused(shard):
    before = {path.name: path.read_bytes() for path in shard.iterdir()}
    write_shard(shard, "first", three_volumes())
    assert {path.name: path.read_bytes() for path in shard.iterdir()} == before
    with pytest.raises(IntegrityError, match=r"first\.json"):
        write_shard(shard, "first", three_volumes()[:2])
    assert {path.name: path.read_bytes() for path in shard.iterdir()} == before


def test_a_shard_that_fails_half_way_does_not_exist(tmp_path):
    def volumes():
        yield three_volumes()[0]
        raise OSError("the source went away")

    with pytest.raises(OSError, match="went away"):
        write_shard(tmp_path, "one", volumes())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="comes twice"):
        write_shard(tmp_path, "one", three_volumes()[:1] * 2)
    assert list(tmp_path.iterdir()) == []


# --- damage -------------------------------------------------------------------------------------


def damage(path, content, bit):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(damaged)


@pytest.mark.parametrize("kind", ["tok", "arrow"])
def test_any_flipped_bit_is_found_and_the_file_named(shard, kind):
    path = shard / f"first.{kind}"
    content = path.read_bytes()
    for bit in np.random.default_rng(0).choice(8 * len(content), 60, replace=False):
        damage(path, content, int(bit))
        with pytest.raises(IntegrityError, match=rf"first\.{kind}"):
            verify_shard(path)
    path.write_bytes(content)
    verify_shard(path)


def test_a_flipped_bit_in_a_volume_names_the_volume(shard):
    path = shard / "first.tok"
    with pa.memory_map(str(shard / "first.arrow")) as source:
        row = pa.ipc.open_file(source).read_all().to_pylist()[1]
    damage(path, path.read_bytes(), 8 * (1024 * row["token_offset"] + 77))
    with pytest.raises(IntegrityError, match="ser_0001_v0"):
        ShardSet(shard).verify()


@pytest.mark.parametrize("kind", ["tok", "arrow"])
@pytest.mark.parametrize("how", ["truncated", "longer", "empty", "missing"])
def test_a_file_of_another_length_is_refused_when_opened(shard, kind, how):
    path = shard / f"first.{kind}"
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[:-1], "longer": content + b"0", "empty": b""}[how])
    for attempt in (lambda: ShardSet(shard), lambda: verify_shard(path)):
        with pytest.raises(IntegrityError) as refused:
            attempt()
        assert refused.value.where == path.name


def test_an_index_of_other_columns_is_refused(shard):
    table = pa.table({"volume_id": ["a"]})
    with pa.OSFile(str(shard / "first.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    manifest = json.loads((shard / "first.json").read_text())
    manifest["files"]["arrow"]["bytes"] = (shard / "first.arrow").stat().st_size
    (shard / "first.json").write_text(json.dumps(manifest))
    assert table.schema != INDEX_SCHEMA
    with pytest.raises(IntegrityError, match=r"first\.arrow"):
        ShardSet(shard)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0, "1", None])
def test_another_schema_version_is_refused(shard, version):
    path = shard / "first.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))
    with pytest.raises(IntegrityError, match=r"first\.json"):
        ShardSet(shard)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"schema_version": 1}', '{"schema_version": 1, "files": {}}'])
def test_a_damaged_manifest_is_refused(shard, text):
    path = shard / "first.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(IntegrityError, match=r"first\.json"):
        ShardSet(shard)


def test_what_does_not_exist_is_the_users_error(shard):
    for attempt in (
        lambda: ShardSet(shard / "nowhere"),
        lambda: ShardSet([shard / "second.json"]),
        lambda: ShardSet([shard / "first.npz"]),
        lambda: ShardSet(shard).get("ser_0009_v0"),
        lambda: ShardSet(shard).get("ser_0001_v0x"),
        lambda: ShardSet(shard).get(""),
        lambda: verify_shard(shard / "second.tok"),
    ):
        with pytest.raises(UsageError):
            attempt()
    assert "ser_0001_v0" in ShardSet(shard)
    assert "ser_0001_v0x" not in ShardSet(shard)


# --- many shards, many processes ----------------------------------------------------------------


def test_the_later_shard_wins(tmp_path):
    old = [volume_of(prepared_of((2, 2, 2), seed), number) for number, seed in enumerate((1, 2))]
    new = [volume_of(prepared_of((3, 2, 1), seed), number) for number, seed in ((1, 3), (2, 4))]
    write_shard(tmp_path, "b", old)
    write_shard(tmp_path, "a", new)
    shards = ShardSet([tmp_path / "b.json", tmp_path / "a.tok"])
    assert (len(shards), shards.ids) == (3, ["ser_0000_v0", "ser_0001_v0", "ser_0002_v0"])
    assert_same(shards.get("ser_0001_v0"), new[0])
    assert_same(ShardSet([tmp_path / "a.json", tmp_path / "b.json"]).get("ser_0001_v0"), old[1])
    assert_same(ShardSet(tmp_path).get("ser_0001_v0"), old[1])  # a folder counts by name
    assert sorted(ShardSet(tmp_path).ids) == shards.ids


def test_ids_are_selected_by_split_and_modality(shard):
    shards = ShardSet(shard)
    assert shards.select_ids() == shards.ids
    assert shards.select_ids(split=Split.TEST) == ["ser_0002_v0"]
    assert shards.select_ids(split=Split.TRAIN, modality=Modality.CT) == ["ser_0001_v0"]
    assert shards.select_ids(split=Split.VAL) == []


def test_an_empty_folder_is_an_empty_set(tmp_path):
    shards = ShardSet(tmp_path)
    assert (len(shards), shards.ids, "ser_0001_v0" in shards) == (0, [], False)
    write_shard(tmp_path, "none", [])
    shards = ShardSet(tmp_path)
    assert (len(shards), shards.ids) == (0, [])
    shards.verify()


def report_to(answers, shards):
    """Run in a forked child, with the mappings of its parent."""
    answers.put([int(shards.get(volume_id).tokens.sum()) for volume_id in shards.ids])


def test_a_set_opened_before_a_fork_works_in_the_child(shard):
    shards = ShardSet(shard)
    expected = [int(shards.get(volume_id).tokens.sum()) for volume_id in shards.ids]
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    children = [context.Process(target=report_to, args=(answers, shards)) for _ in range(2)]
    for child in children:
        child.start()
    assert [answers.get() for _ in children] == [expected, expected]
    for child in children:
        child.join(20)
        assert child.exitcode == 0
    assert [int(shards.get(volume_id).tokens.sum()) for volume_id in shards.ids] == expected


def test_a_set_is_sent_to_a_process_that_shares_no_memory(shard):
    shards = ShardSet(shard)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        # A method of the set: it is pickled with it, and the child needs nothing of this file.
        found = pool.submit(shards.dense, "ser_0001_v0").result(60)
    np.testing.assert_array_equal(found, shards.dense("ser_0001_v0"))


def test_a_set_travels_as_paths(shard):
    shards = ShardSet(shard)
    shards.get("ser_0000_v0")
    content = pickle.dumps(shards)
    assert len(content) < 1000
    copy = pickle.loads(content)
    assert copy.ids == shards.ids
    assert_same(copy.get("ser_0001_v0"), shards.get("ser_0001_v0"))


def test_prefetching_changes_nothing(shard):
    shards = ShardSet(shard)
    shards.prefetch(shards.ids)
    for volume, expected in zip(map(shards.get, shards.ids), three_volumes(), strict=True):
        assert_same(volume, expected)


def test_tokens_outlive_their_set_and_their_file(shard):
    tokens = ShardSet(shard).get("ser_0000_v0").tokens
    shutil.rmtree(shard)
    np.testing.assert_array_equal(tokens, three_volumes()[0].tokens)


# --- normalisation ------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), num_parts=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_merged_statistics_are_those_of_all_voxels_at_once(seed, num_parts):
    rng = np.random.default_rng(seed)
    parts = {
        m: [rng.integers(0, 104, (int(rng.integers(1, 6)), 1024)).astype(np.uint8) for _ in range(num_parts)]
        for m in Modality
    }
    stats = [NormalizationStats.of_tokens(m, tokens) for m in Modality for tokens in parts[m]]
    merged = NormalizationStats.merged(stats)
    shuffled = NormalizationStats.merged([stats[i] for i in rng.permutation(len(stats))])
    assert merged.to_dict() == shuffled.to_dict()
    restored = NormalizationStats.from_dict(json.loads(json.dumps(merged.to_dict())))
    images = {(Modality.MR, None): np.concatenate(parts[Modality.MR]) / 255}
    for window, top in ((Window.BRAIN, 255), (Window.BLOOD, 15), (Window.BONE, 15)):
        images[Modality.CT, window] = decode_ct(np.concatenate(parts[Modality.CT]), window) / top
    for (modality, window), image in images.items():
        mean, std = merged.mean_std(modality, window)
        assert mean == pytest.approx(image.mean(), rel=1e-6)
        assert std == pytest.approx(image.std(), rel=1e-6)
        assert restored.mean_std(modality, window) == (mean, std)
        normalised = merged.table(modality, window)[np.concatenate(parts[modality])]
        np.testing.assert_allclose(normalised, (image - image.mean()) / image.std(), atol=2e-6)
        assert normalised.dtype == np.float32


@pytest.mark.parametrize("share", [0.05, 0.25, 0.6])
def test_a_shard_records_the_statistics_of_its_training_foreground(tmp_path, share):
    dense = prepared_of((3, 4, 2), 7)
    dense.foreground[:, :40] = True
    volumes = [volume_of(dense, 0), *three_volumes()[1:]]
    write_shard(tmp_path, "a", volumes[:1], ShardParams(min_foreground_share=share))
    write_shard(tmp_path, "b", volumes[1:], ShardParams(min_foreground_share=share))
    shards = ShardSet(tmp_path)
    recorded = shards.normalization()
    chosen = volumes[0].tokens[volumes[0].foreground_count / 1024 >= share]
    assert len(chosen) == {0.05: 20, 0.25: 18, 0.6: 12}[share]
    mean, std = recorded.mean_std(Modality.MR, None)  # the other MR volume is in test
    assert mean == pytest.approx((chosen / 255).mean(), rel=1e-6)
    assert std == pytest.approx((chosen / 255).std(), rel=1e-6)
    counted = NormalizationStats.of_volumes(shards, shards.select_ids(split=Split.TRAIN), share)
    assert counted.to_dict() == recorded.to_dict()
    assert shards.normalization(Split.VAL).to_dict()["counts"] == {}
    assert len(shards.get("ser_0000_v0")) == len(volumes[0])  # the rule drops nothing from the file


def test_there_are_no_statistics_of_nothing():
    with pytest.raises(UsageError, match="no intensity statistics for CT"):
        NormalizationStats().table(Modality.CT, Window.BRAIN)
    flat = NormalizationStats.of_tokens(Modality.MR, np.full((2, 1024), 9, np.uint8))
    with pytest.raises(UsageError, match="one intensity"):
        flat.mean_std(Modality.MR, None)


def test_the_published_constants_overrule_and_survive_json():
    stats = NormalizationStats.from_dict(json.loads(json.dumps(NormalizationStats.official().to_dict())))
    assert len(OFFICIAL_NORMALIZATION) == 4
    for (modality, window), (mean, std) in OFFICIAL_NORMALIZATION.items():
        table = stats.table(modality, window)
        assert table[0] == pytest.approx(-mean / std, rel=1e-6)
        assert table[255] == pytest.approx((1 - mean) / std, rel=1e-6)
