"""Masks: laws that hold for every crop, and what they come to on heads of a usual size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from neurovfm_core.jepa.masking import MIN_TOKENS, MaskingParams, MaskMode, sample_mask
from neurovfm_core.randomness import rng_for
from neurovfm_core.vocabulary import Modality

PAPER = MaskingParams()
HEADS = {"axial": (20, 13, 10), "sagittal": (20, 14, 14), "thick slices": (6, 13, 10), "crop of the demo": (12, 8, 8)}

seeds = st.integers(0, 2**32)
modalities = st.sampled_from(Modality)


@st.composite
def foregrounds(draw):
    """Any set of at least two grid positions, in raster order: dust, slabs, single columns."""
    grid = draw(st.tuples(st.integers(1, 12), st.integers(1, 10), st.integers(1, 10)))
    kept = np.random.default_rng(draw(seeds)).random(grid) < draw(st.floats(0.02, 1))
    coords = np.argwhere(kept).astype(np.int32)
    return coords if len(coords) >= MIN_TOKENS else np.array([[0, 0, 0], [0, 0, 1]], np.int32)


@st.composite
def settings_of_masks(draw):
    shares = st.floats(0.05, 0.95)
    return MaskingParams(
        context_share_mr=draw(shares),
        context_share_ct=draw(shares),
        context_dropout=draw(shares),
        num_target_blocks=draw(st.integers(1, 6)),
        largest_aspect=draw(st.floats(1, 5)),
    )


def head(grid, key=0):
    """An ellipsoid with a ragged surface that fills its grid, as cropped heads do."""
    axes = [(np.arange(size) + 0.5) / size * 2 - 1 for size in grid]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    return np.argwhere(radius < rng_for(0, "surface", key).uniform(0.9, 1.15, grid)).astype(np.int32)


def share_limit(modality, params):
    return params.context_share_mr if modality is Modality.MR else params.context_share_ct


def same(one, other):
    return one.mode is other.mode and np.array_equal(one.context, other.context)


@settings(deadline=None)
@given(coords=foregrounds(), modality=modalities, seed=seeds, params=settings_of_masks())
def test_context_and_target_share_every_token_out_and_both_have_some(coords, modality, seed, params):
    mask = sample_mask(coords, modality, rng_for(seed), params)
    assert mask.context.shape == mask.target.shape == (len(coords),)
    assert not (mask.context & mask.target).any()
    assert (mask.context | mask.target).all()
    assert mask.context.any()
    assert mask.target.any()


@settings(deadline=None)
@given(coords=foregrounds(), modality=modalities, seed=seeds, params=settings_of_masks())
def test_the_context_is_within_its_share_of_the_foreground(coords, modality, seed, params):
    num_context = sample_mask(coords, modality, rng_for(seed), params).context.sum()
    kept = share_limit(modality, params) * (1 - params.context_dropout) * len(coords)
    assert num_context <= max(1, kept + 1e-9)
    # Exactly that share, but for rounding down twice: blocks never hit or miss by chance.
    assert num_context > kept - 2


@settings(deadline=None)
@given(coords=foregrounds(), modality=modalities, seed=seeds, key=st.text(max_size=8))
def test_a_mask_belongs_to_its_key(coords, modality, seed, key):
    first, second = (sample_mask(coords, modality, rng_for(seed, key), PAPER) for _ in range(2))
    assert same(first, second)


@settings(deadline=None)
@given(coords=foregrounds(), modality=modalities, seed=seeds)
def test_a_mask_does_not_depend_on_how_the_processor_sorts(coords, modality, seed):
    """`argpartition` leaves the order inside its parts open, and fast processors use that."""

    def reversed_inside(values, place):
        order = np.argsort(values, kind="stable")
        return np.concatenate((order[:place][::-1], order[place:][:1], order[place + 1 :][::-1]))

    here = sample_mask(coords, modality, rng_for(seed), PAPER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "argpartition", reversed_inside)
        there = sample_mask(coords, modality, rng_for(seed), PAPER)
    assert same(here, there)


@settings(deadline=None)
@given(coords=foregrounds(), modality=modalities, seed=seeds, data=st.data())
def test_blocks_are_as_deep_as_the_crop(coords, modality, seed, data):
    """So it says nothing to a mask in which slice a token lies, nor where the crop was taken."""
    shift = data.draw(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50)))
    elsewhere = coords + np.array(shift, np.int32)
    elsewhere[:, 0] = rng_for(seed, "slices").permutation(elsewhere[:, 0])
    masks = [sample_mask(at, modality, rng_for(seed), PAPER) for at in (coords, elsewhere)]
    assert same(*masks)


def test_different_keys_give_different_masks():
    coords = head(HEADS["axial"])
    masks = {sample_mask(coords, Modality.MR, rng_for(1, "a", step), PAPER).context.tobytes() for step in range(50)}
    assert len(masks) == 50


def test_both_modes_come_equally_often():
    coords = head(HEADS["thick slices"])
    number = 2000
    modes = [sample_mask(coords, Modality.MR, rng_for(3, key), PAPER).mode for key in range(number)]
    # Five standard deviations: a fair coin leaves them once in two million runs.
    assert abs(modes.count(MaskMode.CONTEXT_BLOCK) - number / 2) < 5 * np.sqrt(number / 4)


@pytest.mark.parametrize("modality", Modality)
@pytest.mark.parametrize("grid", HEADS.values(), ids=HEADS)
def test_on_heads_the_target_is_80_to_90_percent(grid, modality):
    masks = [sample_mask(head(grid, key), modality, rng_for(5, key), PAPER) for key in range(50)]
    for mode in MaskMode:
        shares = [mask.target.mean() for mask in masks if mask.mode is mode]
        assert 0.80 <= np.mean(shares) <= 0.90
        assert max(shares) <= 0.90


def test_a_context_block_is_compact_and_what_target_blocks_leave_is_scattered():
    coords = head(HEADS["sagittal"])
    in_plane = coords[:, 1:] - coords[:, 1:].mean(axis=0)
    spread = {mode: [] for mode in MaskMode}
    for key in range(100):
        mask = sample_mask(coords, Modality.MR, rng_for(7, key), PAPER)
        spread[mask.mode].append(in_plane[mask.context].std(axis=0).mean() / in_plane.std(axis=0).mean())
    assert np.mean(spread[MaskMode.CONTEXT_BLOCK]) < 0.65
    assert np.mean(spread[MaskMode.TARGET_BLOCKS]) > 0.80


def test_a_block_takes_whole_columns_but_for_its_rim():
    coords = np.argwhere(np.ones((20, 16, 16), bool))
    params = MaskingParams(context_dropout=1e-6)  # of the context, one token
    for key in range(20):
        mask = sample_mask(coords, Modality.MR, rng_for(9, key), params)
        share = mask.context.reshape(20, 256).mean(axis=0)
        cut = (share > 0.1) & (share < 0.9)
        # One ring around a block, or around each of three.
        assert cut.sum() <= (32 if mask.mode is MaskMode.CONTEXT_BLOCK else 64)


def test_centres_lie_on_foreground():
    """Two far columns: a block centred between them would take from both."""
    coords = np.array([(d, h, w) for d in range(20) for h, w in ((0, 0), (0, 40))], np.int32)
    params = MaskingParams(context_dropout=1e-6)
    for key in range(40):
        mask = sample_mask(coords, Modality.MR, rng_for(11, key), params)
        if mask.mode is MaskMode.CONTEXT_BLOCK:
            assert len(set(coords[mask.context, 2])) == 1


def test_fewer_than_two_tokens_cannot_be_masked():
    with pytest.raises(ValueError, match="2 foreground tokens, there are 1"):
        sample_mask(np.zeros((1, 3), np.int32), Modality.MR, rng_for(0), PAPER)


@pytest.mark.parametrize(
    "wrong", [{"context_share_mr": 1.0}, {"context_dropout": 0.0}, {"num_target_blocks": 0}, {"share": 0.2}]
)
def test_settings_that_make_no_mask_are_refused(wrong):
    with pytest.raises(ValidationError):
        MaskingParams(**wrong)
