"""Resampling: agreement with ITK, and the laws that a resampler must keep."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from neurovfm_core.volumes.resampling import (
    AxisMap,
    antialiased_operator,
    centred_map,
    interpolation_operator,
    resample,
)

axis_sizes = st.integers(1, 40)
spacings = st.floats(0.3, 9.0)
seeds = st.integers(0, 2**32 - 1)


def itk_bspline(array, spacing_mm, target_mm):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm[::-1])
    size = [int(n * (mm / target)) for n, mm, target in zip(array.shape, spacing_mm, target_mm, strict=True)]
    out = sitk.Resample(
        image,
        size[::-1],
        sitk.Transform(),
        sitk.sitkBSpline,
        image.GetOrigin(),
        target_mm[::-1],
        image.GetDirection(),
        0,
        image.GetPixelID(),
    )
    return sitk.GetArrayFromImage(out)


@given(
    shape=st.tuples(st.integers(5, 24), st.integers(8, 30), st.integers(8, 30)),
    spacing=st.tuples(st.floats(1.5, 11.0), st.floats(0.4, 2.0), st.floats(0.4, 2.0)),
    seed=seeds,
)
@settings(max_examples=25, deadline=None)
def test_official_interpolation_agrees_with_itk(shape, spacing, seed):
    array = np.random.default_rng(seed).normal(200, 100, shape).astype(np.float32)
    target = (4.0, 1.0, 1.0)
    expected = itk_bspline(array, spacing, target)
    operators = tuple(
        interpolation_operator(AxisMap(n, num_out, 0.0, target_mm / mm))
        for n, num_out, mm, target_mm in zip(shape, expected.shape, spacing, target, strict=True)
    )
    np.testing.assert_allclose(resample(array, operators), expected, atol=2e-3, rtol=1e-5)


@given(n=axis_sizes, spacing=spacings, target=st.sampled_from([1.0, 4.0, 2.5]))
@settings(max_examples=100, deadline=None)
def test_a_constant_stays_constant_up_to_the_edges(n, spacing, target):
    matrix = antialiased_operator(centred_map(n, spacing, target)).matrix
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=2e-6)


@given(n=st.integers(30, 60), spacing=st.floats(0.4, 6.0), target=st.sampled_from([1.0, 4.0]))
@settings(max_examples=60, deadline=None)
def test_a_ramp_stays_the_same_ramp_away_from_the_edges(n, spacing, target):
    axis = centred_map(n, spacing, target)
    position = axis.first + axis.step * np.arange(axis.num_out)
    ramp = antialiased_operator(axis).matrix.astype(np.float64) @ np.arange(n)
    inner = (position > 12) & (position < n - 13)
    np.testing.assert_allclose(ramp[inner], position[inner], atol=1e-4)


@given(n=axis_sizes, spacing=spacings)
@settings(max_examples=50, deadline=None)
def test_the_same_spacing_is_the_identity(n, spacing):
    matrix = antialiased_operator(centred_map(n, spacing, spacing)).matrix
    np.testing.assert_allclose(matrix, np.eye(n), atol=1e-6)


@given(n=axis_sizes, spacing=spacings, target=st.sampled_from([1.0, 4.0]))
@settings(max_examples=60, deadline=None)
def test_a_mirrored_axis_gives_the_mirrored_result(n, spacing, target):
    matrix = antialiased_operator(centred_map(n, spacing, target)).matrix
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=2e-6)


@given(n=axis_sizes, spacing=spacings, target=st.sampled_from([1.0, 4.0]))
@settings(max_examples=60, deadline=None)
def test_the_bands_hold_every_entry_and_no_entry_is_denormal(n, spacing, target):
    operator = antialiased_operator(centred_map(n, spacing, target))
    rebuilt = np.zeros_like(operator.matrix)
    for rows, columns in operator.bands:
        rebuilt[rows, columns] = operator.matrix[rows, columns]
    np.testing.assert_array_equal(rebuilt, operator.matrix)
    assert np.abs(operator.matrix[operator.matrix != 0]).min() >= 0.9e-9


@given(n=st.integers(16, 64), phase=st.integers(0, 1))
@settings(max_examples=20, deadline=None)
def test_detail_finer_than_the_target_is_averaged_not_aliased(n, phase):
    stripes = np.float32((np.arange(n) + phase) % 2)
    matrix = antialiased_operator(centred_map(n, 1.0, 4.0)).matrix
    inner = (matrix @ stripes)[1:-1]
    assert np.abs(inner - 0.5).max() < 0.1  # decimation without a low-pass gives 0 or 1


@given(order=st.permutations(range(3)), flips=st.tuples(st.booleans(), st.booleans(), st.booleans()), seed=seeds)
@settings(max_examples=30, deadline=None)
def test_strides_do_not_matter(order, flips, seed):
    stored = np.random.default_rng(seed).integers(-1000, 3000, (9, 21, 14)).astype(np.int16)
    view = stored.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    operators = tuple(antialiased_operator(centred_map(n, 1.7, 1.0)) for n in view.shape)
    copied = np.ascontiguousarray(view)
    np.testing.assert_allclose(resample(view, operators), resample(copied, operators), atol=2e-2)


def test_resampling_equals_the_three_matrices_one_after_the_other():
    array = np.random.default_rng(0).normal(size=(30, 50, 40))
    maps = (centred_map(30, 1.1, 4.0), centred_map(50, 0.7, 1.0), centred_map(40, 2.2, 1.0))
    operators = tuple(antialiased_operator(axis) for axis in maps)
    expected = np.einsum("ai,bj,ck,ijk->abc", *(o.matrix for o in operators), array, optimize=True)
    np.testing.assert_allclose(resample(array, operators), expected, atol=1e-4)


@pytest.mark.parametrize("threads", [2, 4])
def test_the_number_of_threads_changes_no_byte(threads):
    array = np.random.default_rng(1).integers(0, 2000, (36, 200, 180)).astype(np.int16)
    operators = tuple(
        antialiased_operator(centred_map(*axis)) for axis in ((36, 5.0, 4.0), (200, 0.9, 1.0), (180, 0.9, 1.0))
    )
    with threadpool_limits(1, user_api="blas"):
        expected = resample(array, operators)
    with threadpool_limits(threads, user_api="blas"):
        np.testing.assert_array_equal(resample(array, operators), expected)


def test_there_is_no_step_between_interpolating_and_averaging():
    interpolated = antialiased_operator(AxisMap(20, 5, 4.3, 1.0)).matrix
    averaged = antialiased_operator(AxisMap(20, 5, 4.3, 1.0 + 1e-5)).matrix
    np.testing.assert_allclose(interpolated, averaged, atol=1e-3)
