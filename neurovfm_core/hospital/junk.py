"""What real archives hold besides good series: scouts, reformats, paperwork, and broken files.

Every kind is certain to appear once in a dozen studies and by chance elsewhere, so a small
hospital holds all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    SecondaryCaptureImageStorage,
    XRayRadiationDoseSRStorage,
)

from neurovfm_core.hospital.acquisition import Acquisition
from neurovfm_core.hospital.dicom_writer import StudyWriter, reformatted
from neurovfm_core.vocabulary import Modality

DEFECTS = ("missing_slice", "truncated", "duplicates")
"""What may be wrong with an otherwise good series."""


def chosen_junk(rng: np.random.Generator, index: int) -> frozenset[str]:
    """Return the kinds of junk that a study holds: one by its index, the others by chance."""
    kinds = [*_SHARES]
    by_chance = {kind for kind, draw in zip(kinds, rng.random(len(kinds)), strict=True) if draw < _SHARES[kind]}
    junk = by_chance | {kinds[index % len(kinds)]}
    # One series takes at most one defect; the others of this study wait for another one.
    defects = sorted(junk & set(DEFECTS))
    return frozenset(junk - set(defects[1:]))


def add_junk(writer: StudyWriter, stack: Acquisition, junk: frozenset[str], rng: np.random.Generator) -> dict[str, str]:
    """Write the chosen kinds of junk into a study.

    Parameters
    ----------
    stack
        One of the study's own series, to cut scouts and reformats from.

    Returns
    -------
    dict
        Name of each stray file relative to the study's folder -> what is wrong with it.
    """
    strays: dict[str, str] = {}
    for kind, add in _MAKERS.items():
        if kind in junk:
            strays |= add(writer, stack, rng)
    return strays


def _localizer(writer: StudyWriter, stack: Acquisition, rng: np.random.Generator) -> dict[str, str]:
    if writer.visit.modality is Modality.CT:
        side = reformatted(stack, 2, every_mm=stack.pixels.shape[2] * stack.pixel_spacing[1])
        projection = reformatted(stack, 2, every_mm=8).pixels.mean(axis=0, keepdims=True)
        scout = replace(side, pixels=np.rint(projection).astype(np.int16), slice_thickness=200.0)
        writer.images(scout, "SCOUT", "sagittal", role="localizer")
    else:
        planes = [_middle(stack), _middle(reformatted(stack, 1, 20.0)), _middle(reformatted(stack, 2, 20.0))]
        planes = [replace(plane, slice_thickness=8.0) for plane in planes]
        writer.planes(planes, "LOCALIZER", role="localizer")
    return {}


def _reformat(writer: StudyWriter, stack: Acquisition, rng: np.random.Generator) -> dict[str, str]:
    writer.images(reformatted(stack, 1, every_mm=6.0), "MPR", "coronal", role="reformat")
    return {}


def _two_slices(writer: StudyWriter, stack: Acquisition, rng: np.random.Generator) -> dict[str, str]:
    middle = len(stack.pixels) // 2
    few = replace(
        stack,
        pixels=stack.pixels[middle : middle + 2],
        image_positions=stack.image_positions[middle : middle + 2],
    )
    sequence = "CT" if writer.visit.modality is Modality.CT else "T2"
    writer.images(few, sequence, "axial", role="two_slices", description="repeat two slices")
    return {}


def _mixed(writer: StudyWriter, stack: Acquisition, rng: np.random.Generator) -> dict[str, str]:
    sequence = "CT" if writer.visit.modality is Modality.CT else "T2"
    some = replace(stack, pixels=stack.pixels[:10], image_positions=stack.image_positions[:10])
    writer.planes(
        [some, _middle(reformatted(stack, 2, 20.0))],
        sequence,
        role="mixed_orientations",
        description="axial + ref",
    )
    return {}


def _dose_sheet(writer: StudyWriter, stack: Acquisition, rng: np.random.Generator) -> dict[str, str]:
    """A screen capture with the patient's name in its pixels."""
    ids = writer.ids
    lines = [
        f"PATIENT {ids.peek('patient_name_capitals')}",
        f"ID {ids.peek('patient_id')}   DOB {ids.peek('patient_birth_date_us')}",
        f"EXAM {ids.peek('study_date_us')}   ACC {ids.peek('accession_number')}",
        "TOTAL DLP 912 mGy*cm" if writer.visit.modality is Modality.CT else "SAR 1.4 W/kg",
    ]
    canvas = Image.new("L", (384, 128))
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        draw.text((12, 12 + 26 * row), line, fill=255)
    sheet = Dataset()
    sheet.ConversionType = "WSD"
    sheet.BurnedInAnnotation = "YES"
    sheet.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    sheet.SamplesPerPixel, sheet.PhotometricInterpretation = 1, "MONOCHROME2"
    sheet.Rows, sheet.Columns = canvas.height, canvas.width
    sheet.BitsAllocated, sheet.BitsStored, sheet.HighBit, sheet.PixelRepresentation = 8, 8, 7, 0
    sheet.PixelData = np.asarray(canvas).tobytes()
    modality = writer.visit.modality.value
    writer.other_object(sheet, modality, SecondaryCaptureImageStorage, "Patient Protocol", "dose_sheet")
    return {}


def _structured_report(writer: StudyWriter, stack: Acquisition, rng: np.random.Generator) -> dict[str, str]:
    ids = writer.ids
    person = Dataset()
    person.RelationshipType, person.ValueType = "HAS OBS CONTEXT", "PNAME"
    person.ConceptNameCodeSequence = [_code("121008", "Person Observer Name")]
    person.PersonName = ids["operator"]
    remark = Dataset()
    remark.RelationshipType, remark.ValueType = "CONTAINS", "TEXT"
    remark.ConceptNameCodeSequence = [_code("121106", "Comment")]
    remark.TextValue = f"Dose event of {ids['patient_name_spoken']}, ordered by {ids['referring_physician_spoken']}"
    report = Dataset()
    report.ValueType = "CONTAINER"
    report.ContinuityOfContent = "SEPARATE"
    report.CompletionFlag, report.VerificationFlag = "COMPLETE", "UNVERIFIED"
    report.ConceptNameCodeSequence = [_code("113701", "X-Ray Radiation Dose Report")]
    report.ContentSequence = [person, remark]
    writer.other_object(report, "SR", XRayRadiationDoseSRStorage, "Dose Report", "structured_report")
    return {}


def _document(writer: StudyWriter, stack: Acquisition, rng: np.random.Generator) -> dict[str, str]:
    text = f"BT /F1 12 Tf 40 80 Td (Consent of {writer.ids['patient_name_capitals']}) Tj ET"
    raw = _minimal_pdf(text)
    document = Dataset()
    document.DocumentTitle = f"Consent {writer.ids['patient_id']}"
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.BurnedInAnnotation = "YES"
    document.EncapsulatedDocumentLength = len(raw)
    document.EncapsulatedDocument = raw + b"\0" * (len(raw) % 2)
    writer.other_object(document, "DOC", EncapsulatedPDFStorage, "Consent form", "document")
    return {}


def _corrupt(writer: StudyWriter, stack: Acquisition, rng: np.random.Generator) -> dict[str, str]:
    """Noise under a DICOM name, with and without the magic word."""
    noise = rng.integers(0, 256, 4096, dtype=np.uint8).tobytes()
    _put(writer.folder / "XX000001.dcm", noise)
    _put(writer.folder / "XX000002.dcm", bytes(128) + b"DICM" + noise)
    return {"XX000001.dcm": "corrupt", "XX000002.dcm": "corrupt"}


def _empty(writer: StudyWriter, stack: Acquisition, rng: np.random.Generator) -> dict[str, str]:
    _put(writer.folder / "XX000003.dcm", b"")
    return {"XX000003.dcm": "empty"}


def _media_files(writer: StudyWriter, stack: Acquisition, rng: np.random.Generator) -> dict[str, str]:
    """What a burned CD leaves behind: an index and a note."""
    ids = writer.ids
    _put(
        writer.folder / "README.txt",
        f"Images of {ids['patient_name_capitals']}, {ids['study_date_us']}\n".encode(),
    )
    index = Dataset()
    index.FileSetID = "SYNTHETIC"
    index.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 0
    index.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = 0
    index.FileSetConsistencyFlag = 0
    person = Dataset()
    person.OffsetOfTheNextDirectoryRecord = 0
    person.RecordInUseFlag = 0xFFFF
    person.OffsetOfReferencedLowerLevelDirectoryEntity = 0
    person.DirectoryRecordType = "PATIENT"
    person.SpecificCharacterSet = writer.style.character_set
    person.PatientName, person.PatientID = ids["patient_name"], ids["patient_id"]
    index.DirectoryRecordSequence = [person]
    index.file_meta = FileMetaDataset()
    index.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    index.file_meta.MediaStorageSOPInstanceUID = UID(f"{writer.visit.study_uid}.3")
    index.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index.file_meta.ImplementationClassUID = UID("2.999.71.1")
    dcmwrite(writer.folder / "DICOMDIR", index, enforce_file_format=True)
    return {"README.txt": "text", "DICOMDIR": "media_index"}


_Maker = Callable[[StudyWriter, Acquisition, np.random.Generator], dict[str, str]]
_MAKERS: Mapping[str, _Maker] = {
    "localizer": _localizer,
    "reformat": _reformat,
    "two_slices": _two_slices,
    "mixed_orientations": _mixed,
    "dose_sheet": _dose_sheet,
    "structured_report": _structured_report,
    "document": _document,
    "corrupt": _corrupt,
    "empty": _empty,
    "media_files": _media_files,
}
_SHARES = {
    "dose_sheet": 0.15,
    "missing_slice": 0.02,
    "structured_report": 0.12,
    "corrupt": 0.04,
    "truncated": 0.02,
    "localizer": 0.6,
    "document": 0.05,
    "duplicates": 0.03,
    "reformat": 0.12,
    "empty": 0.04,
    "two_slices": 0.04,
    "media_files": 0.08,
    "mixed_orientations": 0.02,
}


def _middle(stack: Acquisition) -> Acquisition:
    at = len(stack.pixels) // 2
    return replace(
        stack, pixels=stack.pixels[at : at + 1], image_positions=stack.image_positions[at : at + 1], masks={}
    )


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _minimal_pdf(text: str) -> bytes:
    """Return a one-page PDF that viewers open, without a compressed byte in it."""
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 120] /Contents 4 0 R "
        "/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        f"<< /Length {len(text)} >>\nstream\n{text}\nendstream",
    ]
    raw, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(raw))
        raw += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    trailer = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(raw)}\n%%EOF\n"
    return f"{raw}xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}".encode("latin-1")


def _put(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
