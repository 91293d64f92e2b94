"""Landmarks survive: whatever the axis order, a point of the patient stays where it is."""

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovfm_core.shards import VolumeTokens
from neurovfm_core.vocabulary import Modality, Split
from neurovfm_core.volumes import PreprocessParams, View, Volume, prepare
from neurovfm_core.volumes.orientation import acquired_slice_axis, nearest_axes, orient

AXIS_ORDERS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
LANDMARKS_MM = np.array([[-22.0, 14.0, 9.0], [18.0, -25.0, -14.0], [5.0, 24.0, -18.0]])
HALF_SIZE_MM = np.array([44.0, 48.0, 40.0])


def head(spacing_ras, order=(0, 1, 2), signs=(1, 1, 1), tilt_deg=0.0):
    """Return a grey ellipsoid with three bright balls, stored in any axis order."""
    shape = np.ceil(2 * HALF_SIZE_MM / spacing_ras).astype(int)
    angle = np.deg2rad(tilt_deg)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing_ras
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
    points = np.einsum("ab,bijk->aijk", affine[:3, :3], np.indices(shape)) + affine[:3, 3, None, None, None]
    inside = ((points / (HALF_SIZE_MM * 0.85)[:, None, None, None]) ** 2).sum(axis=0) < 1
    array = 60.0 * inside
    for landmark in LANDMARKS_MM:
        array += 900 * np.exp(-((points - landmark[:, None, None, None]) ** 2).sum(axis=0) / (2 * 3.5**2))
    stored = np.rint(array).astype(np.int16).transpose(order)
    stored_affine = affine.copy()
    stored_affine[:, :3] = affine[:, order]
    for axis, sign in enumerate(signs):
        if sign < 0:
            stored = np.flip(stored, axis)
            stored_affine[:, 3] += stored_affine[:, axis] * (stored.shape[axis] - 1)
            stored_affine[:, axis] *= -1
    return Volume(np.ascontiguousarray(stored), stored_affine, Modality.MR, order.index(2))


def landmarks_found(code, affine, around_mm=9.0):
    """Return the intensity centroids (RAS mm) of the balls, as one who only has the grid would find them."""
    index = np.indices(code.shape).reshape(3, -1)
    points = (affine[:3, :3] @ index + affine[:3, 3:]).T
    found = []
    for landmark in LANDMARKS_MM:
        near = np.linalg.norm(points - landmark, axis=1) < around_mm
        weight = np.clip(code.ravel()[near].astype(float) - 70, 0, None)
        found.append(weight @ points[near] / weight.sum())
    return np.array(found)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_landmarks_stay_within_half_a_voxel_in_all_48_axis_orders(preset):
    spacing = np.array([1.3, 0.8, 3.0])
    expected = None
    for order, signs in AXIS_ORDERS:
        prepared = prepare(head(spacing, order, signs), PreprocessParams(preset=preset))
        tokens = VolumeTokens.from_prepared(
            prepared, volume_id="ser_a_v0", study_id="stu_a", patient_id="pat_a", split=Split.TRAIN
        )
        miss_mm = landmarks_found(tokens.dense(), tokens.affine) - LANDMARKS_MM
        axes = np.linalg.inv(prepared.affine[:3, :3])
        assert np.abs(axes @ miss_mm.T).max() <= 0.5, (order, signs)
        if preset == "official":
            continue  # it guesses the slice axis from sizes, the same here, but starts its grid at a corner
        assert prepared.view is View.AXIAL
        if expected is None:
            expected = prepared
        assert np.abs(prepared.code.astype(int) - expected.code).max() <= 1
        np.testing.assert_allclose(prepared.affine, expected.affine, atol=1e-9)


@given(
    spacing=st.tuples(st.floats(0.6, 2.0), st.floats(0.6, 2.0), st.floats(1.0, 5.0)),
    tilt_deg=st.floats(-20, 20),
    axis_order=st.sampled_from(AXIS_ORDERS),
)
@settings(max_examples=12, deadline=None)
def test_landmarks_stay_in_oblique_volumes_of_any_spacing(spacing, tilt_deg, axis_order):
    prepared = prepare(head(np.array(spacing), *axis_order, tilt_deg=tilt_deg), PreprocessParams())
    miss_mm = landmarks_found(prepared.code, prepared.affine) - LANDMARKS_MM
    assert np.abs(np.linalg.inv(prepared.affine[:3, :3]) @ miss_mm.T).max() <= 0.5


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_rows_and_columns_follow_the_acquisition_plane(slice_axis):
    view = [View.SAGITTAL, View.CORONAL, View.AXIAL][slice_axis]
    array = np.zeros((6, 7, 8), np.int16)
    oriented, found = orient(Volume(array, np.diag([1.0, 1, 1, 1]), Modality.MR), slice_axis)
    assert found is view
    directions = oriented.affine[:3, :3]
    right, posterior, inferior = [1, 0, 0], [0, -1, 0], [0, 0, -1]
    expected = {
        View.AXIAL: [inferior, posterior, right],
        View.CORONAL: [posterior, inferior, right],
        View.SAGITTAL: [right, posterior, inferior],
    }[view]
    np.testing.assert_array_equal(directions.T, expected)


@given(axis_order=st.sampled_from(AXIS_ORDERS), seed=st.integers(0, 1000))
@settings(max_examples=48, deadline=None)
def test_orientation_agrees_with_itk(axis_order, seed):
    order, signs = axis_order
    array = np.random.default_rng(seed).integers(0, 1000, (5, 6, 7)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * signs * np.array([1.0, 1.5, 2.0])
    image = sitk.GetImageFromArray(array.T)
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]
    image.SetDirection((lps / [1.0, 1.5, 2.0]).ravel())
    image.SetSpacing([1.0, 1.5, 2.0])
    expected = sitk.DICOMOrient(image, "RPI")
    volume = Volume(array, affine, Modality.MR)
    oriented, _ = orient(volume, nearest_axes(affine)[2])
    np.testing.assert_array_equal(oriented.array, sitk.GetArrayFromImage(expected))
    origin = np.diag([-1.0, -1.0, 1.0]) @ np.array(expected.GetOrigin())
    np.testing.assert_allclose(oriented.affine[:3, 3], origin, atol=1e-9)


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [
        ((1, 1, 4), 2),
        ((4, 1, 1), 0),
        ((1, 5, 1), 1),
        ((1, 1, 1), 2),
        ((1.0000001, 1, 1), 2),
        ((0.94, 0.94, 1), 2),
        ((3, 3, 1), 1),
    ],
)
def test_without_a_sidecar_the_largest_spacing_is_the_slice_axis(spacing, axis):
    volume = Volume(np.zeros((4, 4, 4)), np.diag([*spacing, 1.0]), Modality.MR)
    assert acquired_slice_axis(volume) == axis


def test_the_recorded_slice_axis_overrules_the_spacing():
    assert acquired_slice_axis(Volume(np.zeros((4, 4, 4)), np.diag([1.0, 1, 5, 1]), Modality.MR, 0)) == 0
