"""Image sources: what an archive lists, and the instances of one series.

Everything here carries identifiers and lives only inside the export process, so
the values that hold them do not show them in their `repr`.
"""

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import MediaStorageDirectoryStorage

from neurovfm_core.errors import Reason, Transient, UsageError
from neurovfm_core.pacs.silence import silent_pydicom
from neurovfm_core.params import fingerprint

logger = logging.getLogger(__name__)

LISTED_KEYWORDS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
    "Modality",
    "AccessionNumber",
    "StudyDate",
]
CANNOT_PARSE = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    struct.error,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
)
"""What pydicom raises on bytes that are not, or no longer, a DICOM file."""


@dataclass(frozen=True, slots=True)
class SeriesListing:
    """One series as the source has it. Holds identifiers: it never leaves the export process."""

    patient_id: str = field(repr=False)
    issuer: str = field(repr=False)
    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    modality: str
    accession: str = field(repr=False)
    study_date: str = field(repr=False)  # YYYYMMDD, "" if the source has none
    files: tuple[Path, ...] = field(repr=False)  # empty for a source that has no files
    fingerprint: str  # changes when an instance is added, removed or replaced


@dataclass(frozen=True, slots=True)
class StrayFile:
    """A file that belongs to no series."""

    path: Path = field(repr=False)
    reason: Reason
    detail: str


@runtime_checkable
class Source(Protocol):
    """An archive of images: a folder tree today, DIMSE or DICOMweb behind the same two calls."""

    def listing(self) -> Iterator[SeriesListing | StrayFile]:
        """Yield what the archive has, in an order that does not depend on names or time."""

    def instances(self, series: SeriesListing) -> Iterator[tuple[str, pydicom.Dataset]]:
        """Yield (SOPInstanceUID, whole dataset) of each instance that can be parsed."""


@dataclass(frozen=True, slots=True)
class _Header:
    path: Path
    sop_uid: str
    patient_id: str
    issuer: str
    study_uid: str
    series_uid: str
    modality: str
    accession: str
    study_date: str
    size: int
    modified_ns: int

    @property
    def owner(self) -> tuple[str, str, str]:
        return (self.patient_id, self.issuer, self.study_uid)


class FolderSource:
    """A folder tree of DICOM files, whatever their names.

    Parameters
    ----------
    root
        Searched recursively; headers only are read for the listing. Media
        indexes (DICOMDIR) are ignored, anything else that is not DICOM is
        listed as stray.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def listing(self) -> Iterator[SeriesListing | StrayFile]:
        """Yield stray files in path order, then series in UID order."""
        by_series: dict[str, list[_Header]] = {}
        for path in sorted(path for path in self.root.rglob("*") if path.is_file()):
            header = _read_header(path)
            if isinstance(header, StrayFile):
                yield header
            elif header is not None:
                by_series.setdefault(header.series_uid, []).append(header)
        for _, headers in sorted(by_series.items()):
            # A series of two patients is a mistake of the archive; mixing them would be ours.
            owner = headers[0].owner
            for header in headers:
                if header.owner != owner:
                    yield StrayFile(header.path, Reason.UNEXPECTED, "its series belongs to another study")
            yield _listing([header for header in headers if header.owner == owner])

    def instances(self, series: SeriesListing) -> Iterator[tuple[str, pydicom.Dataset]]:
        """Yield (SOPInstanceUID, dataset) in the order of the listing.

        Raises
        ------
        Transient
            If a listed file cannot be opened.
        """
        for path in series.files:
            try:
                dataset = _parse(path)
                yield str(dataset.SOPInstanceUID), dataset
            except OSError as error:
                raise Transient(
                    Reason.SOURCE_UNAVAILABLE, f"a listed file could not be read ({error.strerror})"
                ) from None
            except CANNOT_PARSE as error:
                logger.info("instance not parsed, left out error=%s", type(error).__name__)


def open_source(address: str) -> Source:
    """Open the source an address names.

    Parameters
    ----------
    address
        ``folder:PATH``, a folder tree of DICOM files.

    Raises
    ------
    UsageError
        If the scheme is not known, or the folder is missing or empty.
    """
    scheme, colon, rest = address.partition(":")
    if not colon or scheme != "folder":
        raise UsageError(
            f"the image source starts with {scheme!r}, the one known kind is 'folder'",
            hint="write folder:PATH",
        )
    root = Path(rest).expanduser()
    if not root.is_dir():
        raise UsageError("the folder of the image source does not exist", hint="check the path after folder:")
    if next(root.iterdir(), None) is None:
        raise UsageError("the folder of the image source is empty", hint="is the archive mounted?")
    return FolderSource(root)


def _parse(path: Path, **options) -> pydicom.Dataset:
    """Read a file; also one without preamble, as some archives store them."""
    with path.open("rb") as file, silent_pydicom():
        start = file.read(132)
        file.seek(0)
        bare = start[128:] != b"DICM" and start[:2] == b"\x08\x00"
        return pydicom.dcmread(file, force=bare, **options)


def _read_header(path: Path) -> _Header | StrayFile | None:
    """Return what the listing needs; None for a media index."""
    try:
        dataset = _parse(path, stop_before_pixels=True, specific_tags=LISTED_KEYWORDS)
        with silent_pydicom():
            meta_class = dataset.file_meta.get("MediaStorageSOPClassUID", "")
            words = {keyword: str(dataset.get(keyword) or "").strip() for keyword in LISTED_KEYWORDS}
        status = path.stat()
    except PermissionError:
        return StrayFile(path, Reason.UNREADABLE, "no permission to read it")
    except OSError as error:
        raise Transient(
            Reason.SOURCE_UNAVAILABLE, f"the image source failed while it was listed ({error.strerror})"
        ) from None
    except CANNOT_PARSE:
        return StrayFile(path, Reason.NOT_DICOM, "no DICOM header")
    if meta_class == MediaStorageDirectoryStorage:
        return None
    missing = [k for k in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID") if not words[k]]
    if missing:
        return StrayFile(path, Reason.UNREADABLE, f"without {', '.join(missing)}")
    return _Header(
        path=path,
        sop_uid=words["SOPInstanceUID"],
        patient_id=words["PatientID"],
        issuer=words["IssuerOfPatientID"],
        study_uid=words["StudyInstanceUID"],
        series_uid=words["SeriesInstanceUID"],
        modality=words["Modality"],
        accession=words["AccessionNumber"],
        study_date=words["StudyDate"],
        size=status.st_size,
        modified_ns=status.st_mtime_ns,
    )


def _listing(headers: list[_Header]) -> SeriesListing:
    # Of two files with one UID the larger comes first: the other may have been cut.
    headers = sorted(headers, key=lambda header: (header.sop_uid, -header.size, header.path))
    first = headers[0]
    return SeriesListing(
        patient_id=first.patient_id,
        issuer=first.issuer,
        study_uid=first.study_uid,
        series_uid=first.series_uid,
        modality=first.modality,
        accession=first.accession,
        study_date=first.study_date,
        files=tuple(header.path for header in headers),
        fingerprint=fingerprint(*(part for h in headers for part in (h.sop_uid, h.size, h.modified_ns))),
    )
