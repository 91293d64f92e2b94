"""What kind of image a volume is, from words and from physics, and its sidecar."""

import re
from typing import Any

from pydicom.multival import MultiValue

from neurovfm_core.dicom.frames import Frame, echo_time_ms
from neurovfm_core.dicom.gate import name_of, words_of
from neurovfm_core.vocabulary import Modality

BY_NAME = (
    ("ADC", r"e?adc|apparent"),
    ("SWI", r"swip?|swan|venobold|susceptibility|qsm"),
    ("DWI", r"dwi|dti|diff|diffusion|trace\w*|ep2d diff|isodwi|dw"),
    ("perfusion", r"perf|perfusion|dsc|dce|asl|pcasl|pasl"),
    ("fMRI", r"bold|fmri|func|resting|rest|task"),
    ("fieldmap", r"fieldmap|field map|fmap|b0map"),
    ("MRA", r"tof|mra|mrv|pca|angio\w*|venogra\w*|twist|tricks"),
    ("FLAIR", r"\w*flair|tirm|dark fluid"),
    ("STIR", r"stir"),
    ("T2*", r"t2\*|t2star|t2s|hemo|heme|medic|swan|gre t2"),
    ("PD", r"pd|pdw|proton"),
    ("T2", r"t2\w*|ciss|fiesta|drive|haste|ssfse"),
    ("T1", r"t1\w*|mprage|mp2rage|bravo|\w*spgr|vibe|thrive|tfl3d"),
)
NAMED = tuple((label, re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.I)) for label, words in BY_NAME)
DIFFUSION_FROM = 50.0  # s/mm2; below it the field may hold anything


def modality_of(frame: Frame) -> Modality:
    """Return the modality that the SOP class stands for."""
    return Modality(frame.header.Modality)


def sequence_class(frame: Frame) -> str:
    """Return CT, T1, T2, FLAIR, DWI, ADC, SWI, T2*, PD, STIR, MRA, perfusion, fMRI, fieldmap or unknown.

    ImageType first (written by the reconstruction), then the name (written by
    the site), then echo, repetition and inversion times.
    """
    header = frame.header
    if header.get("Modality") == Modality.CT:
        return "CT"
    words = words_of(header)
    if words & {"ADC", "ADC_MAP", "ADC_UNSPECIFIED"}:
        return "ADC"
    if "SWI" in words:
        return "SWI"
    name = name_of(header)
    if frame.kind.b_value >= DIFFUSION_FROM or words & {"TRACEW", "TRACE", "DIFFUSION"}:
        return "ADC" if NAMED[0][1].search(name) else "DWI"
    # T2 FLAIR is a FLAIR; a "flair" with a short inversion time is a T1 after all.
    for label, pattern in NAMED:
        if pattern.search(name):
            return "T1" if label == "FLAIR" and re.search(r"\bt1", name, re.I) else label
    return _by_physics(frame)


def _by_physics(frame: Frame) -> str:
    header = frame.header
    scanning = header.get("ScanningSequence") or ()
    kinds = {scanning} if isinstance(scanning, str) else set(scanning)
    echo_ms = echo_time_ms(header)
    repetition_ms, inversion_ms = header.get("RepetitionTime"), header.get("InversionTime")
    if echo_ms is None or not repetition_ms:
        return "unknown"
    if "EP" in kinds and "SE" not in kinds:
        return "T2*" if echo_ms >= 15 else "unknown"
    if inversion_ms and inversion_ms > 1500 and repetition_ms > 4000:
        return "FLAIR"
    if inversion_ms and 80 <= inversion_ms < 300 and "GR" not in kinds:
        return "STIR"
    if "GR" in kinds and "SE" not in kinds:
        if echo_ms < 12 and (repetition_ms < 500 or inversion_ms):
            return "T1"
        return "T2*" if echo_ms >= 12 else "unknown"
    if echo_ms < 40 and repetition_ms < 1200:
        return "T1"
    if echo_ms >= 60 and repetition_ms > 1500:
        return "T2"
    return "PD" if echo_ms < 50 and repetition_ms > 1500 else "unknown"


COPIED = {
    "Manufacturer": str,
    "ManufacturerModelName": str,
    "MagneticFieldStrength": float,
    "BodyPartExamined": str,
    "PatientPosition": str,
    "MRAcquisitionType": str,
    "SliceThickness": float,
    "SpacingBetweenSlices": float,
    "FlipAngle": float,
    "KVP": float,
    "ConvolutionKernel": str,
}


def sidecar(frame: Frame, label: str) -> dict[str, Any]:
    """Return BIDS-style facts without identifiers.

    Times are in seconds, as BIDS has them; the field strength is in tesla.
    """
    header = frame.header
    facts: dict[str, Any] = {"Modality": str(header.Modality), "SequenceClass": label}
    for keyword, convert in COPIED.items():
        value = header.get(keyword)
        if value is None or value == "":
            continue
        facts[keyword] = convert(value[0] if isinstance(value, MultiValue) else value)
    if facts.get("MagneticFieldStrength", 0) > 100:
        facts["MagneticFieldStrength"] /= 10_000  # some write gauss
    times_ms = {keyword: header.get(keyword) for keyword in ("RepetitionTime", "InversionTime")}
    for keyword, time_ms in (times_ms | {"EchoTime": echo_time_ms(header)}).items():
        if time_ms not in (None, ""):
            facts[keyword] = round(float(time_ms) / 1000, 9)
    if frame.kind.b_value >= DIFFUSION_FROM:
        facts["DiffusionBValue"] = frame.kind.b_value
    facts["ContrastBolusAgent"] = "YES" if header.get("ContrastBolusAgent") else "NO"
    facts["ImageType"] = [str(word) for word in header.get("ImageType") or ()]
    return facts
