"""Laws of the synthetic findings and of the scanner's geometry."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neurovfm_core.hospital.acquisition import Protocol, _directions, ct_protocols, mr_protocols
from neurovfm_core.hospital.findings import MASS_EFFECT_MM, SHIFT_REPORTED_MM, sample_findings, truth_labels
from neurovfm_core.hospital.shapes import capsule, ellipsoid
from neurovfm_core.labels.ontology import Ontology
from neurovfm_core.randomness import rng_for

MODALITIES = st.sampled_from(["MR", "CT"])
ONTOLOGY = Ontology.load(None)


@given(seed=st.integers(0, 10**6), modality=MODALITIES, age_years=st.integers(18, 95))
@settings(max_examples=200, deadline=None)
def test_truth_is_closed_under_what_the_ontology_implies(seed, modality, age_years):
    findings = sample_findings(rng_for(seed), modality, age_years)
    labels = set(truth_labels(findings, modality))
    assert labels <= set(ONTOLOGY.labels(modality))
    assert {parent for label in labels for parent in ONTOLOGY.implied(label, modality)} <= labels
    assert findings == sample_findings(rng_for(seed), modality, age_years)


@given(seed=st.integers(0, 10**6), modality=MODALITIES, age_years=st.integers(18, 95))
@settings(max_examples=200, deadline=None)
def test_side_and_shift_agree_with_place_and_labels(seed, modality, age_years):
    findings = sample_findings(rng_for(seed), modality, age_years)
    labels = truth_labels(findings, modality)
    for finding in findings:
        sign = {"left": 1, "right": -1}.get(finding.laterality, 0)
        assert np.sign(finding.center_mm[0]) == sign
    shift_mm = max((finding.parameters.get("shift_mm", 0.0) for finding in findings), default=0.0)
    assert any("midline_shift" in label for label in labels) == (shift_mm >= SHIFT_REPORTED_MM)
    assert ("brain_mass_effect" in labels) == (shift_mm >= MASS_EFFECT_MM)


def test_findings_are_as_frequent_as_a_small_study_needs():
    for modality, common in (
        ("MR", ("brain_tumor", "intracranial_hemorrhage", "acute_ischemic_stroke", "brain_mass_effect")),
        ("CT", ("intracranial_hemorrhage", "midline_shift", "brain_mass_effect", "sinusitis")),
    ):
        seen, number = Counter(), []
        for seed in range(1500):
            rng = rng_for(seed, modality)
            findings = sample_findings(rng, modality, int(rng.integers(25, 90)))
            seen.update(truth_labels(findings, modality))
            number.append(len(findings))
        share = {label: count / 1500 for label, count in seen.items()}
        assert 0.2 < np.mean(np.array(number) == 0) < 0.3
        assert np.mean(np.array(number) <= 4) > 0.95
        for label in (*common, "small_vessel_ischemic_disease", "cerebral_atrophy"):
            assert share[label] > 5 / 60, label


@given(
    view=st.sampled_from(["axial", "coronal", "sagittal"]),
    first=st.floats(-30, 30),
    second=st.floats(-30, 30),
)
def test_oblique_stacks_keep_right_angles_and_tilt_by_no_more_than_asked(view, first, second):
    def directions(oblique):
        return _directions(Protocol("T1", view, 1.0, 5.0, 5.0, 64, 64, 8, oblique_deg=oblique))

    row, column = directions((first, second))
    frame = np.stack([row, column, np.cross(row, column)])
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    straight = np.cross(*directions((0.0, 0.0)))
    tilt = np.degrees(np.arccos(np.clip(straight @ frame[2], -1, 1)))
    assert tilt <= abs(first) + abs(second) + 1e-6
    assert tilt >= max(abs(first), abs(second)) - 1e-6


@given(seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_protocols_are_what_a_scanner_could_run(seed):
    mr, ct = mr_protocols(rng_for(seed)), ct_protocols(rng_for(seed))
    assert 3 <= len(mr) <= 5
    assert 1 <= len(ct) <= 3
    assert ct[0].sequence == "CT"
    for protocol in (*mr, *ct):
        assert 8 <= protocol.num_slices <= 200
        assert protocol.slice_spacing_mm >= protocol.slice_thickness_mm > 0
        assert 0.9 <= protocol.in_plane_mm <= 2.0
        assert 180 <= protocol.rows * protocol.in_plane_mm <= 270
    assert len({protocol.sequence for protocol in mr}) == len(mr)


PLACES = st.tuples(*[st.floats(-80, 80, width=32)] * 3)


@given(place=PLACES, radius=st.floats(2, 40))
def test_a_ball_is_an_ellipsoid_and_a_short_rod(place, radius):
    points = tuple(np.float32([part]) for part in place)
    away = float(np.linalg.norm(place)) - radius
    np.testing.assert_allclose(ellipsoid(points, (0, 0, 0), (radius,) * 3), away, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(capsule(points, (0, 0, 0), (1e-3, 0, 0), radius), away, atol=5e-3, rtol=1e-3)
