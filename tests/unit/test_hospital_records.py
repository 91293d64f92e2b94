"""The hospital's records: patients, DICOM files, reports and warehouse agree with the planted truth."""

import datetime as dt
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.nicom import csareader
from pydicom.pixels import apply_rescale

from neurovfm_core.errors import UsageError
from neurovfm_core.hospital.acquisition import Acquisition
from neurovfm_core.hospital.build import HospitalParams, build_hospital
from neurovfm_core.hospital.dicom_writer import StudyWriter, reformatted
from neurovfm_core.hospital.findings import truth_labels
from neurovfm_core.hospital.patients import FLEET, Patient, Scanner, Visit, identifiers, visits
from neurovfm_core.hospital.reports import WrittenReport, write_report
from neurovfm_core.randomness import rng_for
from neurovfm_core.vocabulary import LabelState, Modality

NUM_STUDIES = 13
PARAMS = HospitalParams(num_studies=NUM_STUDIES, seed=5, scale=0.5)
JUNK = {
    "localizer", "reformat", "two_slices", "mixed_orientations", "dose_sheet", "structured_report", "document"
}  # fmt: skip


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    build_hospital(folder, PARAMS)
    return folder


@pytest.fixture(scope="module")
def truths(hospital) -> list[dict]:
    return [json.loads(line) for line in (hospital / "truth" / "truth.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def dictations() -> list[tuple[Visit, WrittenReport]]:
    params = HospitalParams(num_studies=600, seed=11)
    return [(v, write_report(v, identifiers(v), rng_for(11, "report", v.index))) for v in visits(params)]


def study_folder(hospital: Path, truth: dict) -> Path:
    (patient,) = (hospital / "pacs").glob(f"*_{truth['patient_id']}")
    return patient / f"{truth['study_date'].replace('-', '')}_{truth['modality']}"


def all_series(hospital: Path, truths: list[dict]) -> Iterator[tuple[dict, dict, list[Path]]]:
    for truth in truths:
        for series in truth["series"]:
            yield truth, series, sorted((study_folder(hospital, truth) / series["folder"]).iterdir())


def visit_on(scanner: Scanner, index: int) -> Visit:
    patient = Patient(0, "Müller-Stahl", "Renée", "F", dt.date(1950, 2, 3), "412345678")
    return Visit(0, index, patient, scanner.modality, dt.date(2021, 5, 6), "101112", scanner, ())


def a_stack(modality: Modality, num_slices: int = 7) -> Acquisition:
    """An oblique stack whose every voxel differs from its neighbours."""
    rng = np.random.default_rng(0)
    low, high = (-1024, 3000) if modality is Modality.CT else (0, 4000)
    row, column = np.array([1.0, 0.0, 0.0]), np.array([0.0, np.cos(0.2), np.sin(0.2)])
    normal = np.cross(row, column)
    return Acquisition(
        pixels=rng.integers(low, high, (num_slices, 40, 48)).astype(np.int16),
        image_orientation=(*row, *column),
        image_positions=np.array([-20.0, -30.0, 11.5]) + np.arange(num_slices)[:, None] * 6.5 * normal,
        pixel_spacing=(1.25, 1.25),
        slice_thickness=5.0,
        masks={},
        units="HU" if modality is Modality.CT else "arbitrary",
        padding_value=None,
    )


def by_position(folder: Path) -> list[pydicom.Dataset]:
    datasets = [pydicom.dcmread(path) for path in folder.iterdir()]
    return sorted(datasets, key=lambda ds: float(ds.SliceLocation))


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("scanner", FLEET, ids=lambda scanner: f"{scanner.vendor} {scanner.modality}")
def test_every_vendor_and_encoding_gives_back_the_scanners_pixels_and_geometry(scanner, index, tmp_path):
    visit, stack = visit_on(scanner, index), a_stack(scanner.modality)
    writer = StudyWriter(visit, identifiers(visit), tmp_path)
    sequence = "CT" if scanner.modality is Modality.CT else "FLAIR"
    record = writer.images(stack, sequence, "axial")
    slices = by_position(tmp_path / record.folder)
    assert len(slices) == len(stack.pixels) == record.num_instances
    assert len({ds.file_meta.TransferSyntaxUID for ds in slices} | {writer.syntax}) == 1
    read = np.stack([apply_rescale(ds.pixel_array, ds) for ds in slices])
    half_a_step = float(slices[0].get("RescaleSlope", 1)) / 2
    assert np.abs(read - stack.pixels).max() <= (half_a_step if half_a_step > 0.5 else 0)
    for ds, position in zip(slices, stack.image_positions, strict=True):
        np.testing.assert_allclose([float(part) for part in ds.ImagePositionPatient], position, atol=1e-6)
        np.testing.assert_allclose(
            [float(part) for part in ds.ImageOrientationPatient], stack.image_orientation, atol=1e-6
        )
        assert ds.pixel_array.max() < 2**ds.BitsStored
    assert sorted(int(ds.InstanceNumber) for ds in slices) == list(range(1, len(slices) + 1))
    assert len({ds.SOPInstanceUID for ds in slices}) == len(slices)
    assert {str(ds.file_meta.MediaStorageSOPInstanceUID) for ds in slices} == {ds.SOPInstanceUID for ds in slices}
    assert len({ds.FrameOfReferenceUID for ds in slices} | {ds.StudyInstanceUID for ds in slices}) == 2


def test_vendors_disagree_where_real_ones_do(tmp_path):
    orders, spacings, names = set(), set(), set()
    for number, scanner in enumerate(FLEET):
        visit, stack = visit_on(scanner, 0), a_stack(scanner.modality)
        writer = StudyWriter(visit, identifiers(visit), tmp_path / str(number))
        record = writer.images(stack, "CT" if scanner.modality is Modality.CT else "T2", "axial")
        slices = by_position(tmp_path / str(number) / record.folder)
        orders.add(tuple(int(ds.InstanceNumber) for ds in slices))
        spacings.add(round(float(slices[0].SpacingBetweenSlices), 3))
        names.add(record.description)
    assert len(orders) == 3
    assert spacings == {6.5, 1.5}  # centre to centre, or the gap alone
    assert len(names) >= 7


def test_the_csa_header_of_a_siemens_file_is_well_formed_and_leaks_the_name(tmp_path):
    visit = visit_on(FLEET[0], 0)
    writer = StudyWriter(visit, identifiers(visit), tmp_path)
    record = writer.images(a_stack(Modality.MR), "T1", "axial")
    ds = by_position(tmp_path / record.folder)[0]
    tags = csareader.get_csa_header(ds)["tags"]
    assert tags["UsedPatientName"]["items"] == [identifiers(visit).peek("csa_patient_name")]


@pytest.mark.parametrize("axis", [1, 2])
def test_a_reformat_shows_the_same_voxels_at_the_same_places(axis):
    stack = a_stack(Modality.MR)
    cut = reformatted(stack, axis, every_mm=5.0)
    row, column = np.array(cut.image_orientation[:3]), np.array(cut.image_orientation[3:])
    assert abs(row @ column) < 1e-9
    old_row, old_column = np.array(stack.image_orientation[:3]), np.array(stack.image_orientation[3:])
    steps = np.stack([np.cross(old_row, old_column) * 6.5, old_column * 1.25, old_row * 1.25], axis=1)
    inverse = np.linalg.inv(steps)
    for at in range(len(cut.pixels)):
        for down in (0, cut.pixels.shape[1] - 1):  # rows that lie on original slices
            for along in (0, 5, cut.pixels.shape[2] - 1):
                place = (
                    cut.image_positions[at] + row * along * cut.pixel_spacing[1] + column * down * cut.pixel_spacing[0]
                )
                index = inverse @ (place - stack.image_positions[0])
                np.testing.assert_allclose(index, np.rint(index), atol=1e-6)
                assert cut.pixels[at, down, along] == stack.pixels[tuple(np.rint(index).astype(int))]


def test_every_good_series_reads_back_whole(hospital, truths):
    for truth, series, files in all_series(hospital, truths):
        if series["defect"] == "truncated":
            continue
        datasets = [pydicom.dcmread(path) for path in files]
        assert len({ds.SOPInstanceUID for ds in datasets}) == series["num_instances"]
        assert {ds.SeriesInstanceUID for ds in datasets} == {series["series_uid"]}
        assert {ds.StudyInstanceUID for ds in datasets} == {truth["study_uid"]}
        assert {ds.PatientID for ds in datasets} == {truth["patient_id"]}
        if series["role"] in ("image", "reformat", "localizer", "mixed_orientations", "two_slices"):
            assert all(ds.pixel_array.shape == (ds.Rows, ds.Columns) for ds in datasets)


def test_dcm2niix_sees_the_same_stacks(hospital, truths, tmp_path):
    binary = Path(sys.executable).with_name("dcm2niix")
    seen: set[str] = set()
    for _, series, files in all_series(hospital, truths):
        first = pydicom.dcmread(files[0])
        kind = f"{first.Manufacturer} {first.file_meta.TransferSyntaxUID}"
        deflated = first.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1.99"  # which it cannot read
        if series["role"] != "image" or series["defect"] or kind in seen or deflated:
            continue
        seen.add(kind)
        out = tmp_path / str(len(seen))
        out.mkdir()
        command = [binary, "-z", "n", "-b", "n", "-f", "v", "-o", out, files[0].parent]
        subprocess.run(command, check=True, capture_output=True)
        (path,) = out.glob("*.nii")
        image = nib.load(path)
        slices = sorted((pydicom.dcmread(file) for file in files), key=lambda ds: float(ds.SliceLocation))
        assert image.shape == (slices[0].Columns, slices[0].Rows, len(slices))
        corners = nib.affines.apply_affine(image.affine, [[0, 0, 0], [0, image.shape[1] - 1, 0]])
        corners = np.vstack(
            [corners, nib.affines.apply_affine(image.affine, [[0, image.shape[1] - 1, image.shape[2] - 1]])]
        )
        ours = np.array([[float(part) for part in ds.ImagePositionPatient] for ds in (slices[0], slices[-1])])
        gaps = np.linalg.norm(corners[:, None] - ours[None] * [-1, -1, 1], axis=2)  # LPS to RAS
        assert gaps.min(axis=0).max() < 1e-2 or gaps.min() < 1e-2
    assert len(seen) >= 4


def test_another_number_of_workers_and_growth_change_no_byte(hospital, tmp_path):
    small = PARAMS.model_copy(update={"num_studies": 3})
    first = build_hospital(tmp_path, small, workers=2)
    assert (first.num_studies, first.num_written) == (3, 7)  # four more lie outside the cohort
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pacs").rglob("*") if path.is_file()}
    grown = build_hospital(tmp_path, PARAMS.model_copy(update={"num_studies": 5}), workers=2)
    assert (grown.num_studies, grown.num_written) == (5, 2)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    for folder in ("pacs", "truth/masks", "truth/studies"):
        files = [path for path in (tmp_path / folder).rglob("*") if path.is_file()]
        assert files
        for path in files:
            assert path.read_bytes() == (hospital / path.relative_to(tmp_path)).read_bytes()
    lines = (tmp_path / "truth" / "truth.jsonl").read_text().splitlines()
    assert lines == (hospital / "truth" / "truth.jsonl").read_text().splitlines()[:5]


def test_a_second_build_writes_nothing_and_a_lost_study_comes_back(hospital, truths, tmp_path):
    assert build_hospital(hospital, PARAMS).num_written == 0
    lost = study_folder(hospital, truths[0])
    shutil.copytree(lost, tmp_path / "copy")
    shutil.rmtree(lost)
    assert build_hospital(hospital, PARAMS).num_written == 1
    for path in (tmp_path / "copy").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (lost / path.relative_to(tmp_path / "copy")).read_bytes()
    assert not (hospital / ".building").exists()


def test_a_folder_of_another_hospital_is_refused(hospital):
    with pytest.raises(UsageError, match="seed"):
        build_hospital(hospital, PARAMS.model_copy(update={"seed": 6}))


def test_a_dozen_studies_hold_every_kind_of_junk(hospital, truths):
    series = [series for truth in truths for series in truth["series"]]
    assert {one["role"] for one in series} >= JUNK
    assert {one["defect"] for one in series} == {"", "missing_slice", "truncated", "duplicates"}
    strays = Counter(kind for truth in truths for kind in truth["strays"].values())
    assert set(strays) == {"corrupt", "empty", "text", "media_index"}
    for truth in truths:
        for name in truth["strays"]:
            assert (study_folder(hospital, truth) / name).is_file()


def readable(path: Path) -> pydicom.Dataset | None:
    """The dataset with its pixels decoded, or None if that fails."""
    try:
        ds = pydicom.dcmread(path)
        if "PixelData" in ds:
            ds.pixel_array  # noqa: B018
    except (ValueError, AttributeError, EOFError, RuntimeError, zlib.error):
        return None
    return ds


def test_broken_series_are_broken_as_the_truth_says(hospital, truths):
    for _, series, files in all_series(hospital, truths):
        datasets = [ds for ds in map(readable, files) if ds]
        orientations = {tuple(ds.ImageOrientationPatient) for ds in datasets if "ImageOrientationPatient" in ds}
        assert len({ds.SOPInstanceUID for ds in datasets}) == series["num_instances"]
        assert len(files) - len(datasets) == (series["defect"] == "truncated")
        if series["role"] == "mixed_orientations":
            assert len(orientations) == 2
        if series["role"] == "localizer" and datasets[0].Modality == "MR":
            assert len(orientations) == 3
        if series["defect"] == "duplicates":
            assert len(files) == series["num_instances"] + 1
        if series["defect"] == "missing_slice":
            steps = np.diff(sorted(float(ds.SliceLocation) for ds in datasets))
            assert steps.max() == pytest.approx(2 * np.median(steps), abs=1e-3)


def test_a_series_inherits_nothing_from_the_series_before_it(hospital, truths):
    for _, series, files in all_series(hospital, truths):
        ds = pydicom.dcmread(files[0])
        assert ("PixelData" in ds) == (series["role"] not in ("structured_report", "document"))
        assert ("EncapsulatedDocument" in ds) == (series["role"] == "document")
        assert ("InversionTime" in ds) <= (series["sequence"] in ("FLAIR", "T1", "T1C", "MPR"))
        assert ("DiffusionBValue" in ds) == (series["sequence"] == "DWI")
        assert ("ContrastBolusAgent" in ds) == (series["sequence"] == "T1C")


def test_masks_lie_on_the_slices_of_their_series(hospital, truths):
    checked = 0
    for truth, series, files in all_series(hospital, truths):
        if not series["masks"] or series["defect"]:
            continue
        checked += 1
        first = pydicom.dcmread(files[0])
        with np.load(hospital / series["masks"], allow_pickle=False) as masks:
            names = set(masks) - {"image_positions", "image_orientation", "pixel_spacing"}
            assert names
            assert names <= set(truth["labels"]) | {finding["label"] for finding in truth["findings"]}
            for name in names:
                assert masks[name].dtype == bool
                assert masks[name].shape == (series["num_instances"], first.Rows, first.Columns)
            positions = masks["image_positions"]
        places = np.array([[float(part) for part in pydicom.dcmread(file).ImagePositionPatient] for file in files])
        gaps = np.linalg.norm(positions[:, None] - places[None], axis=2)
        assert gaps.min(axis=1).max() < 1e-5
    assert checked >= 10


def test_planted_identifiers_lie_in_the_files(hospital):
    planted = json.loads((hospital / "truth" / "identifiers.json").read_text())
    assert len(planted) >= 40
    haystack = bytearray()
    for path in (hospital / "pacs").rglob("*"):
        haystack += str(path.relative_to(hospital)).encode()
        if path.is_file():
            raw = path.read_bytes()
            haystack += raw[:40_000] + raw[-4_000:]
            if raw[128:132] == b"DICM" and b"1.2.840.10008.1.2.1.99" in raw[:600]:
                meta_end = 144 + int.from_bytes(raw[140:144], "little")
                haystack += zlib.decompressobj(-15).decompress(raw[meta_end:])[:40_000]
    with sqlite3.connect(hospital / "warehouse.sqlite") as connection:
        for table in ("studies", "reports"):
            for row in connection.execute(f"SELECT * FROM {table}"):
                haystack += "\n".join(row).encode()
    for kind, texts in planted.items():
        for text in texts:
            assert text.encode() in haystack or text.encode("latin-1") in haystack, kind


def test_the_warehouse_knows_the_heads_the_strangers_and_not_the_phantom(hospital, truths):
    with sqlite3.connect(hospital / "warehouse.sqlite") as connection:
        connection.row_factory = sqlite3.Row
        studies = [dict(row) for row in connection.execute("SELECT * FROM studies")]
        reports = [dict(row) for row in connection.execute("SELECT * FROM reports")]
    heads = {row["study_uid"]: row for row in studies if row["body_part"] in ("HEAD", "BRAIN")}
    assert set(heads) == {truth["study_uid"] for truth in truths}
    assert {row["body_part"] for row in studies} == {"HEAD", "BRAIN", "CHEST", "KNEE", "ABDOMEN"}
    for truth in truths:
        row = heads[truth["study_uid"]]
        assert (row["accession"], row["patient_id"]) == (truth["accession"], truth["patient_id"])
        assert (row["modality"], row["study_date"], row["sex"]) == (
            truth["modality"],
            truth["study_date"],
            truth["sex"],
        )
        born, seen = (dt.date.fromisoformat(row[key]) for key in ("birth_date", "study_date"))
        assert (seen - born).days // 365.25 == pytest.approx(truth["age_years"], abs=1)
        (final,) = [r for r in reports if r["study_uid"] == truth["study_uid"] and r["status"] == "final"]
        assert bool(final["text"]) == truth["has_report"]
    known = {row["patient_id"] for row in studies}
    strangers = {folder.name.split("_")[-1] for folder in (hospital / "pacs").iterdir()} - known
    assert len(strangers) == 1  # the phantom


def test_follow_ups_come_later_to_the_same_person():
    seen: dict[str, Visit] = {}
    follow_ups = changed = resolved = 0
    for visit in visits(HospitalParams(num_studies=400)):
        before = seen.get(visit.patient.mrn)
        if visit.prior_date:
            follow_ups += 1
            assert before is not None
            assert (before.study_date, before.modality) == (visit.prior_date, visit.prior_modality)
            assert before.study_date < visit.study_date
            assert before.patient == visit.patient
            assert set(visit.changes) <= {finding.label for finding in visit.findings}
            changed += bool(visit.changes)
            resolved += bool(visit.resolved)
        else:
            assert before is None
        seen[visit.patient.mrn] = visit
        assert dt.date(2019, 1, 1) <= visit.study_date <= dt.date(2024, 12, 31)
    assert 60 <= follow_ups <= 160
    assert changed > 20 and resolved > 10


# One word per label that any report naming it must hold, chosen without regard to the phrases.
NAMED = {
    "acute_ischemic_stroke": r"infarct|stroke",
    "chronic_ischemic_stroke": r"infarct",
    "lacunar_stroke": r"lacun",
    "intraparenchymal_hemorrhage": r"parenchymal|intracerebral|IPH",
    "intraventricular_hemorrhage": r"intraventricular|IVH",
    "subdural_hematoma": r"subdural|SDH",
    "acute_subdural_hematoma": r"acute.*(subdural|SDH)|(subdural|SDH)",
    "subacute_chronic_subdural_hematoma": r"subdural|SDH",
    "epidural_hematoma": r"epidural|extradural|EDH",
    "high_grade_glioma": r"high-grade|glioblastoma",
    "brain_metastasis": r"metasta",
    "meningioma": r"meningioma",
    "multiple_sclerosis": r"multiple sclerosis",
    "small_vessel_ischemic_disease": r"small vessel|microvascular",
    "cerebral_atrophy": r"atrophy|volume loss",
    "ventriculomegaly": r"ventric",
    "obstructive_hydrocephalus": r"hydrocephalus",
    "midline_shift": r"midline",
    "brain_midline_shift": r"midline",
    "brain_mass_effect": r"mass effect",
    "cerebral_edema": r"edema",
    "burr_hole": r"burr hole",
    "sinusitis": r"sinusitis",
    "arachnoid_cyst": r"arachnoid cyst|extra-axial cyst",
    "postsurgical_changes": r"post-?surgical|postoperative",
}


def plain(text: str) -> str:
    return text.replace("ae", "e").replace("AE", "E").replace("oedema", "edema").replace("OEDEMA", "EDEMA")


def body(report: WrittenReport) -> str:
    """What the report states: without letterhead, indication, comparison."""
    start = min(at for at in (report.text.find("FINDINGS:"), report.text.find("IMPRESSION:"),
                              report.text.find("CONCLUSION:")) if at >= 0)  # fmt: skip
    return plain(report.text[start:] + report.addendum)


def test_a_report_speaks_of_every_planted_label_and_states_nothing_else_present(dictations):
    for visit, report in dictations:
        if not report.text:
            continue
        planted = set(truth_labels(visit.findings, visit.modality.value))
        present = {label for label, state in report.states.items() if state is LabelState.PRESENT}
        assert present <= planted
        assert all(report.states[label] in (LabelState.PRESENT, LabelState.UNCERTAIN) for label in planted)
        for label in planted - {finding.label for finding in visit.findings}:
            causes = [finding.label for finding in visit.findings if label in finding.implied]
            if all(report.states[cause] is LabelState.UNCERTAIN for cause in causes):
                assert report.states[label] is LabelState.UNCERTAIN
        for label in planted & set(NAMED):
            assert re.search(NAMED[label], body(report), re.IGNORECASE | re.DOTALL), label


def test_what_a_report_denies_or_doubts_is_worded_so(dictations):
    denial = r"\bno\b|\bnone\b|negative|without|absent|not (seen|identified)|resolved|resolution|no longer"
    doubt = r"possibl|cannot|suspicious|questionabl|may represent|equivocal|differential"
    for _, report in dictations:
        states = set(report.states.values())
        if LabelState.ABSENT in states:
            assert re.search(denial, body(report), re.IGNORECASE)
        if LabelState.UNCERTAIN in states:
            assert re.search(doubt, body(report), re.IGNORECASE)
        if LabelState.HISTORICAL in states:
            assert re.search(r"history", body(report), re.IGNORECASE)


def test_no_report_names_a_side_that_was_not_planted(dictations):
    checked = 0
    for visit, report in dictations:
        sides = {f.laterality for f in (*visit.findings, *visit.resolved)}
        if not report.text or not sides <= {"left", "none", "midline"}:
            continue
        if LabelState.UNCERTAIN in report.states.values():
            continue
        checked += 1
        assert not re.search(r"\bright\b|\brightmost\b", body(report), re.IGNORECASE)
    assert checked > 60


def test_reports_vary_and_hold_no_unfilled_slot(dictations):
    texts = [report.text for _, report in dictations if report.text]
    assert len(set(texts)) == len(texts)
    assert not any(
        re.search(r"[{}]|  [a-z]|\bNone None\b| \.| ,", body(report)) for _, report in dictations if report.text
    )
    assert sum(text.isupper() or "EVIDENCE" in text for text in texts) > 20
    assert sum("HEMORRHAGE: " in text for text in texts) > 20
    assert sum("FINDINGS:" not in text for text in texts) > 20
    assert 5 < sum(not report.text for _, report in dictations) < 30
    assert sum(bool(report.addendum) for _, report in dictations) > 30
    states = Counter(state for _, report in dictations for state in report.states.values())
    assert min(states[state] for state in (LabelState.UNCERTAIN, LabelState.ABSENT, LabelState.HISTORICAL)) > 30


def test_states_of_a_report_are_written_to_the_truth(hospital, truths):
    planned = list(visits(PARAMS))
    for truth, visit in zip(truths, planned, strict=True):
        assert truth["labels"] == list(truth_labels(visit.findings, visit.modality.value))
        report = write_report(visit, identifiers(visit), rng_for(PARAMS.seed, "report", visit.index))
        assert truth["states"] == report.states
        assert truth["study_uid"] == visit.study_uid
