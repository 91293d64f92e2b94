"""One study of the synthetic hospital as DICOM files, the way its vendor would write them.

Pixels and geometry come from the scanner (`acquisition`); everything that makes
archives hard to read, and everything that identifies, is added here.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)

from neurovfm_core.hospital.acquisition import Acquisition
from neurovfm_core.hospital.patients import Identifiers, Visit
from neurovfm_core.hospital.vendors import STYLES, PixelFormat, Style
from neurovfm_core.vocabulary import Modality

_ENCODERS: Mapping[str, str] = {
    RLELossless: "pylibjpeg",
    JPEGLSLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
}

# TR, TE, TI (ms), flip angle (deg), scanning sequence, sequence variant, acquisition type, sequence name.
_MR_TIMING = {
    "T1": (520, 9.1, None, 90, "SE", "SP", "2D", "*se2d1"),
    "T1_3D": (2100, 2.6, 900, 9, ["GR", "IR"], ["SP", "MP"], "3D", "*tfl3d1"),
    "T2": (4600, 96, None, 150, "SE", "SK", "2D", "*tse2d1_15"),
    "FLAIR": (9000, 112, 2500, 150, ["SE", "IR"], "SK", "2D", "*tir2d1_16"),
    "DWI": (5200, 78, None, 90, "EP", "SK", "2D", "*ep_b1000t"),
    "ADC": (5200, 78, None, 90, "EP", "SK", "2D", "*ep_b0_1000"),
    "SWI": (28, 20, None, 15, "GR", "SP", "3D", "*swi3d1r"),
    "LOCALIZER": (8.6, 4.0, None, 20, "GR", "SP", "2D", "*fl2d1"),
}


@dataclass(frozen=True, slots=True)
class SeriesRecord:
    """What was written for one series: a line of the truth."""

    series_uid: str
    number: int
    role: str  # "image", or what kind of junk it is
    sequence: str
    view: str
    description: str
    folder: str  # relative to the study's folder
    num_instances: int  # distinct and readable
    defect: str = ""  # "", "missing_slice", "truncated" or "duplicates"


def reformatted(stack: Acquisition, axis: int, every_mm: float) -> Acquisition:
    """Recut a stack across its rows (axis 1) or columns (axis 2), one slice every so many millimetres.

    Slices are resampled to square pixels along the old slice direction; the
    geometry is exact for the first and the last row.
    """
    row, column = np.array(stack.image_orientation[:3]), np.array(stack.image_orientation[3:])
    along = stack.image_positions[-1] - stack.image_positions[0]
    spacing_mm = stack.pixel_spacing[2 - axis]  # of the direction that stays in the plane
    num_rows = max(2, round(float(np.linalg.norm(along)) / spacing_mm) + 1)
    step = max(1, round(every_mm / stack.pixel_spacing[axis - 1]))
    picks = np.arange(step // 2, stack.pixels.shape[axis], step)
    cut = np.moveaxis(stack.pixels.take(picks, axis=axis), axis, 0)[:, ::-1]
    source = np.linspace(0, cut.shape[1] - 1, num_rows)
    low = np.minimum(source.astype(int), cut.shape[1] - 2)
    share = (source - low)[None, :, None]
    pixels = np.rint(cut[:, low] * (1 - share) + cut[:, low + 1] * share).astype(np.int16)
    across = column if axis == 1 else row
    first = stack.image_positions[-1] + picks[:, None] * across * stack.pixel_spacing[axis - 1]
    kept = row if axis == 1 else column
    down = -along / np.linalg.norm(along)
    return replace(
        stack,
        pixels=pixels,
        image_orientation=tuple(float(part) for part in (*kept, *down)),  # type: ignore[arg-type]
        image_positions=first,
        pixel_spacing=(float(np.linalg.norm(along)) / (num_rows - 1), spacing_mm),
        slice_thickness=every_mm,
        masks={},
    )


class StudyWriter:
    """Writes the series of one study under a folder, numbering them as it goes."""

    def __init__(self, visit: Visit, ids: Identifiers, folder: Path, body_part: str = "") -> None:
        self.visit, self.ids, self.folder = visit, ids, folder
        self.style: Style = STYLES[visit.scanner.vendor]
        self.syntax = self.style.syntaxes[visit.index % len(self.style.syntaxes)]
        self.body_part = body_part or ("HEAD", "BRAIN", "HEAD", "")[visit.index % 4]
        self.header = _study_header(visit, ids, self.style, self.body_part)
        self.records: list[SeriesRecord] = []
        self._next_number = 1

    def images(
        self,
        stack: Acquisition,
        sequence: str,
        view: str,
        *,
        role: str = "image",
        description: str = "",
        defect: str = "",
    ) -> SeriesRecord:
        """Write a stack as one series of single-frame images.

        Parameters
        ----------
        sequence
            A sequence of `Protocol`, or "LOCALIZER", "SCOUT", "MPR".
        defect
            "missing_slice" leaves one out of the middle, "truncated" cuts the pixel data of
            one, "duplicates" stores one twice under two names.
        """
        series, folder = self._new_series(sequence, view, stack, description)
        numbers = _instance_numbers(len(stack.pixels), self.style.instance_order)
        middle = len(stack.pixels) // 2
        pixel_format = self._pixel_format(stack)
        stored = _stored_values(stack.pixels, pixel_format)
        for at, number in enumerate(numbers):
            if defect == "missing_slice" and at == middle:
                continue
            image = _instance(series, stack, at, number, self.visit)
            image.PixelData = stored[at].tobytes()
            path = folder / self.style.file_name(self.visit.modality.value, number, image.SOPInstanceUID)
            self._write(image, path, self.syntax)
            if defect == "truncated" and at == middle:
                raw = path.read_bytes()
                path.write_bytes(raw[: len(raw) * 2 // 3])  # headers are far less than two thirds
            if defect == "duplicates" and at == middle:
                path.with_name(f"COPY_{path.name}").write_bytes(path.read_bytes())
        lost = defect in ("missing_slice", "truncated")
        return self._record(series, folder, role, sequence, view, len(numbers) - lost, defect)

    def planes(self, stacks: Sequence[Acquisition], sequence: str, role: str, description: str = "") -> SeriesRecord:
        """Write several stacks of different orientation as one series."""
        series, folder = self._new_series(sequence, "axial", stacks[0], description)
        number = 0
        for stack in stacks:
            stored = _stored_values(stack.pixels, self._pixel_format(stacks[0]))
            series.Rows, series.Columns = stored.shape[1:]
            for at in range(len(stored)):
                number += 1
                image = _instance(series, stack, at, number, self.visit)
                image.PixelData = stored[at].tobytes()
                name = self.style.file_name(self.visit.modality.value, number, image.SOPInstanceUID)
                self._write(image, folder / name, self.syntax)
        return self._record(series, folder, role, sequence, "axial", number)

    def other_object(
        self, content: Dataset, modality: str, sop_class: str, description: str, role: str
    ) -> SeriesRecord:
        """Write a series of one object that is no slice: a dose sheet, a report, a document."""
        series, folder = self._series_folder(description)
        series.update(content)
        series.Modality, series.SOPClassUID = modality, UID(sop_class)
        series.InstanceNumber = 1
        series.SOPInstanceUID = f"{series.SeriesInstanceUID}.1"
        name = self.style.file_name(modality, 1, series.SOPInstanceUID)
        self._write(series, folder / name, ExplicitVRLittleEndian)
        return self._record(series, folder, role, "", "", 1)

    def _series_folder(self, description: str) -> tuple[Dataset, Path]:
        number, separator = self._next_number, self.style.folder_separator
        self._next_number += 1
        series = _copy_of(self.header)
        series.SeriesNumber = number
        series.SeriesDescription = description
        series.SeriesInstanceUID = f"{self.visit.study_uid}.2.{number}"
        safe = "".join(char if char.isalnum() or char in "+." else separator for char in description)
        folder = self.folder / f"{number:04d}{separator}{safe}"
        folder.mkdir(parents=True)
        return series, folder

    def _new_series(self, sequence: str, view: str, stack: Acquisition, description: str) -> tuple[Dataset, Path]:
        style, modality = self.style, self.visit.modality
        thin = stack.slice_thickness < 2 and modality is Modality.MR
        contrast = sequence == "T1C"
        described = description or style.description(sequence, view, thin)
        series, folder = self._series_folder(described)
        series.Modality = modality.value
        series.SOPClassUID = CTImageStorage if modality is Modality.CT else MRImageStorage
        series.ProtocolName = self.ids["protocol_owner"] if series.SeriesNumber == 2 else described
        series.ImageType = style.image_type(sequence)
        series.PatientPosition = "HFS"
        series.FrameOfReferenceUID = f"{self.visit.study_uid}.1"
        series.PositionReferenceIndicator = ""
        series.SliceThickness = _ds(stack.slice_thickness)
        series.PixelSpacing = [_ds(part) for part in stack.pixel_spacing]
        if modality is Modality.CT:
            _describe_ct(series, style.kernels[sequence == "CT_BONE"])
        else:
            _describe_mr(series, sequence, thin, contrast, self.visit.scanner.field_strength_t)
        if len(stack.pixels) > 1:
            centres_mm = float(np.linalg.norm(stack.image_positions[1] - stack.image_positions[0]))
            gap_mm = centres_mm - stack.slice_thickness
            if not style.spacing_is_gap:
                series.SpacingBetweenSlices = _ds(centres_mm)
            elif gap_mm > 0.01:
                series.SpacingBetweenSlices = _ds(gap_mm)
        _describe_pixels(series, stack, self._pixel_format(stack))
        return series, folder

    def _pixel_format(self, stack: Acquisition) -> PixelFormat:
        if stack.units == "HU":
            return self.style.ct_pixels
        chosen = self.style.mr_pixels
        fits = stack.pixels.max(initial=0) / chosen.slope < 2**chosen.bits_stored
        return chosen if fits else PixelFormat(16, signed=False)

    def _write(self, instance: Dataset, path: Path, syntax: str) -> None:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = instance.SOPClassUID
        meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.ImplementationClassUID = UID("2.999.71.1")
        meta.ImplementationVersionName = "SYNTHETIC_PACS"
        meta.SourceApplicationEntityTitle = self.ids["source_ae_title"]
        preamble = bytes(128)
        if self.visit.scanner.vendor.startswith("GE"):
            meta.PrivateInformationCreatorUID = UID("2.999.71.2")
            meta.PrivateInformation = self.ids["meta_private_note"].encode()
        if self.visit.scanner.vendor in ("SIEMENS", "UIH"):
            preamble = self.ids["preamble_note"].encode().ljust(128, b"\0")
        file = FileDataset(str(path), instance, preamble=preamble, file_meta=meta)
        if syntax == JPEG2000Lossless and min(instance.Rows, instance.Columns) < 32:
            syntax = ExplicitVRLittleEndian  # five wavelet levels need 32 pixels
        if syntax in _ENCODERS:
            file.compress(UID(syntax), encoding_plugin=_ENCODERS[syntax], generate_instance_uid=False)
        meta.TransferSyntaxUID = UID(syntax)
        dcmwrite(path, file, enforce_file_format=True)

    def _record(
        self, series: Dataset, folder: Path, role: str, sequence: str, view: str, count: int, defect: str = ""
    ) -> SeriesRecord:
        record = SeriesRecord(
            series_uid=str(series.SeriesInstanceUID),
            number=int(series.SeriesNumber),
            role=role,
            sequence=sequence,
            view=view,
            description=str(series.SeriesDescription),
            folder=folder.name,
            num_instances=count,
            defect=defect,
        )
        self.records.append(record)
        return record


def _study_header(visit: Visit, ids: Identifiers, style: Style, body_part: str) -> Dataset:
    """Return the elements that all instances of a study share: the patient, the order, the machine."""
    header = Dataset()
    header.SpecificCharacterSet = style.character_set
    header.Manufacturer = visit.scanner.vendor
    header.ManufacturerModelName = visit.scanner.model
    header.SoftwareVersions = "syn 4.1"
    header.BodyPartExamined = body_part
    header.PatientSex = visit.patient.sex
    header.PatientAge = f"{visit.age_years:03d}Y"
    header.PatientWeight = "74"
    for keyword, kind in _IDENTIFYING.items():
        setattr(header, keyword, ids[kind])
    named = "MRI BRAIN" if visit.modality is Modality.MR else "CT HEAD"
    header.StudyDescription = f"{named} - {ids['referring_physician_spoken']}"
    header.ImageComments = f"Pt {ids['patient_name_spoken']} moved, repeat if needed"
    header.PatientComments = f"Call {ids['relative_name']} {ids['relative_phone']}, mail {ids['patient_email']}"
    header.AdditionalPatientHistory = f"Insured as {ids['health_plan_number']}; national no {ids['national_id']}"
    header.RequestedProcedureDescription = f"{named} {ids['patient_id']} from {ids['bed']}"
    header.AcquisitionDateTime = ids["study_date"] + ids["study_time"]
    request = Dataset()
    request.RequestedProcedureID = ids["requested_procedure_id"]
    request.ScheduledProcedureStepID = ids["scheduled_step_id"]
    request.RequestedProcedureDescription = f"{named} for {ids['patient_name_spoken']}"
    request.ReasonForTheRequestedProcedure = f"seen by {ids['referring_physician_spoken']}"
    header.RequestAttributesSequence = [request]
    other = Dataset()
    other.PatientID = ids["other_patient_id"]
    other.IssuerOfPatientID = ids["issuer_of_patient_id"]
    header.OtherPatientIDsSequence = [other]
    style.private(header, ids)
    return header


_IDENTIFYING: Mapping[str, str] = {
    "StudyInstanceUID": "study_instance_uid",
    "PatientName": "patient_name",
    "PatientID": "patient_id",
    "IssuerOfPatientID": "issuer_of_patient_id",
    "PatientBirthDate": "patient_birth_date",
    "PatientBirthName": "patient_birth_name",
    "PatientMotherBirthName": "patient_mother_birth_name",
    "OtherPatientIDs": "other_patient_id",
    "PatientAddress": "patient_address",
    "PatientTelephoneNumbers": "patient_phone",
    "Occupation": "patient_employer",
    "AccessionNumber": "accession_number",
    "StudyID": "study_id",
    "StudyDate": "study_date",
    "SeriesDate": "study_date",
    "AcquisitionDate": "study_date",
    "ContentDate": "study_date",
    "StudyTime": "study_time",
    "SeriesTime": "study_time",
    "ReferringPhysicianName": "referring_physician",
    "ReferringPhysicianTelephoneNumbers": "referring_phone",
    "ReferringPhysicianAddress": "referring_address",
    "PerformingPhysicianName": "performing_physician",
    "OperatorsName": "operator",
    "RequestingPhysician": "requesting_physician",
    "PhysiciansOfRecord": "physician_of_record",
    "NameOfPhysiciansReadingStudy": "reading_physician",
    "InstitutionName": "institution_name",
    "InstitutionAddress": "institution_address",
    "InstitutionalDepartmentName": "department_name",
    "StationName": "station_name",
    "DeviceSerialNumber": "device_serial",
    "PerformedStationAETitle": "source_ae_title",
    "AdmissionID": "admission_id",
    "CurrentPatientLocation": "bed",
    "PerformedProcedureStepID": "performed_step_id",
    "FillerOrderNumberImagingServiceRequest": "filler_order_number",
    "ClinicalTrialSubjectID": "trial_subject",
}


def _describe_mr(series: Dataset, sequence: str, thin: bool, contrast: bool, field_t: float) -> None:
    base = {"T1C": "T1", "MPR": "T1"}.get(sequence, sequence)
    timing = _MR_TIMING.get(f"{base}_3D" if thin else base, _MR_TIMING["T1"])
    tr, te, ti, flip, scanning, variant, acquisition_type, name = timing
    series.RepetitionTime, series.EchoTime, series.FlipAngle = str(tr), str(te), str(flip)
    if ti is not None:
        series.InversionTime = str(ti)
    series.ScanningSequence, series.SequenceVariant = scanning, variant
    series.ScanOptions = ""
    series.MRAcquisitionType, series.SequenceName = acquisition_type, name
    series.MagneticFieldStrength = _ds(field_t)
    series.EchoNumbers, series.EchoTrainLength = "1", "1"
    if sequence == "DWI":
        series.add_new(0x00189087, "FD", 1000.0)  # DiffusionBValue
    if contrast:
        series.ContrastBolusAgent = "Gadobutrol"


def _describe_ct(series: Dataset, kernel: str) -> None:
    series.KVP, series.XRayTubeCurrent, series.ExposureTime = "120", "280", "1000"
    series.ConvolutionKernel = kernel
    series.GantryDetectorTilt = "0"
    series.RescaleType = "HU"


def _describe_pixels(series: Dataset, stack: Acquisition, pixel_format: PixelFormat) -> None:
    series.SamplesPerPixel, series.PhotometricInterpretation = 1, "MONOCHROME2"
    series.Rows, series.Columns = stack.pixels.shape[1:]
    series.BitsAllocated, series.BitsStored = 16, pixel_format.bits_stored
    series.HighBit = pixel_format.bits_stored - 1
    series.PixelRepresentation = int(pixel_format.signed)
    if stack.units == "HU" or pixel_format.slope != 1:
        series.RescaleSlope, series.RescaleIntercept = _ds(pixel_format.slope), _ds(pixel_format.intercept)
    if stack.padding_value is not None and pixel_format.signed:
        padding = round(stack.padding_value - pixel_format.intercept)
        series.add_new(0x00280120, "SS", padding)  # PixelPaddingValue takes the signedness of the pixels
    center, width = (40, 80) if stack.units == "HU" else (600, 1200)
    series.WindowCenter, series.WindowWidth = str(center), str(width)


def _copy_of(base: Dataset) -> Dataset:
    """Return a dataset to add elements to; `copy.copy` would share the table of elements with the base."""
    copied = Dataset()
    copied.update(base)
    return copied


def _instance(series: Dataset, stack: Acquisition, at: int, number: int, visit: Visit) -> Dataset:
    """Return the elements of one slice on top of those of its series."""
    image = _copy_of(series)
    position = stack.image_positions[at]
    row, column = np.array(stack.image_orientation[:3]), np.array(stack.image_orientation[3:])
    image.SOPInstanceUID = f"{series.SeriesInstanceUID}.{number}"
    image.InstanceNumber = number
    image.AcquisitionNumber = 1
    image.ImageOrientationPatient = [_ds(part) for part in stack.image_orientation]
    image.ImagePositionPatient = [_ds(part) for part in position]
    image.SliceLocation = _ds(float(position @ np.cross(row, column)))
    begun = dt.datetime.strptime(visit.study_time, "%H%M%S")
    taken = begun + dt.timedelta(minutes=3 * int(series.SeriesNumber), seconds=number)
    image.AcquisitionTime = image.ContentTime = taken.strftime("%H%M%S.%f")
    return image


def _stored_values(pixels: NDArray[np.int16], pixel_format: PixelFormat) -> NDArray[np.int16] | NDArray[np.uint16]:
    """Return pixels as this format stores them; what it cannot hold (CT padding) is clipped."""
    values = np.rint((pixels - pixel_format.intercept) / pixel_format.slope)
    low = -(2 ** (pixel_format.bits_stored - 1)) if pixel_format.signed else 0
    values = np.clip(values, low, low + 2**pixel_format.bits_stored - 1)
    return values.astype(np.int16 if pixel_format.signed else np.uint16)


def _instance_numbers(count: int, order: str) -> list[int]:
    """Return the InstanceNumber of each slice along the stack."""
    if order == "descending":
        return list(range(count, 0, -1))
    if order == "interleaved":  # acquired first every other slice, then the ones between
        acquired = [*range(0, count, 2), *range(1, count, 2)]
        return [acquired.index(at) + 1 for at in range(count)]
    return list(range(1, count + 1))


def _ds(value: float) -> str:
    """Return a decimal string of at most 16 characters."""
    text = f"{value:.8f}".rstrip("0").rstrip(".")
    return text[:16] if text not in ("-0", "") else "0"
