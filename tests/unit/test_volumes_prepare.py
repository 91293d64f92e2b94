"""Preparing a volume: the patient stays where he is, the head is kept, the table is not, and bytes repeat."""

import json
import zipfile
from functools import cache
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovfm_core.errors import Excluded, IntegrityError, Reason
from neurovfm_core.hospital.acquisition import Protocol, acquire
from neurovfm_core.hospital.anatomy import build_head
from neurovfm_core.hospital.contrast import Tissue
from neurovfm_core.randomness import rng_for
from neurovfm_core.vocabulary import PATCH_SHAPE, WIDTH_LEVEL_HU, Modality, Window
from neurovfm_core.volumes import (
    Prepared,
    PreprocessParams,
    View,
    Volume,
    decode_ct,
    decode_table,
    level_table,
    prepare,
    read_nifti,
    read_prepared,
    to_patches,
    write_prepared,
)
from neurovfm_core.volumes.intensity import HU_MAX, HU_MIN, encode_ct
from neurovfm_core.volumes.official import load_official
from neurovfm_core.volumes.preparation import fit_to_patches

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AXIS_ORDERS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
PRESETS = ("paper", "official")
PAPER = PreprocessParams()


def stored_as(array, affine, order, signs):
    """Return the same voxels in another axis order; the affine follows."""
    array, affine = array.transpose(order), affine[:, [*order, 3]].copy()
    for axis, sign in enumerate(signs):
        if sign < 0:
            array = np.flip(array, axis)
            affine[:, 3] += affine[:, axis] * (array.shape[axis] - 1)
            affine[:, axis] *= -1
    return np.ascontiguousarray(array), affine


def points_of(affine, shape):
    """Return (3, *shape): the RAS position of every voxel."""
    return np.einsum("ab,bijk->aijk", affine[:3, :3], np.indices(shape)) + affine[:3, 3].reshape(3, 1, 1, 1)


def values_at(volume, affine, points_ras):
    """Return the voxels nearest to (N, 3) points, without those outside the grid."""
    index = np.rint((points_ras - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T).astype(int)
    inside = ((index >= 0) & (index < volume.shape)).all(axis=1)
    return volume[tuple(index[inside].T)]


def ball_phantom(spacing=(1.0, 1.0, 4.0), shape=(96, 112, 24), modality=Modality.MR, rng=None):
    """Return a noisy ellipsoid in air: 40 to 900 for MR, tissue of 30 HU for CT."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(spacing) * (np.array(shape) - 1)) / 2
    radii = np.array(spacing) * shape * 0.4
    inside = ((points_of(affine, shape) / radii.reshape(3, 1, 1, 1)) ** 2).sum(axis=0) < 1
    rng = rng or np.random.default_rng(0)
    if modality is Modality.CT:
        return Volume(
            np.where(inside, 30, -1000).astype(np.int16) + rng.integers(-5, 5, shape, np.int16), affine, modality, 2
        )
    signal = np.where(inside, 500 + 300 * np.sin(np.indices(shape).sum(axis=0) / 9), 0)
    return Volume(np.abs(signal + rng.normal(0, 12, shape)).astype(np.float32), affine, modality, 2)


# --- geometry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", list(Modality))
@pytest.mark.parametrize(("order", "signs"), AXIS_ORDERS)
def test_planted_landmarks_stay_within_half_a_voxel(order, signs, modality):
    shape, affine = (76, 100, 30), np.diag([1.2, 0.9, 3.0, 1.0])
    affine[:3, 3] = (-50.0, -38.0, -41.0)
    points = points_of(affine, shape)
    middle = points.reshape(3, -1).mean(axis=1)
    offsets = ((points - middle.reshape(3, 1, 1, 1)) / np.array([38, 38, 38]).reshape(3, 1, 1, 1)) ** 2
    air, tissue, bright = (-1000, 20, 1100) if modality is Modality.CT else (0, 100, 1000)
    array = np.where(offsets.sum(axis=0) < 1, tissue, air).astype(np.float32)
    landmarks = middle + np.array([[-17.3, 11.2, 6.5], [14.4, -15.9, -9.1], [3.3, 16.7, -15.2]])
    for landmark in landmarks:
        squared = ((points - landmark.reshape(3, 1, 1, 1)) ** 2).sum(axis=0)
        array += (bright - tissue) * np.exp(-squared / (2 * 3.0**2))
    stored, stored_affine = stored_as(np.rint(array).astype(np.int16), affine, order, signs)
    prepared = prepare(Volume(stored, stored_affine, modality, order.index(2)), PAPER)
    image = prepared.code.astype(float)
    if modality is Modality.CT:
        image = decode_ct(prepared.code, Window.BONE).astype(float)
    places = points_of(prepared.affine, image.shape).reshape(3, -1).T
    background = np.median(image[prepared.foreground])
    for landmark in landmarks:
        near = np.linalg.norm(places - landmark, axis=1) < 8
        weight = np.clip(image.ravel()[near] - background - 1, 0, None)
        found = weight @ places[near] / weight.sum()
        miss_voxels = np.linalg.inv(prepared.affine[:3, :3]) @ (found - landmark)
        assert np.abs(miss_voxels).max() <= 0.5
    assert prepared.view is View.AXIAL
    np.testing.assert_allclose(np.linalg.norm(prepared.affine[:3, :3], axis=0), prepared.spacing_mm, rtol=1e-9)


@given(
    sizes=st.tuples(st.integers(4, 21), st.integers(16, 50), st.integers(16, 50)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_fitting_to_patches_loses_no_foreground_and_moves_nothing(sizes, seed):
    rng = np.random.default_rng(seed)
    code = rng.integers(1, 256, sizes).astype(np.uint8)
    low = [int(rng.integers(0, n)) for n in sizes]
    box = tuple(slice(a, int(rng.integers(a, n)) + 1) for a, n in zip(low, sizes, strict=True))
    foreground = np.zeros(sizes, bool)
    foreground[box] = True
    fitted, mask, first = fit_to_patches(code, foreground)
    assert all(n % patch == 0 and n > 0 for n, patch in zip(fitted.shape, PATCH_SHAPE, strict=True))
    assert mask.sum() == foreground.sum()
    here = np.argwhere(mask)
    np.testing.assert_array_equal(fitted[mask], code[tuple((here + first).T)])


# --- intensities --------------------------------------------------------------------------------


def test_mr_is_clipped_at_its_percentiles_and_rounded_to_the_nearest_level():
    volume = ball_phantom()
    prepared = prepare(volume, PAPER)
    # The grid is the input's own, so only orientation lies between the two.
    values = np.flip(volume.array.transpose(2, 1, 0), (0, 1)).astype(np.float64)
    low, high = np.percentile(volume.array, [0.5, 99.5])
    expected = np.floor(255 * (np.clip(values, low, high) - low) / (high - low) + 0.5).astype(int)
    assert prepared.code.shape == expected.shape
    difference = np.abs(prepared.code.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3  # only where float32 falls on the other side of a half
    assert prepared.qc["clip_low"] == pytest.approx(low, abs=1e-3)
    assert prepared.qc["clip_high"] == pytest.approx(high, rel=1e-6)
    assert {0, 255} <= set(np.unique(prepared.code))
    assert (values < low).mean() == pytest.approx(0.005, abs=1e-4)


def test_mr_code_does_not_depend_on_the_scanners_scale():
    volume = ball_phantom()
    scaled = Volume(volume.array * 7.5 + 300, volume.affine, volume.modality, volume.slice_axis)
    difference = prepare(volume, PAPER).code.astype(int) - prepare(scaled, PAPER).code
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 2e-3


def levels_by_formula(hu, window):
    """Return the window in exact rational arithmetic: levels * (HU - low) / width, half up."""
    width, level = WIDTH_LEVEL_HU[window]
    top = 255 if window is Window.BRAIN else 15
    share_times_width = min(max(2 * hu - 2 * level + width, 0), 2 * width)
    return (2 * top * share_times_width + 2 * width) // (4 * width)


def test_the_joint_code_takes_104_values_over_all_integer_hu():
    every_hu = np.arange(HU_MIN, HU_MAX + 1)
    code = encode_ct(every_hu.astype(np.float32))
    assert len(np.unique(code)) == 104
    assert code.max() == 103
    assert (np.diff(code.astype(int)) >= 0).all()
    triples = {tuple(levels_by_formula(int(hu), window) for window in Window) for hu in every_hu}
    assert len(triples) == 104


@pytest.mark.parametrize("window", list(Window))
def test_decoding_the_joint_code_is_windowing_the_hu_directly(window):
    every_hu = np.arange(HU_MIN, HU_MAX + 1)
    expected = [levels_by_formula(int(hu), window) for hu in every_hu]
    code = encode_ct(every_hu.astype(np.float32))
    np.testing.assert_array_equal(decode_ct(code, window), expected)
    top = 255 if window is Window.BRAIN else 15
    np.testing.assert_array_equal(
        decode_table(Modality.CT, window)[code], np.array(expected, np.float32) / np.float32(top)
    )
    assert level_table(window).shape == (256,)


@given(hu=st.floats(-5000, 5000))
@settings(max_examples=100)
def test_hu_are_rounded_and_values_beyond_the_scanner_stay_at_its_ends(hu):
    expected = encode_ct(np.array([np.rint(np.clip(hu, -1024, 3071))], np.float32))
    np.testing.assert_array_equal(encode_ct(np.array([hu], np.float64)), expected)


def test_ct_on_the_common_grid_is_coded_voxel_by_voxel():
    volume = ball_phantom(modality=Modality.CT)
    prepared = prepare(volume, PAPER)
    hu = np.flip(volume.array.transpose(2, 1, 0), (0, 1))
    for window in Window:
        expected = np.vectorize(levels_by_formula)(hu, window)
        np.testing.assert_array_equal(decode_ct(prepared.code, window), expected)


# --- foreground: synthetic heads with known truth -----------------------------------------------


@cache
def synthetic_head(modality):
    return build_head(rng_for(5, "head", modality), age_years=61, sex="M", findings=(), modality=modality)


def tissues(head):
    return np.where(head.share > 0.5, head.above, head.below)


@cache
def scanned(sequence, view):
    """Return the scan of a synthetic head, by an own reading of its geometry."""
    modality = Modality.CT if sequence.startswith("CT") else Modality.MR
    slices = {"axial": 30, "coronal": 40, "sagittal": 34}[view]
    circle = modality is Modality.CT and view == "axial"
    protocol = Protocol(sequence, view, 1.4, 5.0, 5.0, 176, 160, slices, fov_circle=circle)
    scan = acquire(synthetic_head(modality.value), protocol, rng_for(5, "scan", sequence, view))
    row, column = np.reshape(scan.image_orientation, (2, 3))
    lps = np.eye(4)
    lps[:3, 0] = scan.image_positions[1] - scan.image_positions[0]
    lps[:3, 1], lps[:3, 2] = column * scan.pixel_spacing[0], row * scan.pixel_spacing[1]
    lps[:3, 3] = scan.image_positions[0]
    return Volume(scan.pixels, RAS_FROM_LPS @ lps, modality, 0)


def on_grid_of(prepared, mask, affine_ras):
    """Return a mask of another grid on the grid of a prepared volume, nearest voxel."""
    to_mask = np.linalg.inv(affine_ras) @ prepared.affine
    return scipy.ndimage.affine_transform(
        mask.astype(np.uint8), to_mask[:3, :3], to_mask[:3, 3], prepared.code.shape, order=0
    ).astype(bool)


SCANS = [
    *((sequence, "axial") for sequence in ("T1", "T2", "FLAIR", "DWI", "SWI", "CT", "CT_BONE")),
    ("T1C", "sagittal"),
    ("T2", "coronal"),
    ("CT", "coronal"),
]


@pytest.mark.parametrize(("sequence", "view"), SCANS)
def test_foreground_holds_the_brain_and_few_tokens_of_air(sequence, view):
    prepared = prepare(scanned(sequence, view), PAPER)
    head = synthetic_head(prepared.modality.value)
    ras, tissue = RAS_FROM_LPS @ head.affine, tissues(head)
    brain = np.argwhere(np.isin(tissue, [Tissue.GREY, Tissue.WHITE, Tissue.DEEP_GREY]))
    covered = values_at(prepared.foreground, prepared.affine, brain @ ras[:3, :3].T + ras[:3, 3])
    assert len(covered) > 0.95 * len(brain)
    assert covered.mean() >= 0.99
    patient = on_grid_of(prepared, scipy.ndimage.binary_fill_holes(tissue != Tissue.AIR), ras)
    kept = to_patches(prepared).foreground_count > 0
    truth = Prepared(prepared.code, patient, prepared.modality, prepared.spacing_mm, prepared.view, prepared.affine, {})
    patient_count = to_patches(truth).foreground_count
    assert (patient_count[kept] == 0).mean() <= 0.10
    by_quarter = to_patches(prepared).foreground_count >= 256
    assert (patient_count[by_quarter] == 0).mean() <= 0.01
    overlap = 2 * np.count_nonzero(patient & prepared.foreground)
    assert overlap / (patient.sum() + prepared.foreground.sum()) > 0.9
    assert prepared.view.name.lower() == view


@pytest.mark.parametrize("sequence", ["CT", "CT_BONE"])
def test_the_headrest_is_no_foreground(sequence):
    volume = scanned(sequence, "axial")
    prepared = prepare(volume, PAPER)
    head = synthetic_head("CT")
    patient = on_grid_of(prepared, tissues(head) != Tissue.AIR, RAS_FROM_LPS @ head.affine)
    far = scipy.ndimage.distance_transform_edt(~patient, prepared.spacing_mm) > 8
    # Brain and blood windows show the shells at 60 and 120 HU as bright as the head.
    headrest = far & (decode_ct(prepared.code, Window.BRAIN) > 100)
    assert headrest.sum() > 5000
    assert (headrest & prepared.foreground).sum() <= 0.01 * headrest.sum()


def test_a_table_that_the_head_lies_on_is_cut_off():
    volume = ball_phantom((1.0, 1.0, 4.0), (128, 160, 24), Modality.CT)
    table = volume.array.copy()
    radius = 160 * 0.4
    touching = round(79.5 - radius)  # the row of the ellipsoid's lowest point
    table[:, touching - 3 : touching + 1] = np.maximum(table[:, touching - 3 : touching + 1], 150)
    table[:, 2:6] = 250
    with_table = prepare(Volume(table, volume.affine, Modality.CT, 2), PAPER).foreground
    without = prepare(volume, PAPER).foreground
    on_table = int((with_table & ~without).sum())
    assert (without & ~with_table).sum() <= 0.001 * without.sum()
    # Where the head touches, the wedges between the two are closed like any inlet.
    assert on_table <= 0.15 * 4 * 128 * 24
    far_table = with_table[:, -6:]  # rows run to posterior, so the table is last
    assert far_table.sum() == 0


# --- foreground: real heads ---------------------------------------------------------------------

REAL_MR = [
    "ms_patient01/study1_FLAIR.nii.gz",
    "ms_patient01/study1_T1W.nii.gz",
    "ms_patient01/study1_T2W.nii.gz",
    "ms_patient20/study2_FLAIR.nii.gz",
    "ms_patient20/study2_T1W.nii.gz",
    "t2flair_5p5mm.nii.gz",
    "ixi/IXI012-HH-1211_T1.nii.gz",
    "ixi/IXI015-HH-1258_T1.nii.gz",
]
SCALP_AND_SKULL_MM = 14


def deep_inside(volume):
    """Return what lies deeper in the head than scalp and skull, by ITK alone: (N, 3) RAS points.

    Li's threshold, the largest component, holes filled per slice, eroded by a distance map.
    """
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T.astype(np.float32)))
    image.SetSpacing(volume.spacing_mm)
    head = sitk.LiThreshold(sitk.Median(image, (1, 1, 1)), 0, 1)
    head = sitk.RelabelComponent(sitk.ConnectedComponent(head), sortByObjectSize=True) == 1
    head = sitk.BinaryMorphologicalClosing(head, (4, 4, 1))
    slices = [sitk.BinaryFillhole(head[:, :, k]) for k in range(head.GetDepth())]
    filled = sitk.JoinSeries(slices, 0.0, volume.spacing_mm[2])
    filled.CopyInformation(head)
    depth_mm = sitk.SignedMaurerDistanceMap(filled, insideIsPositive=True, squaredDistance=False, useImageSpacing=True)
    index = np.argwhere(sitk.GetArrayFromImage(depth_mm) > SCALP_AND_SKULL_MM)[:, ::-1]
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL_MR)
def test_foreground_of_a_real_mr_holds_all_that_lies_deep_in_the_head(shared_data, name):
    volume = read_nifti(shared_data / "nifti" / name, Modality.MR)
    prepared = prepare(volume, PAPER)
    points = deep_inside(volume)
    litres = len(points) * float(np.prod(volume.spacing_mm)) / 1e6
    assert 0.5 < litres < 4  # an adult's brain is 1.2 to 1.5 l, so the reference is not empty
    covered = values_at(prepared.foreground, prepared.affine, points)
    assert len(covered) > 0.98 * len(points)
    assert covered.mean() >= 0.99
    assert prepared.qc["foreground_share"] < 0.65


@pytest.mark.real_data
def test_foreground_of_a_real_mr_holds_the_tumour(shared_data):
    volume = read_nifti(shared_data / "nifti" / "tumour_mr_image.nrrd", Modality.MR)
    label = read_nifti(shared_data / "nifti" / "tumour_mr_label.nrrd", Modality.MR)
    prepared = prepare(volume, PAPER)
    points = np.argwhere(label.array) @ label.affine[:3, :3].T + label.affine[:3, 3]
    assert len(points) > 100
    assert values_at(prepared.foreground, prepared.affine, points).mean() == 1


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "seed"), [("01", 0), ("13", 1)])
def test_foreground_of_a_segmented_real_head_holds_the_brain_at_any_contrast(shared_data, name, seed):
    image = nibabel.load(shared_data / "labelmaps" / f"training_seg_{name}.nii.gz")
    labels = np.asarray(image.dataobj)[::2, ::2, ::2].astype(int)
    affine = image.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    rng = np.random.default_rng(seed)
    levels = rng.uniform(150, 900, 600)
    levels[0] = 0
    noise = rng.normal(0, 20, (2, *labels.shape))
    mr = np.hypot(levels[labels] + noise[0], noise[1]).astype(np.float32)
    prepared = prepare(Volume(mr, affine, Modality.MR), PAPER)
    brain = (labels > 0) & (labels < 100) & (labels != 24)
    points = np.argwhere(brain) @ affine[:3, :3].T + affine[:3, 3]
    assert values_at(prepared.foreground, prepared.affine, points).mean() >= 0.99


@pytest.mark.real_data
def test_foreground_of_a_real_ct_holds_what_the_skull_encloses(shared_data):
    stored = read_nifti(shared_data / "nifti" / "ct_template_older_adults_scct.nii", Modality.CT)
    # The file stretches -100 to 100 HU elevenfold (Cormack units); undone, piece by piece.
    hu = np.interp(stored.array, [0, 900, 3100, 4100], [-1000, -100, 100, 1100]).astype(np.float32)
    prepared = prepare(Volume(hu, stored.affine, Modality.CT), PAPER)
    bone = scipy.ndimage.binary_closing(hu > 200, iterations=2)
    enclosed = np.stack([scipy.ndimage.binary_fill_holes(bone[:, :, k]) for k in range(hu.shape[2])], axis=2)
    brain = enclosed & ~bone & (hu > -20) & (hu < 120)
    points = np.argwhere(brain) @ stored.affine[:3, :3].T + stored.affine[:3, 3]
    assert len(points) * 8 / 1e6 > 0.7
    assert values_at(prepared.foreground, prepared.affine, points).mean() >= 0.99


# --- what is refused ----------------------------------------------------------------------------


def changed(volume, **parts):
    given_parts = {name: getattr(volume, name) for name in ("array", "affine", "modality", "slice_axis")}
    return Volume(**(given_parts | parts))


def with_affine(**entries):
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    for place, value in entries.items():
        affine[int(place[1]), int(place[2])] = value
    return affine


def with_voxel(value):
    array = ball_phantom().array.copy()
    array[48, 56, 12] = value
    return array


def speck():
    array = np.zeros((96, 112, 24), np.float32)
    array[40:50, 40:60, 8:18] = 100 + np.arange(10).reshape(10, 1, 1)
    return array


MR, CT = ball_phantom(), ball_phantom(modality=Modality.CT)
REFUSED = {
    "slices 13 mm apart": (Reason.IMPLAUSIBLE_GEOMETRY, changed(MR, affine=with_affine(a22=13.0))),
    "voxels of 0.01 mm": (Reason.IMPLAUSIBLE_GEOMETRY, changed(MR, affine=with_affine(a00=0.01))),
    "an axis without length": (Reason.IMPLAUSIBLE_GEOMETRY, changed(MR, affine=with_affine(a11=0.0))),
    "longer than a metre": (Reason.IMPLAUSIBLE_GEOMETRY, changed(MR, affine=with_affine(a11=9.5))),
    "sheared": (Reason.IMPLAUSIBLE_GEOMETRY, changed(MR, affine=with_affine(a12=1.2))),
    "no position": (Reason.IMPLAUSIBLE_GEOMETRY, changed(MR, affine=with_affine(a03=np.nan))),
    "not a number": (Reason.IMPLAUSIBLE_INTENSITY, changed(MR, array=with_voxel(np.nan))),
    "infinite": (Reason.IMPLAUSIBLE_INTENSITY, changed(MR, array=with_voxel(np.inf))),
    "constant": (Reason.IMPLAUSIBLE_INTENSITY, changed(MR, array=np.full((96, 112, 24), 700, np.int16))),
    "constant CT": (Reason.IMPLAUSIBLE_INTENSITY, changed(CT, array=np.full((96, 112, 24), -1000, np.int16))),
    "CT without its offset": (Reason.IMPLAUSIBLE_INTENSITY, changed(CT, array=CT.array + np.int16(1024))),
    "CT of metal": (
        Reason.IMPLAUSIBLE_INTENSITY,
        changed(CT, array=np.where(CT.array > 0, np.int16(2500), CT.array)),
    ),
    "CT of air": (
        Reason.EMPTY_FOREGROUND,
        changed(CT, array=np.minimum(CT.array, -700)),
    ),
    "3 slices": (Reason.TOO_SMALL, changed(MR, array=MR.array[:, :, :3])),
    "12 mm wide": (Reason.TOO_SMALL, changed(MR, array=MR.array[40:52])),
    "little of a head": (Reason.EMPTY_FOREGROUND, changed(MR, array=speck())),
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_volume_that_cannot_be_trusted_is_excluded_with_its_reason(what, preset):
    reason, volume = REFUSED[what]
    with pytest.raises(Excluded) as refused:
        prepare(volume, PreprocessParams(preset=preset))
    assert refused.value.reason is reason


def test_an_mr_of_which_99_percent_is_one_value_has_no_contrast():
    array = np.zeros((96, 112, 24), np.float32)
    array[48, 56, 8:16] = 1000
    with pytest.raises(Excluded) as refused:
        prepare(changed(MR, array=array), PAPER)
    assert refused.value.reason is Reason.IMPLAUSIBLE_INTENSITY


def nifti(folder, array, **sidecar):
    path = folder / "ser_a_v0.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1, 4, 1])), path)
    if sidecar:
        (folder / "ser_a_v0.json").write_text(json.dumps(sidecar))
    return path


def test_a_file_that_is_no_volume_is_excluded_with_its_reason(tmp_path):
    def reason_of(path, modality=Modality.MR):
        with pytest.raises(Excluded) as refused:
            read_nifti(path, modality)
        assert refused.value.where.startswith(path.name.split(".")[0])
        return refused.value.reason

    array = np.zeros((20, 20, 6), np.int16)
    whole = nifti(tmp_path, array)
    assert reason_of(whole, None) is Reason.NO_KNOWN_MODALITY
    assert reason_of(nifti(tmp_path, np.zeros((20, 20, 6, 2), np.int16))) is Reason.NOT_A_VOLUME
    assert reason_of(nifti(tmp_path, array, Modality="MR", SliceAxis=3)) is Reason.UNREADABLE
    (tmp_path / "ser_a_v0.json").write_text("{")
    assert reason_of(whole) is Reason.UNREADABLE
    (tmp_path / "ser_a_v0.json").unlink()
    rgb = np.zeros((20, 20, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert reason_of(nifti(tmp_path, rgb)) is Reason.NOT_GREYSCALE
    whole = nifti(tmp_path, np.random.default_rng(0).integers(0, 999, (20, 20, 6)).astype(np.int16))
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    assert reason_of(whole) is Reason.UNREADABLE
    whole.write_bytes(b"no image")
    assert reason_of(whole) is Reason.UNREADABLE
    assert reason_of(tmp_path / "ser_b_v0.nii.gz") is Reason.UNREADABLE
    assert reason_of(tmp_path / "ser_b_v0.png") is Reason.UNREADABLE


def test_a_sidecar_says_modality_and_slice_axis(tmp_path):
    path = nifti(tmp_path, np.zeros((20, 21, 6, 1), np.int16), Modality="CT", SliceAxis=1)
    volume = read_nifti(path)
    assert (volume.modality, volume.slice_axis, volume.array.shape) == (Modality.CT, 1, (20, 21, 6))
    assert volume.array.dtype == np.int16


# --- files --------------------------------------------------------------------------------------


def drawn_prepared(grid, seed, modality=Modality.MR):
    rng = np.random.default_rng(seed)
    shape = tuple(np.array(grid) * PATCH_SHAPE)
    affine = np.vstack([rng.normal(size=(3, 4)), [0, 0, 0, 1]])
    return Prepared(
        rng.integers(0, 104, shape).astype(np.uint8),
        rng.random(shape) < rng.random(),
        modality,
        (4.0, 1.0, float(rng.uniform(0.5, 2))),
        View(int(rng.integers(3))),
        affine,
        {"snr": float(rng.random()), "foreground_ml": float(rng.random())},
    )


def assert_equal(found, expected):
    np.testing.assert_array_equal(found.code, expected.code)
    np.testing.assert_array_equal(found.foreground, expected.foreground)
    np.testing.assert_array_equal(found.affine, expected.affine)
    assert (found.code.dtype, found.foreground.dtype) == (np.uint8, np.bool_)
    assert (found.modality, found.spacing_mm, found.view, found.qc) == (
        expected.modality,
        expected.spacing_mm,
        expected.view,
        expected.qc,
    )


@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 2**32 - 1),
    modality=st.sampled_from(Modality),
    compression=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_a_prepared_volume_is_read_as_it_was_written(tmp_path_factory, grid, seed, modality, compression):
    path = tmp_path_factory.mktemp("prepared") / "ser_a_v0.npz"
    prepared = drawn_prepared(grid, seed, modality)
    facts = write_prepared(path, prepared, compression=compression)
    assert facts.bytes == path.stat().st_size
    assert_equal(read_prepared(path), prepared)


def test_the_same_volume_gives_the_same_bytes(tmp_path):
    first = write_prepared(tmp_path / "a.npz", prepare(ball_phantom(), PAPER))
    second = write_prepared(tmp_path / "b.npz", prepare(ball_phantom(), PAPER))
    assert first == second
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_a_damaged_file_is_never_read_as_another_volume(tmp_path):
    path = tmp_path / "ser_a_v0.npz"
    prepared = drawn_prepared((1, 1, 1), 4)
    write_prepared(path, prepared)
    content = path.read_bytes()
    refused = 0
    for bit in np.random.default_rng(0).choice(8 * len(content), 600, replace=False):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            found = read_prepared(path)
        except IntegrityError as error:
            assert error.where == path.name
            refused += 1
        else:
            assert_equal(found, prepared)  # a date or another field of zip that nobody reads
    assert refused > 300


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "ser_a_v0.npz"
    write_prepared(path, drawn_prepared((2, 2, 2), 5))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(IntegrityError, match=r"ser_a_v0\.npz"):
        read_prepared(path)


def test_a_missing_file_and_another_version_are_refused(tmp_path):
    path = tmp_path / "ser_a_v0.npz"
    with pytest.raises(IntegrityError, match=r"ser_a_v0\.npz"):
        read_prepared(path)
    write_prepared(path, drawn_prepared((1, 1, 1), 6))
    with np.load(path) as arrays:
        parts = dict(arrays)
    about = json.loads(parts["about"].tobytes()) | {"format_version": 2}
    parts["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(path, **parts)
    with pytest.raises(IntegrityError, match="format version 2"):
        read_prepared(path)


# --- the preset of the published weights --------------------------------------------------------


def by_itk(volume, slice_axis_of_zyx):
    """Orient, resample and crop with SimpleITK; return (D, H, W) and its spacing."""
    lps = RAS_FROM_LPS @ volume.affine
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T))
    image.SetSpacing(volume.spacing_mm)
    image.SetDirection((lps[:3, :3] / volume.spacing_mm).ravel())
    image.SetOrigin(lps[:3, 3])
    image = sitk.DICOMOrient(image, "RPI")
    target = [1.0, 1.0, 1.0]
    target[2 - slice_axis_of_zyx] = 4.0
    size = [int(n * (mm / to)) for n, mm, to in zip(image.GetSize(), image.GetSpacing(), target, strict=True)]
    out = sitk.Resample(
        image,
        size,
        sitk.Transform(),
        sitk.sitkBSpline,
        image.GetOrigin(),
        target,
        image.GetDirection(),
        0,
        image.GetPixelID(),
    )
    array = np.moveaxis(sitk.GetArrayFromImage(out), slice_axis_of_zyx, 0)
    if slice_axis_of_zyx == 2:
        array = array.transpose(0, 2, 1)  # sagittal: (x, z, y) to (x, y, z)
    excess = [n % patch for n, patch in zip(array.shape, PATCH_SHAPE, strict=True)]
    return array[tuple(slice(e // 2, n - (e - e // 2)) for e, n in zip(excess, array.shape, strict=True))]


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("modality", list(Modality))
def test_the_official_preset_is_itks_bspline_within_one_count(modality, slice_axis, signs):
    rng = np.random.default_rng(7)
    spacing, shape = np.array([0.9, 0.9, 0.9]), np.array([90, 104, 97])
    spacing[slice_axis], shape[slice_axis] = 5.5, 18
    noise = scipy.ndimage.gaussian_filter(rng.normal(0, 1, shape), (1.5, 1.5, 1.5))
    values = 600 + 350 * noise / noise.std() if modality is Modality.MR else 40 + 200 * noise / noise.std()
    body = ball_phantom(tuple(spacing), tuple(shape), Modality.CT)
    air = 0 if modality is Modality.MR else -1000
    array = np.where(body.array > -500, np.clip(values, -900, 2000), air).astype(np.int16)
    stored, affine = stored_as(array, body.affine, (0, 1, 2), signs)
    volume = Volume(stored, affine, modality)
    expected = by_itk(volume, 2 - slice_axis)
    loaded = load_official(volume)
    assert loaded.array.dtype == np.int16
    assert loaded.array.shape == expected.shape
    difference = np.abs(loaded.array.astype(int) - expected)
    assert difference.max() <= 1
    # In constant air both round off about an integer and truncate to either side of it.
    assert (difference[expected > air + 1] > 0).mean() < 0.01
    prepared = prepare(volume, PreprocessParams(preset="official"))
    if modality is Modality.CT:
        for window in Window:
            levels = np.vectorize(levels_by_formula)(expected, window).astype(int)
            off = np.abs(decode_ct(prepared.code, window).astype(int) - levels)[difference == 0]
            assert off.max() == 0
        return
    clipped = np.clip(expected, *np.percentile(expected, [0.5, 99.5]))
    scaled = (clipped - clipped.min()) / (clipped.max() - clipped.min() + 1e-8)
    assert np.abs(prepared.code.astype(int) - np.floor(255 * scaled)).max() <= 1
    np.testing.assert_array_equal(prepared.foreground, loaded.array > np.percentile(loaded.array, 10))
