"""Pseudonyms, dates, references and the export of whole series and reports."""

import datetime
import os
from itertools import pairwise

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, EncapsulatedPDFStorage, ExplicitVRLittleEndian, MRImageStorage
from pydicom.uid import SecondaryCaptureImageStorage as SC

from neurovfm_core.deid import (
    ExportParams,
    Identifiers,
    Pseudonymizer,
    Vault,
    age_band,
    export_report,
    export_series,
    scrub_report,
)
from neurovfm_core.deid.words import technical
from neurovfm_core.errors import Excluded, Reason, UsageError
from neurovfm_core.pacs import CohortStudy, FolderSource, ReportRecord, SeriesListing

KEY = b"k" * 32
PARAMS = ExportParams()


def instance(number=1, study="1.2", series="1.2.3", sop_class=MRImageStorage, **elements):
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, f"{series}.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.PatientID, dataset.PatientName, dataset.Modality = "MRN1", "Doe^Jane", "MR"
    dataset.StudyDate = dataset.SeriesDate = "20200131"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = 4
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = np.arange(16, dtype="<u2").tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def study(**changes):
    known = {
        "study_uid": "1.2",
        "accession": "A1",
        "patient_id": "MRN1",
        "study_date": datetime.date(2020, 1, 31),
        "modality": "MR",
        "body_part": "BRAIN",
        "sex": "F",
        "age_years": 47,
    }
    return CohortStudy(**(known | changes))


def export(tmp_path, datasets, key=KEY, params=PARAMS, cohort_study="default", out="dicom"):
    folder = tmp_path / "archive"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for number, dataset in enumerate(datasets):
        pydicom.dcmwrite(folder / f"{number}.dcm", dataset, enforce_file_format=True)
    source = FolderSource(folder)
    (listing,) = source.listing()
    assert isinstance(listing, SeriesListing)
    cohort_study = study() if cohort_study == "default" else cohort_study
    return export_series(listing, source, Pseudonymizer(key), tmp_path / out, params, cohort_study)


def written(tmp_path, out="dicom"):
    return [pydicom.dcmread(path) for path in sorted((tmp_path / out).rglob("*.dcm"))]


def test_two_keys_give_nothing_in_common_and_one_key_gives_the_same_twice():
    one, two = Pseudonymizer(b"a" * 32), Pseudonymizer(b"b" * 32)
    ids = [str(number) for number in range(200)]

    def names(p):
        return {f(i) for i in ids for f in (p.patient, p.study, p.series, p.instance, p.uid)} | {p.key_id}

    assert names(one) == names(Pseudonymizer(b"a" * 32))
    assert not names(one) & names(two)
    assert len(names(one)) == 5 * len(ids) + 1
    assert all(len(uid) <= 64 and uid.startswith("2.25.") for uid in map(one.uid, ids))


def test_pseudonyms_are_short_lower_case_base32():
    name = Pseudonymizer(KEY).study("1.2.3")
    assert name[:4] == "stu_" and len(name) == 20 and set(name[4:]) <= set("abcdefghijklmnopqrstuvwxyz234567")


def test_number_and_issuer_do_not_run_together():
    p = Pseudonymizer(KEY)
    assert p.patient("12", "3") != p.patient("1", "23")
    assert p.patient(" 12 ", "") == p.patient("12", "")


def test_a_vault_is_made_once_and_opened_by_its_owner_only(tmp_path):
    made = Vault.create(tmp_path / "vault")
    assert Vault.open(tmp_path / "vault").key_id == made.key_id
    assert (tmp_path / "vault").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "vault").iterdir())
    with pytest.raises(UsageError, match="already"):
        Vault.create(tmp_path / "vault")
    assert Vault.open(tmp_path / "vault").key_id == made.key_id


@pytest.mark.parametrize("damage", ["missing", "readable", "swapped", "cut", "another workspace"])
def test_a_vault_with_the_wrong_key_is_refused(tmp_path, damage):
    vault = tmp_path / "vault"
    made = Vault.create(vault)
    key = vault / "pseudonym.key"
    if damage == "missing":
        key.unlink()
    elif damage == "readable":
        key.chmod(0o640)
    elif damage == "swapped":
        key.write_text("ab" * 32)
    elif damage == "cut":
        os.truncate(key, 20)
    expected = "someotherkeyid22" if damage == "another workspace" else made.key_id
    with pytest.raises(UsageError):
        Vault.open(vault, expected)


def test_a_key_does_not_show():
    assert "6b6b" not in repr(Pseudonymizer(KEY)) and "kkkk" not in repr(Pseudonymizer(KEY))


def test_intervals_between_studies_of_a_patient_are_kept_and_true_dates_are_not(tmp_path):
    days = ["20190227", "20190301", "20240229"]
    for number, day in enumerate(days):
        on = datetime.datetime.strptime(day, "%Y%m%d").date()
        dataset = instance(study=f"1.{number}", series=f"1.{number}.1", StudyDate=day, AcquisitionDateTime=day + "1200")
        facts = export(tmp_path, [dataset], cohort_study=study(study_date=on), out=f"dicom{number}")
        assert facts.time_bucket == day[:4]
        (clean,) = written(tmp_path, f"dicom{number}")
        assert clean.StudyDate == facts.study_date_shifted == clean.AcquisitionDateTime
        assert clean.StudyTime == ""
        days[number] = clean.StudyDate
    moved = [datetime.datetime.strptime(day, "%Y%m%d") for day in days]
    assert [(b - a).days for a, b in pairwise(moved)] == [2, 1826]
    assert moved[0] < datetime.datetime(2019, 2, 27)


def test_references_between_instances_still_hold(tmp_path):
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = MRImageStorage, "1.2.3.1"
    datasets = [instance(1), instance(2, ReferencedImageSequence=[reference], FrameOfReferenceUID="1.2.9")]
    export(tmp_path, datasets)
    by_reference = {"ReferencedImageSequence" in clean: clean for clean in written(tmp_path)}
    target = by_reference[True].ReferencedImageSequence[0].ReferencedSOPInstanceUID
    assert target == by_reference[False].SOPInstanceUID == by_reference[False].file_meta.MediaStorageSOPInstanceUID
    assert by_reference[True].StudyInstanceUID == by_reference[False].StudyInstanceUID != "1.2"


def test_facts_are_coarse_and_the_description_is_technical(tmp_path):
    facts = export(
        tmp_path,
        [
            instance(
                Manufacturer="SIEMENS Healthineers",
                ManufacturerModelName="MAGNETOM Prisma Station-7",
                MagneticFieldStrength="30000",
                SeriesDescription="T2_tse_tra DOE JANE for Dr Miller",
                BodyPartExamined="HEAD",
                PatientSex="F",
                StationName="ROOM7",
                DeviceSerialNumber="4711",
            )
        ],
    )
    assert (facts.manufacturer, facts.model, facts.field_strength_t) == ("SIEMENS", "MAGNETOM Prisma", 3.0)
    assert (facts.description, facts.body_part, facts.sex, facts.age_band) == (
        "t2 tse tra",
        "HEAD",
        "F",
        "40-49",
    )
    (clean,) = written(tmp_path)
    assert clean.PatientAge == "040Y" and clean.PatientID == facts.patient_id == clean.PatientName
    assert "StationName" not in clean and "DeviceSerialNumber" not in clean


@pytest.mark.parametrize(
    ("age", "band"),
    [(0, "0-9"), (9, "0-9"), (10, "10-19"), (88, "80-88"), (89, "89+"), (104, "89+"), (None, "")],
)
def test_age_bands(age, band):
    assert age_band(age) == band


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"sop_class": SC}, Reason.SECONDARY_CAPTURE),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, Reason.SECONDARY_CAPTURE),
        ({"BurnedInAnnotation": "YES"}, Reason.BURNED_IN_ANNOTATION),
        ({"sop_class": EncapsulatedPDFStorage}, Reason.NOT_AN_IMAGE),
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.128"}, Reason.NOT_CT_OR_MR),
        ({"SamplesPerPixel": 3}, Reason.NOT_GREYSCALE),
    ],
)
def test_what_may_not_leave_is_refused_with_its_reason_and_leaves_nothing(tmp_path, elements, reason):
    with pytest.raises(Excluded) as refusal:
        export(tmp_path, [instance(**elements)])
    assert refusal.value.reason is reason
    assert not [path for path in (tmp_path / "dicom").rglob("*") if path.is_file()]


def test_a_study_outside_the_cohort_is_refused(tmp_path):
    with pytest.raises(Excluded) as refusal:
        export(tmp_path, [instance()], cohort_study=None)
    assert refusal.value.reason is Reason.NOT_IN_COHORT
    alone = ExportParams(require_warehouse=False)
    export(tmp_path, [instance()], params=alone, cohort_study=None)
    with pytest.raises(Excluded):
        export(tmp_path, [instance(BodyPartExamined="KNEE")], params=alone, cohort_study=None)


def test_a_foreign_object_inside_a_series_is_dropped_and_counted(tmp_path):
    facts = export(tmp_path, [instance(1), instance(2), instance(3, sop_class=SC), instance(2)])
    assert (facts.instances_expected, facts.instances_received, facts.instances_dropped) == (4, 4, 2)
    assert len(written(tmp_path)) == 2


def test_patients_without_a_number_are_not_one_patient(tmp_path):
    one = export(tmp_path, [instance(PatientID="", study="1.5", series="1.5.1")])
    two = export(tmp_path, [instance(PatientID="", study="1.6", series="1.6.1")])
    assert one.patient_id != two.patient_id


def test_exporting_again_replaces_the_series_and_gives_the_same_bytes(tmp_path):
    first = export(tmp_path, [instance(1), instance(2), instance(3)])
    before = {path.name: path.read_bytes() for path in (tmp_path / "dicom").rglob("*.dcm")}
    again = export(tmp_path, [instance(3), instance(1), instance(2)])
    assert {path.name: path.read_bytes() for path in (tmp_path / "dicom").rglob("*.dcm")} == before
    assert again == first
    fewer = export(tmp_path, [instance(1)])
    assert len(written(tmp_path)) == 1 and fewer.sha256 != first.sha256
    (series_folder,) = (path for path in (tmp_path / "dicom").glob("*/*"))
    assert fewer.outputs == (f"dicom/{series_folder.parent.name}/{series_folder.name}",)


def test_a_b_value_from_a_private_block_is_kept_only_if_asked_for(tmp_path):
    dataset = instance()
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", "1000")
    dataset.private_block(0x0019, "SIEMENS MR HEADER").add_new(0x55, "LO", "Doe")
    export(tmp_path, [dataset])
    (clean,) = written(tmp_path)
    block = clean.private_block(0x0019, "SIEMENS MR HEADER")
    assert block[0x0C].value == 1000 and 0x55 not in block
    export(tmp_path, [dataset], params=ExportParams(retain_safe_private=False))
    (clean,) = written(tmp_path)
    assert not [tag for tag in clean.keys() if tag.is_private]  # noqa: SIM118


def test_a_padding_value_survives_under_either_type(tmp_path):
    for signed, stated in ((0, 63536), (1, -2000)):
        export(
            tmp_path,
            [instance(sop_class=CTImageStorage, PixelRepresentation=signed, PixelPaddingValue=stated)],
        )
        (clean,) = written(tmp_path)
        assert clean.PixelPaddingValue == stated


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Ax T2 FLAIR FS", "ax t2 flair fs"),
        ("t1_mprage_tra_p2_iso", "t1 mprage tra iso"),
        ("ep2d_diff_b1000_ADC", "ep2d diff b1000 adc"),
        ("MILLER^JOHN 12.3.2020", ""),
        ("Kopf nativ 5.0 H42s", "kopf nativ h42s"),
    ],
)
def test_descriptions_keep_technical_words_only(text, kept):
    assert technical(text) == kept


KNOWN = Identifiers(names=("White^Jane^Q", "Nguyen^An"), numbers=("MRN0012345", "ACC-77-001"))


@pytest.mark.parametrize(
    "secret",
    [
        "Jane White",
        "WHITE, JANE",
        "white jane q",
        "Ms. White",
        "Nguyen",
        "MRN0012345",
        "mrn0012345",
        "ACC-77-001",
        "03/14/2021",
        "2021-03-14",
        "14 March 2021",
        "March 14, 2021",
        "Mar 2021",
        "20210314",
        "14:35",
        "2:35 PM",
        "(555) 123-4567",
        "555-123-4567",
        "Dr. Emily Stone-Baker",
        "Peter van Dyke, M.D.",
        "jane.white@example.org",
        "12 Maple Street",
        "987654321",
        "Saint Odile Medical Center",
    ],
)
def test_identifiers_leave_a_report_wherever_they_stand(secret):
    for sentence in (
        f"Compared with the study of {secret}.",
        f"No bleed ({secret})",
        f"{secret}: NO ACUTE FINDINGS",
    ):
        scrubbed = scrub_report(sentence, KNOWN)
        assert secret.lower() not in scrubbed.lower()
        assert "[" in scrubbed


@pytest.mark.parametrize(
    "sentence",
    [
        "There is a 5.2 x 3.1 cm mass in the left frontal lobe with 4 mm of midline shift.",
        "White matter hyperintensities decreased 5 mm. Gray-white differentiation is preserved.",
        "MR BRAIN WITHOUT CONTRAST. MS. Lesions are unchanged. CT head.",
        "Diffusion restriction on b1000 images, T2 FLAIR, C3-C4 and L4/L5 levels, 2/3 of the sinus.",
        "An old infarct. A 61-year-old man, status post resection, series 5 image 34.",
        "FINDINGS DO NOT SUGGEST ABSCESS. VENTRICLES MAY 3 MM.",
        "IMPRESSION: 1. No acute intracranial hemorrhage. 2. Chronic small vessel disease.",
    ],
)
def test_findings_are_left_alone(sentence):
    assert scrub_report(sentence, KNOWN) == sentence


def test_a_relative_is_not_named():
    text = scrub_report("History from the daughter, Anna Berg, and his wife Eva Berg.", Identifiers())
    assert text == "History from the daughter, [NAME], and his wife [NAME]."


def test_very_old_ages_are_not_told():
    assert scrub_report("A 93-year-old and an 89 year old", Identifiers()) == "A 90+-year-old and an 89 year old"


def report(text, status="final", **changes):
    known = {"accession": "A1", "study_uid": "1.2", "patient_id": "MRN1", "patient_name": "Doe^Jane"}
    row = {"modality": "MR", "study_date": "2020-01-31", "text": text, "status": status}
    return ReportRecord(**(known | row | changes))


def test_a_report_is_written_with_its_addenda_under_a_heading(tmp_path):
    rows = [report("FINDINGS: Jane Doe has no bleed."), report("Seen again 2/3/2020.", "addendum")]
    facts = export_report(rows, Pseudonymizer(KEY), tmp_path / "reports")
    text = (tmp_path / facts.outputs[0]).read_text()
    assert text == "FINDINGS: [NAME] has no bleed.\n\nADDENDUM:\nSeen again [DATE].\n"
    assert facts.item_id[4:] == facts.study_id[4:] and facts.item_id.startswith("rep_")
    assert facts.study_id == Pseudonymizer(KEY).study("1.2") and facts.time_bucket == "2020"
    series = export(tmp_path, [instance()])
    assert (series.study_id, series.patient_id) == (facts.study_id, facts.patient_id)


@pytest.mark.parametrize(
    ("record", "reason"),
    [(report("  \n"), Reason.EMPTY_REPORT), (report("x", modality=""), Reason.UNMATCHED_REPORT)],
)
def test_a_report_without_text_or_study_is_refused(tmp_path, record, reason):
    with pytest.raises(Excluded) as refusal:
        export_report([record], Pseudonymizer(KEY), tmp_path)
    assert refusal.value.reason is reason
