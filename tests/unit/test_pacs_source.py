"""The folder source lists what is there, whatever it is called."""

import datetime

import pydicom
import pytest
import sqlalchemy
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage, MRImageStorage

from neurovfm_core.errors import Reason, UsageError
from neurovfm_core.pacs import (
    CohortParams,
    FolderSource,
    SeriesListing,
    StrayFile,
    Warehouse,
    open_source,
)
from neurovfm_core.pacs.warehouse import METADATA, REPORTS, STUDIES


def write_instance(path, series="1.2.3", instance="1.2.3.4", study="1.2", patient="P1", sop_class=MRImageStorage):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = instance
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, instance
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.PatientID, dataset.PatientName, dataset.Modality = patient, "SECRET^NAME", "MR"
    dataset.StudyDate, dataset.AccessionNumber = "20200131", "ACC1"
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def series_of(root):
    return [entry for entry in FolderSource(root).listing() if isinstance(entry, SeriesListing)]


def strays_of(root):
    return [entry for entry in FolderSource(root).listing() if isinstance(entry, StrayFile)]


def test_files_of_one_series_are_found_in_any_folder_and_under_any_name(tmp_path):
    write_instance(tmp_path / "a" / "x.dcm", instance="1.9.1")
    write_instance(tmp_path / "b" / "c" / "no_suffix", instance="1.9.2")
    write_instance(tmp_path / "z.ima", series="1.2.4", instance="1.9.3")
    listed = series_of(tmp_path)
    assert [(s.series_uid, len(s.files)) for s in listed] == [("1.2.3", 2), ("1.2.4", 1)]
    assert (listed[0].patient_id, listed[0].study_date, listed[0].accession) == ("P1", "20200131", "ACC1")


def test_a_file_without_preamble_is_dicom_too(tmp_path):
    write_instance(tmp_path / "x.dcm")
    content = (tmp_path / "x.dcm").read_bytes()
    dataset = pydicom.dcmread(tmp_path / "x.dcm")
    (tmp_path / "x.dcm").unlink()
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    pydicom.filewriter.write_dataset(buffer, dataset)
    (tmp_path / "bare").write_bytes(buffer.getvalue())
    assert len(buffer.getvalue()) < len(content)
    assert [s.series_uid for s in series_of(tmp_path)] == ["1.2.3"]


def test_what_is_not_dicom_is_stray_and_a_media_index_is_nothing(tmp_path):
    write_instance(tmp_path / "good", instance="1.9.1")
    write_instance(tmp_path / "DICOMDIR", sop_class=MediaStorageDirectoryStorage, instance="1.9.2")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "garbage.dcm").write_bytes(bytes(range(256)) * 20)
    assert [stray.reason for stray in strays_of(tmp_path)] == [Reason.NOT_DICOM] * 3
    assert len(series_of(tmp_path)) == 1


def test_a_series_that_names_two_patients_is_never_mixed(tmp_path):
    write_instance(tmp_path / "a", instance="1.9.1", patient="P1")
    write_instance(tmp_path / "b", instance="1.9.2", patient="P2")
    assert [(s.patient_id, len(s.files)) for s in series_of(tmp_path)] == [("P1", 1)]
    assert [stray.reason for stray in strays_of(tmp_path)] == [Reason.UNEXPECTED]


def test_the_fingerprint_moves_with_the_files_and_only_with_them(tmp_path):
    write_instance(tmp_path / "a", instance="1.9.1")
    write_instance(tmp_path / "b", instance="1.9.2")
    (first,) = series_of(tmp_path)
    (tmp_path / "b").rename(tmp_path / "0")
    (renamed,) = series_of(tmp_path)
    assert renamed.fingerprint == first.fingerprint
    write_instance(tmp_path / "c", instance="1.9.3")
    (grown,) = series_of(tmp_path)
    assert grown.fingerprint != first.fingerprint


def test_a_listing_shows_no_identifier(tmp_path):
    write_instance(tmp_path / "SECRET^NAME.dcm", patient="MRN0815", study="1.2.77777")
    (tmp_path / "MRN0815.txt").write_text("x")
    shown = repr(list(FolderSource(tmp_path).listing()))
    assert not any(secret in shown for secret in ("SECRET", "MRN0815", "77777", "ACC1", "20200131"))


def test_instances_that_no_longer_parse_are_left_out(tmp_path):
    write_instance(tmp_path / "a", instance="1.9.1")
    write_instance(tmp_path / "b", instance="1.9.2")
    source = FolderSource(tmp_path)
    (listed,) = series_of(tmp_path)
    (tmp_path / "b").write_bytes(b"overwritten by something else entirely")
    assert [uid for uid, _ in source.instances(listed)] == ["1.9.1"]


@pytest.mark.parametrize("address", ["folder:/does/not/exist", "dimse://x", "nonsense", "folder:{empty}"])
def test_an_address_that_leads_nowhere_is_refused(address, tmp_path):
    with pytest.raises(UsageError):
        open_source(address.format(empty=tmp_path))


@pytest.fixture
def warehouse(tmp_path):
    url = f"sqlite:///{tmp_path / 'warehouse.sqlite'}"
    engine = sqlalchemy.create_engine(url)
    METADATA.create_all(engine)
    rows = [
        ("1", "A1", "P1", "1950-06-15", "2020-06-14", "MR", "BRAIN", "MRI brain"),
        ("2", "A2", "P1", "1950-06-15", "2020-06-15", "CT", "HEAD", "CT head"),
        ("3", "A3", "P2", "1980-01-01", "2021-01-01", "CT", "CHEST", "CT chest"),
        ("4", "A4", "P3", None, "2019-12-31", "MR", "", "MR orbits w/wo"),
        ("5", "A5", "P4", "1990-01-01", None, "MR", "BRAIN", "MRI brain"),
        ("6", "A6", "P5", "1990-01-01", "2020-01-01", "US", "NECK", "US neck"),
        ("7", "A7", "P6", "1990-01-01", "2020-01-01", "MR", "", "MR knee"),
    ]
    names = [
        "study_uid",
        "accession",
        "patient_id",
        "birth_date",
        "study_date",
        "modality",
        "body_part",
        "description",
    ]
    with engine.begin() as connection:
        connection.execute(
            STUDIES.insert(),
            [dict(zip(names, r, strict=True)) | {"patient_name": "X^Y", "sex": "f"} for r in rows],
        )
        connection.execute(
            REPORTS.insert(),
            [
                {"study_uid": uid, "accession": "A", "report_date": day, "status": status, "text": text}
                for uid, day, status, text in [
                    ("2", "2020-06-20", "addendum", "more"),
                    ("2", "2020-06-15", "final", "first"),
                    ("1", "2020-06-14", "final", "one"),
                    ("99", "2020-06-14", "final", "of an unknown study"),
                ]
            ],
        )
    return Warehouse(url)


def test_the_cohort_is_what_meets_all_criteria(warehouse):
    assert set(warehouse.cohort(CohortParams())) == {"1", "2", "4", "5"}
    ranged = CohortParams(date_from=datetime.date(2020, 1, 1), date_until=datetime.date(2020, 6, 14))
    assert set(warehouse.cohort(ranged)) == {"1"}  # a study without a date is in no range
    assert set(warehouse.cohort(CohortParams(modalities=("CT",)))) == {"2"}


def test_age_is_in_full_years_on_the_day_of_the_study(warehouse):
    cohort = warehouse.cohort(CohortParams())
    assert [cohort[uid].age_years for uid in "1245"] == [69, 70, None, None]


def test_reports_come_with_the_final_one_before_its_addenda(warehouse):
    assert [(r.study_uid, r.text) for r in warehouse.reports(["2", "1"])] == [
        ("1", "one"),
        ("2", "first"),
        ("2", "more"),
    ]
    unknown = [r for r in warehouse.reports(None) if r.study_uid == "99"]
    assert [r.modality for r in unknown] == [""]


def test_more_studies_than_one_query_can_name_are_asked_for_in_parts(warehouse):
    assert len(list(warehouse.reports([str(n) for n in range(2000)]))) == 4


def test_a_missing_warehouse_is_refused_and_not_created(tmp_path):
    with pytest.raises(UsageError):
        Warehouse(f"sqlite:///{tmp_path / 'missing.sqlite'}")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "other.sqlite").write_bytes(b"")
    with pytest.raises(UsageError, match="no table"):
        Warehouse(f"sqlite:///{tmp_path / 'other.sqlite'}").cohort(CohortParams())


def test_a_password_in_a_bad_url_is_not_repeated():
    with pytest.raises(UsageError) as refusal:
        Warehouse("nosuchdatabase://user:hunter2@host/db")
    assert "hunter2" not in str(refusal.value)
