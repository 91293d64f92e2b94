"""Export of one series: what may leave is written de-identified, the rest is refused with a reason."""

import hashlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.uid import UID_dictionary

from neurovfm_core.deid.profile import UNUSABLE, Profile, age_band
from neurovfm_core.deid.pseudonyms import Pseudonymizer
from neurovfm_core.deid.rules import RULES, shift_date
from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.files import fsync_folder, sha256_of
from neurovfm_core.pacs import CohortParams, CohortStudy, SeriesListing, Source
from neurovfm_core.pacs.silence import silent_pydicom
from neurovfm_core.params import Params

logger = logging.getLogger(__name__)

IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",  # enhanced
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",  # legacy converted enhanced
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
}
SECONDARY_CAPTURE_ROOT = "1.2.840.10008.5.1.4.1.1.7"
PICTURES_OF_TEXT = {"SCREEN SAVE", "PATIENT_INFO", "DOSE_INFO"}
GAUSS_PER_TESLA = 10_000


class ExportParams(Params):
    """What leaves the archive, and in which form."""

    cohort: CohortParams = CohortParams()
    """Which studies are wanted."""
    require_warehouse: bool = True
    """Refuse a study that the warehouse does not list. Without a warehouse: false, and the
    criteria are applied to the date and body part that the images state."""
    retain_safe_private: bool = True
    """Keep the few private numbers that conversion needs: b-values, images in a mosaic."""
    use_issuer: bool = False
    """Count IssuerOfPatientID as part of a patient's identity. Needed only where one archive
    serves hospitals whose numbers collide; reports then need the same issuer."""
    more_words: tuple[str, ...] = ()
    """Words that the site vouches for, kept in descriptions and model names."""


@dataclass(frozen=True, slots=True)
class ExportedSeries:
    """Pseudonymous facts of one exported series."""

    item_id: str
    study_id: str
    patient_id: str
    modality: str
    body_part: str
    manufacturer: str
    model: str
    field_strength_t: float | None
    sex: str
    age_band: str
    description: str
    time_bucket: str  # year of the study, "" if unknown
    study_date_shifted: str  # YYYYMMDD, "" if unknown
    instances_expected: int
    instances_received: int  # parsed
    instances_dropped: int  # parsed, and refused by a rule or a duplicate
    outputs: tuple[str, ...]  # the series folder, relative to the workspace
    bytes: int
    sha256: str  # over the names and checksums of the files


def export_series(
    listing: SeriesListing,
    source: Source,
    pseudonymizer: Pseudonymizer,
    study_folder_root: Path,
    params: ExportParams,
    cohort_study: CohortStudy | None,
) -> ExportedSeries:
    """Write one series de-identified as ``<root>/<study>/<series>/<instance>.dcm``.

    The folder exists whole or not at all; exporting again replaces it.

    Raises
    ------
    Excluded
        If the study is not in the cohort, or no instance of the series may leave.
    """
    series_id = pseudonymizer.series(listing.series_uid)
    study_id = pseudonymizer.study(listing.study_uid)
    if cohort_study is None and params.require_warehouse:
        raise Excluded(Reason.NOT_IN_COHORT, "its study does not meet the criteria", where=series_id)
    # Patients without a number are told apart by their studies, never lumped together.
    patient_key = listing.patient_id or f"study {listing.study_uid}"
    issuer = listing.issuer if params.use_issuer else ""
    shift = timedelta(days=pseudonymizer.shift_days(patient_key, issuer))

    profile: Profile | None = None
    first: Dataset | None = None
    age: int | None = None
    refused: Counter[Reason] = Counter()
    received = 0
    digests: dict[str, str] = {}
    size = 0
    folder = study_folder_root / study_id / series_id
    with silent_pydicom(), _written_whole_folder(folder) as partial:
        for sop_uid, dataset in source.instances(listing):
            received += 1
            name = f"{pseudonymizer.instance(sop_uid)}.dcm"
            reason = _refusal(dataset, params, cohort_study)
            if reason is not None or name in digests:
                refused[reason or Reason.DUPLICATE_SLICES] += 1
                continue
            if profile is None:
                age = _age_years(dataset, cohort_study)
                profile = Profile(
                    pseudonymizer,
                    patient_key,
                    issuer,
                    age_years=age,
                    retain_safe_private=params.retain_safe_private,
                    more_words=frozenset(word.lower() for word in params.more_words),
                )
            try:
                clean = profile.clean(dataset)
                content = _encoded(clean)
            except UNUSABLE:
                refused[Reason.UNREADABLE] += 1
                continue
            (partial / name).write_bytes(content)
            digests[name] = hashlib.sha256(content).hexdigest()
            size += len(content)
            first = clean if first is None else first
        if first is None:
            reason = refused.most_common(1)[0][0] if refused else Reason.UNREADABLE
            raise Excluded(reason, f"none of {len(listing.files) or received} instances may leave", where=series_id)
    logger.debug("series exported item_id=%s instances=%d dropped=%d", series_id, len(digests), refused.total())
    study_date = _study_date(listing, cohort_study)
    return ExportedSeries(
        item_id=series_id,
        study_id=study_id,
        patient_id=pseudonymizer.patient(patient_key, issuer),
        modality=IMAGE_CLASSES[first.SOPClassUID],
        body_part=first.get("BodyPartExamined", "") or _vouched("BodyPartExamined", cohort_study),
        manufacturer=first.get("Manufacturer", ""),
        model=first.get("ManufacturerModelName", ""),
        field_strength_t=_tesla(first),
        sex=first.get("PatientSex", "") or _vouched("PatientSex", cohort_study),
        age_band=age_band(age),
        description=first.get("SeriesDescription", ""),
        time_bucket=study_date[:4],
        study_date_shifted=shift_date(study_date, shift),
        instances_expected=len(listing.files) or received,
        instances_received=received,
        instances_dropped=refused.total(),
        outputs=(f"{study_folder_root.name}/{study_id}/{series_id}",),
        bytes=size,
        sha256=_over(digests),
    )


def folder_sha256(folder: Path) -> str:
    """Return the checksum that `ExportedSeries.sha256` records, read again from the folder."""
    return _over({path.name: sha256_of(path) for path in folder.iterdir()})


def _over(digests: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(name + digests[name] for name in sorted(digests)).encode()).hexdigest()


def _refusal(dataset: Dataset, params: ExportParams, cohort_study: CohortStudy | None) -> Reason | None:
    """Return why this instance may not leave, None if it may."""
    sop_class = str(dataset.get("SOPClassUID", ""))
    image_type = {str(word).upper() for word in dataset.get("ImageType") or ()}
    if sop_class.startswith(SECONDARY_CAPTURE_ROOT) or image_type & PICTURES_OF_TEXT:
        return Reason.SECONDARY_CAPTURE
    if sop_class not in IMAGE_CLASSES:
        of_images = "Image Storage" in UID_dictionary.get(sop_class, ("",))[0]
        return Reason.NOT_CT_OR_MR if of_images else Reason.NOT_AN_IMAGE
    if IMAGE_CLASSES[sop_class] not in params.cohort.modalities:
        return Reason.NOT_IN_COHORT
    if cohort_study is None and not _meets(params.cohort, dataset):
        return Reason.NOT_IN_COHORT
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        return Reason.BURNED_IN_ANNOTATION
    if "PixelData" not in dataset:
        return Reason.NOT_AN_IMAGE
    if dataset.get("SamplesPerPixel", 1) != 1:
        return Reason.NOT_GREYSCALE
    return None


def _meets(cohort: CohortParams, dataset: Dataset) -> bool:
    """Apply the criteria to what the image itself states."""
    part = str(dataset.get("BodyPartExamined", "")).strip().upper()
    on = _date(str(dataset.get("StudyDate", "")))
    if on is None:
        in_range = cohort.date_from is None and cohort.date_until is None
    else:
        in_range = (cohort.date_from or date.min) <= on <= (cohort.date_until or date.max)
    return in_range and (not part or part in cohort.body_parts)


def _encoded(clean: Dataset) -> bytes:
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, clean, enforce_file_format=True)
    return buffer.getvalue()


@contextmanager
def _written_whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `folder`; it takes the name, and the place, only if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        os.sync()  # once for all files: an fsync each took twice the time of the export itself
        if folder.exists():
            folder.replace(old)
        partial.replace(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _vouched(keyword: str, cohort_study: CohortStudy | None) -> str:
    """Return the warehouse's word for an element, if that element's rule knows it."""
    word = {"BodyPartExamined": "body_part", "PatientSex": "sex"}[keyword]
    value = getattr(cohort_study, word, "")
    return RULES[keyword](value, None) or ""  # type: ignore[arg-type]


def _tesla(clean: Dataset) -> float | None:
    strength = clean.get("MagneticFieldStrength")
    if strength is None:
        return None
    return round(float(strength) / (GAUSS_PER_TESLA if strength > 100 else 1), 2)


def _study_date(listing: SeriesListing, cohort_study: CohortStudy | None) -> str:
    if cohort_study is not None and cohort_study.study_date is not None:
        return cohort_study.study_date.strftime("%Y%m%d")
    return shift_date(listing.study_date, timedelta(0))


def _age_years(dataset: Dataset, cohort_study: CohortStudy | None) -> int | None:
    if cohort_study is not None and cohort_study.age_years is not None:
        return cohort_study.age_years
    stated = str(dataset.get("PatientAge", "")).strip().upper()
    if stated[:-1].isascii() and stated[:-1].isdigit() and stated[-1] in "DWMY":
        years = int(stated[:-1]) if stated[-1] == "Y" else 0
        if years or stated[-1] != "Y":  # 000Y is how scanners write "unknown"
            return years
    born, on = _date(str(dataset.get("PatientBirthDate", ""))), _date(str(dataset.get("StudyDate", "")))
    return (on - born).days * 4 // 1461 if born and on and born <= on else None


def _date(text: str) -> date | None:
    digits = shift_date(text, timedelta(0))
    return date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) if digits else None
