"""Patches and tokens: every turn does to them what it does to voxels."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovfm_core.shards import VolumeTokens
from neurovfm_core.vocabulary import PATCH_SHAPE, Modality, Split
from neurovfm_core.volumes import Prepared, View, to_patches

grids = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
seeds = st.integers(0, 2**32 - 1)


def prepared_of(grid, seed, foreground_share=0.4):
    rng = np.random.default_rng(seed)
    shape = tuple(np.array(grid) * PATCH_SHAPE)
    blocks = rng.random(grid) < foreground_share
    blocks[rng.integers(grid[0]), rng.integers(grid[1]), rng.integers(grid[2])] = True
    foreground = np.kron(blocks, np.ones(PATCH_SHAPE, bool)) & (rng.random(shape) < rng.random())
    foreground.flat[np.flatnonzero(np.kron(blocks, np.ones(PATCH_SHAPE, bool)))[0]] = True
    code = rng.integers(0, 256, shape).astype(np.uint8)
    affine = np.eye(4)
    affine[:3] = rng.normal(size=(3, 4))
    return Prepared(code, foreground, Modality.MR, (4.0, 1.0, 1.5), View.AXIAL, affine, {})


def tokens_of(prepared):
    return VolumeTokens.from_prepared(
        prepared, volume_id="ser_a_v0", study_id="stu_a", patient_id="pat_a", split=Split.TRAIN
    )


def kept_voxels(prepared):
    """Return the dense volume with every patch blanked that holds no foreground."""
    counts = to_patches(prepared).foreground_count.reshape(prepared.grid)
    return prepared.code * np.kron(counts > 0, np.ones(PATCH_SHAPE, np.uint8))


def assert_same(found, expected):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.coords, expected.coords)
    np.testing.assert_array_equal(found.foreground_count, expected.foreground_count)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)
    assert (found.grid, found.spacing_mm) == (expected.grid, expected.spacing_mm)


def voxels_flipped(prepared, axis):
    affine = prepared.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (prepared.code.shape[axis] - 1)
    affine[:3, axis] *= -1
    code, foreground = np.flip(prepared.code, axis), np.flip(prepared.foreground, axis)
    return Prepared(code, foreground, prepared.modality, prepared.spacing_mm, prepared.view, affine, {})


def voxels_swapped(prepared):
    d, h, w = prepared.spacing_mm
    code, foreground = prepared.code.transpose(0, 2, 1), prepared.foreground.transpose(0, 2, 1)
    affine = prepared.affine[:, [0, 2, 1, 3]]
    return Prepared(code, foreground, prepared.modality, (d, w, h), prepared.view, affine, {})


@given(grid=grids, seed=seeds)
@settings(max_examples=25, deadline=None)
def test_patches_tile_the_volume(grid, seed):
    prepared = prepared_of(grid, seed)
    patches = to_patches(prepared)
    assert patches.shape == grid == prepared.grid
    np.testing.assert_array_equal(patches.dense(), prepared.code)
    assert patches.foreground_count.sum() == prepared.foreground.sum()
    index = int(np.random.default_rng(seed).integers(len(patches.patches)))
    d, h, w = (int(i) for i in np.unravel_index(index, grid))
    here = (slice(4 * d, 4 * d + 4), slice(16 * h, 16 * h + 16), slice(16 * w, 16 * w + 16))
    np.testing.assert_array_equal(patches.patches[index], prepared.code[here])
    assert patches.foreground_count[index] == prepared.foreground[here].sum()


@given(grid=grids, seed=seeds, axis=st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_a_flip_acts_as_on_voxels_and_twice_is_the_identity(grid, seed, axis):
    prepared = prepared_of(grid, seed)
    flipped = to_patches(prepared).flip(axis)
    expected = to_patches(voxels_flipped(prepared, axis))
    np.testing.assert_array_equal(flipped.patches, expected.patches)
    np.testing.assert_array_equal(flipped.foreground_count, expected.foreground_count)
    tokens = tokens_of(prepared)
    assert_same(tokens.flip(axis), tokens_of(voxels_flipped(prepared, axis)))
    assert_same(tokens.flip(axis).flip(axis), tokens)


@given(grid=grids, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_a_swap_acts_as_on_voxels_and_twice_is_the_identity(grid, seed):
    prepared = prepared_of(grid, seed)
    swapped, expected = to_patches(prepared).swap_in_plane(), to_patches(voxels_swapped(prepared))
    np.testing.assert_array_equal(swapped.patches, expected.patches)
    np.testing.assert_array_equal(swapped.foreground_count, expected.foreground_count)
    assert swapped.shape == expected.shape
    tokens = tokens_of(prepared)
    assert_same(tokens.swap_in_plane(), tokens_of(voxels_swapped(prepared)))
    assert_same(tokens.swap_in_plane().swap_in_plane(), tokens)


@given(grid=grids, seed=seeds, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_crop_of_tokens_is_the_crop_of_voxels(grid, seed, data):
    prepared = prepared_of(grid, seed)
    size = tuple(data.draw(st.integers(1, n)) for n in grid)
    start = tuple(data.draw(st.integers(0, n - s)) for n, s in zip(grid, size, strict=True))
    cropped = tokens_of(prepared).crop(start, size)
    first = np.array(start) * PATCH_SHAPE
    stop = first + np.array(size) * PATCH_SHAPE
    box = tuple(slice(a, b) for a, b in zip(first, stop, strict=True))
    np.testing.assert_array_equal(cropped.dense(), kept_voxels(prepared)[box])
    assert cropped.grid == size
    corner = prepared.affine @ [*first, 1]
    np.testing.assert_allclose(cropped.affine[:, 3], corner, atol=1e-9)


@given(grid=grids, seed=seeds, turns=st.lists(st.integers(0, 3), max_size=5), share=st.floats(0.01, 0.9))
@settings(max_examples=40, deadline=None)
def test_turning_and_selecting_commute_and_keep_raster_order(grid, seed, turns, share):
    def turned(tokens):
        for turn in turns:
            tokens = tokens.swap_in_plane() if turn == 3 else tokens.flip(turn)
        return tokens

    tokens = tokens_of(prepared_of(grid, seed))
    assert_same(turned(tokens).select(share), turned(tokens.select(share)))
    raster = np.ravel_multi_index(tuple(turned(tokens).coords.T), turned(tokens).grid)
    assert (np.diff(raster) > 0).all()
    assert (tokens.select(share).foreground_count >= share * 1024).all()
