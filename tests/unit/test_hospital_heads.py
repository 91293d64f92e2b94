"""Synthetic heads and scanner: anatomy where it belongs, findings that show, geometry that is true."""

from functools import cache

import numpy as np
import pytest
import SimpleITK as sitk

from neurovfm_core.hospital.acquisition import Acquisition, Protocol, acquire, ct_protocols, mr_protocols
from neurovfm_core.hospital.anatomy import Head, build_head
from neurovfm_core.hospital.contrast import Tissue
from neurovfm_core.hospital.findings import CT_FINDINGS, MR_FINDINGS, Finding, make_finding, truth_labels
from neurovfm_core.hospital.sketch import LOW_MM, SPACING_MM
from neurovfm_core.labels.ontology import Ontology
from neurovfm_core.randomness import rng_for


@cache
def head_of(modality: str, label: str = "", laterality: str | None = None, **fixed: float) -> Head:
    """One patient of a seed; only the finding differs between calls, so anatomy can be compared."""
    findings: tuple[Finding, ...] = ()
    if label:
        findings = (make_finding(rng_for(3, label), label, modality, laterality=laterality, **fixed),)
    return build_head(rng_for(3, "head"), age_years=58, sex="F", findings=findings, modality=modality)


def scan(head: Head, sequence: str, view: str = "axial", **fixed) -> Acquisition:
    slices = {"axial": 28, "coronal": 38, "sagittal": 32}[view]
    protocol = Protocol(sequence, view, 1.4, 5.0, 5.0, 176, 160, slices, **fixed)
    return acquire(head, protocol, rng_for(3, "scan", sequence, view))


def dominant(head: Head) -> np.ndarray:
    return np.where(head.share > 0.5, head.above, head.below)


def lps_of(acquisition: Acquisition, where: np.ndarray) -> np.ndarray:
    """Mean place of some voxels by an independent reading of the DICOM geometry."""
    row, column = np.reshape(acquisition.image_orientation, (2, 3))
    normal = acquisition.image_positions[1] - acquisition.image_positions[0]
    spacing = np.linalg.norm(normal)
    image = sitk.Image(*acquisition.pixels.shape[::-1], sitk.sitkUInt8)
    image.SetOrigin(acquisition.image_positions[0])
    image.SetSpacing((acquisition.pixel_spacing[1], acquisition.pixel_spacing[0], spacing))
    image.SetDirection(np.stack([row, column, normal / spacing], axis=1).ravel())
    middle = np.argwhere(where).mean(axis=0)[::-1]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(middle))


def hu_in(acquisition: Acquisition, label: str) -> float:
    return float(np.median(acquisition.pixels[acquisition.masks[label]]))


def test_names_of_findings_are_those_of_the_label_lists():
    ontology = Ontology.load(None)
    assert set(MR_FINDINGS) <= set(ontology.labels("MR"))
    assert set(CT_FINDINGS) <= set(ontology.labels("CT"))
    assert len(set(MR_FINDINGS)) >= 12
    assert len(set(CT_FINDINGS)) >= 12


@pytest.mark.parametrize("modality", ["MR", "CT"])
@pytest.mark.parametrize("quarter", range(4))
def test_every_finding_and_what_it_implies_is_drawn_inside_the_head(modality, quarter):
    names = (MR_FINDINGS if modality == "MR" else CT_FINDINGS)[quarter::4]
    findings = tuple(make_finding(rng_for(3, name), name, modality) for name in names)
    head = build_head(rng_for(3, "head"), age_years=58, sex="F", findings=findings, modality=modality)
    assert set(head.masks) == set(truth_labels(findings, modality)) >= set(names)
    filled = (head.below > 0) | (head.above > 0)
    for name, mask in head.masks.items():
        assert mask.sum() >= 20, name
        if name != "pneumocephalus":  # air on air is outside, in a sinus, or this
            assert (mask & filled).sum() > 0.95 * mask.sum(), name


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("modality", "label"),
    [
        ("MR", "acute_ischemic_stroke"),
        ("MR", "high_grade_glioma"),
        ("MR", "meningioma"),
        ("CT", "acute_subdural_hematoma"),
        ("CT", "epidural_hematoma"),
        ("CT", "sinusitis"),
        ("CT", "burr_hole"),
    ],
)
def test_a_left_finding_is_at_positive_x(modality, label, side):
    head = head_of(modality, label, side)
    sign = {"left": 1, "right": -1}[side]
    assert sign * head.findings[0].center_mm[0] > 0
    columns = np.argwhere(head.masks[label])[:, 0] * SPACING_MM + LOW_MM[0]
    assert (sign * columns > -2).mean() > 0.97
    acquisition = scan(head, "T2" if modality == "MR" else "CT")
    middle = head.to_lps(np.zeros(3))
    assert sign * (lps_of(acquisition, acquisition.masks[label]) - middle)[0] > 5


@pytest.mark.parametrize("view", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("oblique_deg", [(0.0, 0.0), (9.0, -6.0)])
def test_a_lesion_has_one_place_in_every_view(view, oblique_deg):
    head = head_of("MR", "pituitary_tumor")
    mask = head.masks["pituitary_tumor"]
    expected = head.affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + head.affine[:3, 3]
    acquisition = scan(head, "T1C", view, oblique_deg=oblique_deg)
    assert np.linalg.norm(lps_of(acquisition, acquisition.masks["pituitary_tumor"]) - expected) < 2.5
    lit = acquisition.pixels[acquisition.masks["pituitary_tumor"]]
    assert np.median(lit) > 1.2 * np.median(acquisition.pixels[acquisition.pixels > 0.2 * lit.mean()])


def test_directions_are_those_dicom_writes():
    head = head_of("MR")
    for view, row, column in (
        ("axial", (1, 0, 0), (0, 1, 0)),
        ("coronal", (1, 0, 0), (0, 0, -1)),
        ("sagittal", (0, 1, 0), (0, 0, -1)),
    ):
        acquisition = scan(head, "T1", view)
        assert acquisition.image_orientation == (*row, *column)
        step = np.diff(acquisition.image_positions, axis=0)
        np.testing.assert_allclose(step, np.tile(5.0 * np.cross(row, column), (len(step), 1)), atol=1e-9)
    axial = scan(head, "T1")
    signal = axial.pixels > 0.25 * np.percentile(axial.pixels, 98)
    assert np.argwhere(signal[0]).size  # the lowest slices cut the face,
    assert signal[2].sum() > signal[-1].sum()  # the last ones the vertex or the air above


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("label", ["acute_subdural_hematoma", "intraparenchymal_hemorrhage"])
def test_midline_shift_moves_the_ventricles_away_from_the_mass(label, side):
    sign = {"left": 1, "right": -1}[side]

    def ventricles_x(head: Head) -> float:
        """Mean x of the fluid around the bodies and frontal horns, mm."""
        fluid = dominant(head) == Tissue.CSF
        low = np.round((np.array([-26, -44, 6]) - LOW_MM) / SPACING_MM).astype(int)
        high = np.round((np.array([26, 12, 22]) - LOW_MM) / SPACING_MM).astype(int)
        fluid = fluid[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        return float((np.argwhere(fluid)[:, 0] + low[0]).mean() * SPACING_MM + LOW_MM[0])

    shifted = head_of("CT", label, side, size_mm=14.0 if "subdural" in label else 36.0, shift_mm=9.0)
    assert {"midline_shift", "brain_mass_effect"} <= set(shifted.masks)
    moved = ventricles_x(shifted) - ventricles_x(head_of("CT"))
    assert 3.0 < -sign * moved < 12.0
    small = head_of("CT", label, side, size_mm=14.0 if "subdural" in label else 30.0, shift_mm=0.0)
    assert "midline_shift" not in small.masks
    assert abs(ventricles_x(small) - ventricles_x(head_of("CT"))) < abs(moved) / 2


def test_hounsfield_units_are_those_of_the_textbook():
    head = head_of("CT")
    acquisition = scan(head, "CT")
    kinds = dominant(head)
    pure = (head.share > 0.98) | (head.share < 0.02)
    hu = acquire(head, Protocol("CT", "axial", 1.6, 1.6, 1.6, 140, 140, 90), rng_for(0))
    to_index = np.linalg.inv(head.affine)
    row, column = np.reshape(hu.image_orientation, (2, 3))
    s, r, c = np.indices(hu.pixels.shape)
    places = hu.image_positions[s] + r[..., None] * column * 1.6 + c[..., None] * row * 1.6
    index = np.rint(places @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
    inside = ((index >= 2) & (index < np.array(kinds.shape) - 2)).all(axis=-1)
    i, j, k = index[inside].T
    seen, tissue = hu.pixels[inside], np.where(pure[i, j, k], kinds[i, j, k], 255)
    for kind, low, high in (
        (Tissue.AIR, -1024, -960),
        (Tissue.FAT, -110, -40),
        (Tissue.CSF, 0, 20),
        (Tissue.WHITE, 22, 33),
        (Tissue.GREY, 27, 42),
        (Tissue.BONE, 400, 1500),
    ):
        assert low < np.median(seen[tissue == kind]) < high, kind.name
    assert acquisition.units == "HU"
    assert acquisition.pixels.min() >= -1024
    bone = scan(head, "CT_BONE")
    assert bone.pixels[5:-8].std() > 0
    flat = (slice(15, 17), slice(80, 96), slice(72, 88))
    assert bone.pixels[flat].std() > 2 * acquisition.pixels[flat].std()


def test_blood_is_bright_and_old_blood_is_dark_on_ct():
    fresh = hu_in(scan(head_of("CT", "acute_subdural_hematoma", size_mm=14.0), "CT"), "acute_subdural_hematoma")
    label = "subacute_chronic_subdural_hematoma"
    old = hu_in(scan(head_of("CT", label, size_mm=14.0), "CT"), label)
    bleed = hu_in(scan(head_of("CT", "intraparenchymal_hemorrhage"), "CT"), "intraparenchymal_hemorrhage")
    assert 50 < bleed < 80
    assert fresh > 50
    assert old < 45 < fresh


def test_fresh_infarct_is_bright_on_dwi_and_dark_on_adc():
    head = head_of("MR", "acute_ischemic_stroke", "left")
    dwi, adc = scan(head, "DWI"), scan(head, "ADC")
    mask = dwi.masks["acute_ischemic_stroke"]
    brain = dwi.pixels > 0.5 * np.median(dwi.pixels[mask]) * 0.42
    assert np.median(dwi.pixels[mask]) > 1.6 * np.median(dwi.pixels[brain & ~mask])
    tissue = adc.pixels[(adc.pixels > 500) & ~adc.masks["acute_ischemic_stroke"]]
    assert np.median(adc.pixels[adc.masks["acute_ischemic_stroke"]]) < 0.75 * np.median(tissue)
    assert 600 < np.median(tissue) < 1000
    assert hu_in(scan(head_of("CT", "acute_ischemic_stroke", "left"), "CT"), "acute_ischemic_stroke") < 28


def test_an_old_infarct_is_neither_bright_on_dwi_nor_dark_on_adc():
    head = head_of("MR", "chronic_ischemic_stroke")
    adc = scan(head, "ADC")
    assert np.median(adc.pixels[adc.masks["chronic_ischemic_stroke"]]) > 1200


def test_enhancement_shows_only_against_the_scan_before_contrast():
    head = head_of("MR", "meningioma", size_mm=34.0)
    before, after = scan(head, "T1"), scan(head, "T1C")

    def relative(acquisition: Acquisition) -> float:
        mask = acquisition.masks["meningioma"]
        tissue = acquisition.pixels > 0.3 * np.percentile(acquisition.pixels, 99)
        return float(np.median(acquisition.pixels[mask]) / np.median(acquisition.pixels[tissue & ~mask]))

    assert relative(before) < 1.1
    assert relative(after) > 1.3


@pytest.mark.parametrize("label", ["ventriculomegaly", "obstructive_hydrocephalus"])
def test_dilated_ventricles_hold_more_fluid_than_normal_ones(label):
    def fluid(head: Head) -> int:
        kinds = dominant(head)
        middle = kinds[kinds.shape[0] // 2 - 20 : kinds.shape[0] // 2 + 20, 40:100, 75:95]
        return int((middle == Tissue.CSF).sum())

    assert fluid(head_of("CT", label)) > 1.8 * fluid(head_of("CT"))


def test_age_widens_the_fluid_spaces():
    def fluid(age_years: int) -> float:
        head = build_head(rng_for(4), age_years=age_years, sex="M", findings=(), modality="MR")
        return float(((head.above == Tissue.CSF) * head.share).sum())

    assert fluid(88) > 1.1 * fluid(30)


def test_padding_marks_what_lies_outside_a_round_field_of_view():
    acquisition = scan(head_of("CT"), "CT", fov_circle=True)
    assert acquisition.padding_value in (-2000, -3024)
    assert (acquisition.pixels[:, 0, 0] == acquisition.padding_value).all()
    assert (acquisition.pixels[:, 88, 80] != acquisition.padding_value).all()
    assert scan(head_of("CT"), "CT").padding_value is None


def test_a_table_lies_behind_a_ct_head_only():
    with_table, without = scan(head_of("CT"), "CT"), scan(head_of("MR"), "T1")
    lowest = with_table.pixels[-1]  # above the vertex there is air, and the headrest
    assert (lowest > -200).sum() > 50
    assert np.argwhere(lowest > -200)[:, 0].min() > 88
    assert without.pixels.min() >= 0


def test_the_same_keys_give_the_same_bytes():
    def once() -> tuple[Head, Acquisition]:
        findings = (make_finding(rng_for(9), "brain_metastasis", "MR"),)
        head = build_head(rng_for(9, "head"), age_years=66, sex="M", findings=findings, modality="MR")
        protocol = mr_protocols(rng_for(9, "protocol"))[0]
        return head, acquire(head, protocol, rng_for(9, "scan"))

    (head, first), (twin, second) = once(), once()
    assert head.share.tobytes() == twin.share.tobytes()
    assert head.affine.tobytes() == twin.affine.tobytes()
    assert first.pixels.tobytes() == second.pixels.tobytes()
    assert {key: mask.sum() for key, mask in first.masks.items()} == {
        key: mask.sum() for key, mask in second.masks.items()
    }


def test_adc_shares_the_geometry_of_its_dwi():
    for seed in range(40):
        protocols = {protocol.sequence: protocol for protocol in mr_protocols(rng_for(seed))}
        if "ADC" in protocols:
            dwi, adc = protocols["DWI"], protocols["ADC"]
            assert (dwi.view, dwi.num_slices, dwi.oblique_deg) == (adc.view, adc.num_slices, adc.oblique_deg)
            assert dwi.offset_mm == adc.offset_mm


def test_scale_keeps_the_field_of_view():
    for draw in (mr_protocols, ct_protocols):
        for plain, fine in zip(draw(rng_for(1)), draw(rng_for(1), scale=2.0), strict=True):
            assert fine.rows == 2 * plain.rows
            assert fine.rows * fine.in_plane_mm == pytest.approx(plain.rows * plain.in_plane_mm, rel=1e-3)
