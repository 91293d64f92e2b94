"""What may be kept of a DICOM header, element by element: an allow-list with a rule each.

An element that is not named here does not leave. An element that is named
leaves only as far as its rule can vouch for the value: a number within a
range, a word of a vocabulary, a mapped UID, a shifted date. A list of keywords
alone is not enough: identifiers turn up in code strings too.

References
----------
DICOM PS3.15 Annex E: Basic Profile with the options Retain Longitudinal
Temporal Information (modified dates), Retain Device Identity (manufacturer,
model and field strength only), Retain Patient Characteristics (sex, age band),
Clean Descriptors, Retain Safe Private.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import UID_dictionary
from pydicom.valuerep import DSdecimal, DSfloat

from neurovfm_core.deid import words
from neurovfm_core.deid.pseudonyms import Pseudonymizer

Rule = Callable[[Any, "Patient"], Any]
"""(value as pydicom parsed it, whose it is) -> value that may be kept; None drops the element."""


@dataclass(frozen=True, slots=True)
class Patient:
    """What the rules need to know of the patient: the key, the shift, words the site vouches for."""

    pseudonymizer: Pseudonymizer
    shift: timedelta
    more_words: frozenset[str] = frozenset()


def _values(value: Any) -> list[Any]:
    """Return an element's value as a list, whatever its multiplicity."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]


def _one_or_many(values: list[Any]) -> Any:
    if not values:
        return None
    return values[0] if len(values) == 1 else values


def number(low: float, high: float) -> Rule:
    """Keep numbers within [low, high]; one that is outside drops the element."""

    def keep(value: Any, _: Patient) -> Any:
        kept = []
        for item in _values(value):
            as_float = float(item)
            if not (low <= as_float <= high) or not math.isfinite(as_float):
                return None
            # A decimal string keeps its digits, so that geometry stays exact to the last one.
            kept.append(item if isinstance(item, DSfloat | DSdecimal | int) else as_float)
        return _one_or_many(kept)

    return keep


def code(vocabulary: str, *, otherwise: str = "") -> Rule:
    """Keep words of a blank-separated vocabulary (``~`` stands for a blank inside a word).

    A word outside it becomes `otherwise`, or is left out if that is "".
    """
    known = {word.replace("~", " ") for word in vocabulary.split()}

    def keep(value: Any, _: Patient) -> Any:
        upper = [str(item).strip().upper() for item in _values(value)]
        kept = [word if word in known else otherwise for word in upper]
        return _one_or_many([word for word in kept if word])

    return keep


def pattern(expression: re.Pattern[str]) -> Rule:
    """Keep values that match as a whole."""

    def keep(value: Any, _: Patient) -> Any:
        return _one_or_many([str(v).strip() for v in _values(value) if expression.fullmatch(str(v).strip())])

    return keep


def mapped_uid(value: Any, patient: Patient) -> Any:
    """Replace UIDs; equal ones stay equal, so references hold across files."""
    return _one_or_many([patient.pseudonymizer.uid(str(uid)) for uid in _values(value)])


def standard_uid(value: Any, _: Patient) -> Any:
    """Keep a UID that the standard itself defines."""
    return str(value) if str(value) in UID_dictionary else None


def shifted_date(value: Any, patient: Patient) -> Any:
    """Move a date, or the date of a date and time, by the patient's shift; drop the time."""
    moved = shift_date(str(_one_or_many(_values(value)) or ""), patient.shift)
    return moved or None


def shift_date(text: str, shift: timedelta) -> str:
    """Return YYYYMMDD moved by `shift`; "" for what is not a date."""
    digits = text.strip().replace("-", "").replace(".", "")[:8]
    try:
        return (date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])) + shift).strftime("%Y%m%d")
    except (ValueError, OverflowError):
        return ""


def technical_words(value: Any, patient: Patient) -> Any:
    """Reduce free text to known technical words."""
    text = " ".join(str(item) for item in _values(value))
    return words.technical(text, patient.more_words)[:64].strip() or None


def scanner_model(value: Any, patient: Patient) -> Any:
    """Reduce a model name to known words."""
    return words.model(str(value or ""), patient.more_words)[:64].strip() or None


def scanner_maker(value: Any, _: Patient) -> Any:
    """Replace a manufacturer by the one spelling of a known one."""
    return words.manufacturer(str(value or "")) or None


def whether_given(value: Any, _: Patient) -> Any:
    """Keep only that there is a value: YES. A contrast agent may name a person or a batch."""
    text = " ".join(str(item) for item in _values(value)).strip().upper()
    return "YES" if text and text not in {"NO", "NONE", "N", "0", "WITHOUT"} else None


def padding(value: Any, _: Patient) -> Any:
    """Keep a 16 bit pixel value, whichever of its two types the file says."""
    numbers = [int.from_bytes(item, "little") if isinstance(item, bytes) else int(item) for item in _values(value)]
    return numbers[0] if len(numbers) == 1 and -(2**15) <= numbers[0] < 2**16 else None


def nested(value: Any, _: Patient) -> Any:
    """Mark a sequence whose items are cleaned by this same table."""
    raise NotImplementedError  # the profile walks into sequences itself


IMAGE_TYPE = """
    ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER MPR MIP MINIP MNIP OTHER M P R I PHASE MAGNITUDE
    REAL IMAGINARY M_FFE M_SE M_IR M_TSE M_B0 M_B1 P_FFE P_SE R_FFE I_FFE R_SE I_SE R_IR M_PCA PHASE~MAP
    PCA FFE SE IR TSE EPI T1 T2 T2_STAR T1_MAP T2_MAP PROTON_DENSITY MIXED NONE ND NORM DIS2D DIS3D FIL
    FM SH CSA~MPR CSA~MIP CSA~3D~EDITOR CSA~RESAMPLED MFSPLIT CT_SOM5~SPI CT_SOM5~SEQ CT_SOM5~TOP
    CT_SOM7~SPI CT_SOM7~SEQ CT_SOM7~TOP SPI SEQ TOP DIFFUSION TRACEW TRACE ADC FA EADC EXP_ADC
    ADC_UNSPECIFIED B0 TENSOR MOSAIC PERFUSION RCBV RCBF MTT TTP TMAX CBV CBF PERFUSION_MAP SUBTRACTION
    SUB PROJECTION~IMAGE REFORMATTED AVERAGE MAXIMUM MINIMUM VOLUME VOLUME_RENDERING RESAMPLED COMBINED
    WATER FAT W F IN_PHASE OUT_PHASE IN OPP OUT OPP_PHASE FAT_FRACTION T2* SWI MINIP_SWI SWI_MINIP HP
    MAG PHA PHASE_IMAGE ANGIO TOF HELIX HELICAL STANDARD SCREEN~SAVE DOSE_INFO PATIENT_INFO SPECTROSCOPY
    VELOCITY FLOW PC MOCO MEAN GDC RFMT RESTORED FLUID_ATTENUATED STIR DIXON DIFF ISOTROPIC ADC_MAP CPR
    CURVED THICK~MPR PARALLEL RADIAL BOLD TIME RESP_GATED SYNTHETIC DENOISED DL EDITED
"""
BODY_PARTS = """
    HEAD BRAIN ORBIT ORBITS FACE NECK SKULL HEADNECK HEAD~NECK SINUS SINUSES IAC EAR TEMPORALBONE
    PITUITARY SELLA EYE MAXILLA MANDIBLE TMJ JAW CSPINE CERVICAL~SPINE TSPINE LSPINE SPINE CHEST ABDOMEN
    PELVIS KNEE SHOULDER HIP WRIST ANKLE FOOT HAND ELBOW EXTREMITY WHOLEBODY HEART BREAST CIRCLEOFWILLIS
    CAROTID
"""
SMALL, LENGTH, SCALE = number(0, 65_535), number(-1e5, 1e5), number(-1e6, 1e6)
TIME_MS = number(0, 1e6)

RULES: dict[str, Rule] = {
    # what it is, and where it belongs
    "SOPClassUID": standard_uid,
    "SOPInstanceUID": mapped_uid,
    "StudyInstanceUID": mapped_uid,
    "SeriesInstanceUID": mapped_uid,
    "FrameOfReferenceUID": mapped_uid,
    "SynchronizationFrameOfReferenceUID": mapped_uid,
    "ConcatenationUID": mapped_uid,
    "DimensionOrganizationUID": mapped_uid,
    "ReferencedSOPClassUID": standard_uid,
    "ReferencedSOPInstanceUID": mapped_uid,
    "StudyDate": shifted_date,
    "SeriesDate": shifted_date,
    "AcquisitionDate": shifted_date,
    "ContentDate": shifted_date,
    "AcquisitionDateTime": shifted_date,
    "Modality": code("CT MR"),
    "ImageType": code(IMAGE_TYPE, otherwise="OTHER"),
    "FrameType": code(IMAGE_TYPE, otherwise="OTHER"),
    "SeriesNumber": SMALL,
    "AcquisitionNumber": SMALL,
    "InstanceNumber": SMALL,
    "ImagesInAcquisition": SMALL,
    # the patient, the place and the words
    "PatientSex": code("M F O"),
    "PatientPosition": code("HFS HFP HFDR HFDL FFS FFP FFDR FFDL"),
    "BodyPartExamined": code(BODY_PARTS),
    "Laterality": code("R L B U"),
    "ContrastBolusAgent": whether_given,
    "Manufacturer": scanner_maker,
    "ManufacturerModelName": scanner_model,
    "MagneticFieldStrength": number(0, 150_000),
    "StudyDescription": technical_words,
    "SeriesDescription": technical_words,
    "ProtocolName": technical_words,
    "BurnedInAnnotation": code("NO"),
    "LossyImageCompression": code("00 01"),
    "LossyImageCompressionRatio": number(0, 1e4),
    # pixels
    "SamplesPerPixel": number(1, 4),
    "PhotometricInterpretation": code(
        "MONOCHROME1 MONOCHROME2 RGB YBR_FULL YBR_FULL_422 YBR_RCT YBR_ICT PALETTE~COLOR"
    ),
    "NumberOfFrames": number(1, 99_999),
    "Rows": number(1, 65_535),
    "Columns": number(1, 65_535),
    "BitsAllocated": number(1, 64),
    "BitsStored": number(1, 64),
    "HighBit": number(0, 63),
    "PixelRepresentation": number(0, 1),
    "PlanarConfiguration": number(0, 1),
    "PixelPaddingValue": padding,
    "PixelPaddingRangeLimit": padding,
    "RescaleSlope": SCALE,
    "RescaleIntercept": SCALE,
    "RescaleType": code("HU US NORMALIZED"),
    "WindowCenter": SCALE,
    "WindowWidth": SCALE,
    # geometry
    "PixelSpacing": number(0, 1e3),
    "SliceThickness": number(0, 1e3),
    "SpacingBetweenSlices": number(-1e3, 1e3),
    "SliceLocation": LENGTH,
    "ImagePositionPatient": LENGTH,
    "ImageOrientationPatient": number(-1.1, 1.1),
    "GantryDetectorTilt": number(-90, 90),
    "TemporalPositionIdentifier": SMALL,
    "NumberOfTemporalPositions": SMALL,
    "TemporalPositionIndex": SMALL,
    "TemporalResolution": number(0, 1e7),
    "StackID": pattern(re.compile(r"\d{1,4}")),
    "InStackPositionNumber": SMALL,
    "DimensionIndexValues": SMALL,
    "FrameAcquisitionNumber": SMALL,
    # MR physics
    "ScanningSequence": code("SE IR GR EP RM"),
    "SequenceVariant": code("SK MTC SS TRSS SP MP OSP NONE"),
    "ScanOptions": code(
        "PER RG CG PPG FC PFF PFP SP FS FAST_GEMS HELICAL~MODE AXIAL~MODE SCOUT~MODE HELIX AXIAL IR PP"
    ),
    "SequenceName": pattern(words.SEQUENCE_NAME),
    "MRAcquisitionType": code("1D 2D 3D"),
    "AngioFlag": code("Y N"),
    "EchoTime": TIME_MS,
    "EffectiveEchoTime": TIME_MS,
    "RepetitionTime": TIME_MS,
    "InversionTime": TIME_MS,
    "FlipAngle": number(-360, 360),
    "EchoNumbers": SMALL,
    "EchoTrainLength": SMALL,
    "NumberOfAverages": SMALL,
    "ImagingFrequency": number(0, 1e4),
    "ImagedNucleus": code("1H"),
    "PixelBandwidth": number(0, 1e6),
    "AcquisitionMatrix": number(0, 65_535),
    "NumberOfPhaseEncodingSteps": SMALL,
    "PercentSampling": number(0, 1e3),
    "PercentPhaseFieldOfView": number(0, 1e3),
    "InPlanePhaseEncodingDirection": code("ROW COL COLUMN OTHER"),
    "DiffusionBValue": number(0, 1e5),
    "DiffusionDirectionality": code("DIRECTIONAL BMATRIX ISOTROPIC NONE"),
    "DiffusionGradientOrientation": number(-1.1, 1.1),
    "ComplexImageComponent": code("MAGNITUDE PHASE REAL IMAGINARY MIXED"),
    "AcquisitionContrast": code(
        "DIFFUSION FLOW_ENCODED FLUID_ATTENUATED PERFUSION PROTON_DENSITY STIR TAGGING T1 T2 T2_STAR TOF UNKNOWN"
    ),
    "PixelPresentation": code("MONOCHROME COLOR MIXED TRUE_COLOR"),
    "VolumetricProperties": code("VOLUME SAMPLED DISTORTED MIXED"),
    "VolumeBasedCalculationTechnique": code("MAX_IP MIN_IP VOLUME_RENDER SURFACE_RENDER MPR CURVED_MPR NONE MIXED"),
    # CT physics
    "KVP": number(0, 1e3),
    "XRayTubeCurrent": number(0, 1e5),
    "Exposure": number(0, 1e6),
    "ExposureTime": number(0, 1e7),
    "ConvolutionKernel": pattern(words.KERNEL),
    "ReconstructionDiameter": LENGTH,
    "DataCollectionDiameter": LENGTH,
    "TableHeight": LENGTH,
    "RotationDirection": code("CW CC"),
    "SpiralPitchFactor": number(0, 1e3),
    "CTDIvol": number(0, 1e5),
    # sequences, cleaned by this same table
    "ReferencedImageSequence": nested,
    "SourceImageSequence": nested,
    "SharedFunctionalGroupsSequence": nested,
    "PerFrameFunctionalGroupsSequence": nested,
    "FrameContentSequence": nested,
    "PlanePositionSequence": nested,
    "PlaneOrientationSequence": nested,
    "PixelMeasuresSequence": nested,
    "PixelValueTransformationSequence": nested,
    "FrameVOILUTSequence": nested,
    "FrameAnatomySequence": nested,
    "MRImageFrameTypeSequence": nested,
    "CTImageFrameTypeSequence": nested,
    "MREchoSequence": nested,
    "MRTimingAndRelatedParametersSequence": nested,
    "MRModifierSequence": nested,
    "MRDiffusionSequence": nested,
    "DiffusionGradientDirectionSequence": nested,
    "CTReconstructionSequence": nested,
    "CTXRayDetailsSequence": nested,
    "TemporalPositionSequence": nested,
}


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return tag


RULE_OF_TAG: dict[int, tuple[str, Rule]] = {
    _tag(keyword): (dictionary_VR(_tag(keyword)), rule) for keyword, rule in RULES.items()
}

SAFE_PRIVATE: dict[tuple[int, str, int], tuple[str, Rule]] = {
    (0x0019, "SIEMENS MR HEADER", 0x0A): ("US", number(1, 4096)),  # images in a mosaic
    (0x0019, "SIEMENS MR HEADER", 0x0C): ("IS", number(0, 1e5)),  # b-value
    (0x0043, "GEMS_PARM_01", 0x39): ("IS", number(0, 2e9)),  # b-value and three more numbers
    (0x2001, "Philips Imaging DD 001", 0x03): ("FL", number(0, 1e5)),  # b-value
    (0x0065, "Image Private Header", 0x09): ("FD", number(0, 1e5)),  # b-value, UIH
}
"""(group, private creator, element) of what conversion needs. PS3.15 table E.3.10-1, shortened."""
