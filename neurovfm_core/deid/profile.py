"""De-identification of one dataset: a new one is built from what the rules let through."""

import struct
from datetime import timedelta

from pydicom import DataElement, Dataset
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID, UID_dictionary

from neurovfm_core.deid.mosaic import is_mosaic, read_mosaic, write_mosaic
from neurovfm_core.deid.pseudonyms import Pseudonymizer
from neurovfm_core.deid.rules import RULE_OF_TAG, SAFE_PRIVATE, Patient, Rule, nested

PIXEL_DATA = BaseTag(0x7FE00010)
IMPLEMENTATION_UID = UID("2.25.232617170163245163920735204466716893571")
IMPLEMENTATION_NAME = "NEUROVFM"
METHOD = "PS3.15 Annex E Basic Profile by allow-list, keyed pseudonyms"
METHOD_CODES = {
    "113100": "Basic Application Confidentiality Profile",
    "113105": "Clean Descriptors Option",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113108": "Retain Patient Characteristics Option",
    "113109": "Retain Device Identity Option",
    "113111": "Retain Safe Private Option",
}
UNUSABLE = (ValueError, TypeError, OverflowError, AttributeError, KeyError, NotImplementedError, struct.error)
"""What pydicom and the rules raise on a value that is not what its element should hold."""

INTEGER_VRS = {"US", "SS", "UL", "SL", "IS"}
BAND_YEARS = 10
OLDEST = 89


def age_band(age_years: int | None) -> str:
    """Return the ten-year band of an age; everybody of 89 and more is one band, "" if unknown.

    Examples
    --------
    >>> age_band(47), age_band(88), age_band(93), age_band(None)
    ('40-49', '80-88', '89+', '')
    """
    if age_years is None or not 0 <= age_years <= 130:
        return ""
    if age_years >= OLDEST:
        return f"{OLDEST}+"
    low = age_years // BAND_YEARS * BAND_YEARS
    return f"{low}-{min(low + BAND_YEARS - 1, OLDEST - 1)}"


class Profile:
    """The rules applied to the datasets of one series.

    Elements that many instances share are cleaned once, which is most of the cost.

    Parameters
    ----------
    pseudonymizer
        Holds the key.
    patient_id, issuer
        Whose dates move together.
    age_years
        Written as the lower end of its band; None for unknown.
    retain_safe_private
        Keep the few private numbers that conversion needs.
    more_words
        Lower-case words that the site vouches for in descriptions and model names.
    """

    def __init__(
        self,
        pseudonymizer: Pseudonymizer,
        patient_id: str,
        issuer: str = "",
        *,
        age_years: int | None = None,
        retain_safe_private: bool = True,
        more_words: frozenset[str] = frozenset(),
    ) -> None:
        self.patient = Patient(pseudonymizer, timedelta(days=pseudonymizer.shift_days(patient_id, issuer)), more_words)
        self.retain_safe_private = retain_safe_private
        self._kept: dict[tuple[int, str | None, bytes | None, int], DataElement | None] = {}
        self._identity = _identity(pseudonymizer.patient(patient_id, issuer), age_band(age_years))

    def clean(self, dataset: Dataset) -> Dataset:
        """Return a new dataset that holds only what may leave, with fresh file meta information.

        The pixel data are the same bytes in the same transfer syntax, less what
        follows the last pixel.

        Raises
        ------
        ValueError
            If the dataset has no usable SOP class, SOP instance or transfer syntax.
        """
        clean = Dataset()
        for element in self._identity:
            clean[element.tag] = element
        self._copy(dataset, clean)
        if self.retain_safe_private:
            self._copy_private(dataset, clean)
        if is_mosaic(dataset) and (mosaic := read_mosaic(dataset)) is not None:
            write_mosaic(mosaic, clean)
        pixels = _pixel_element(dataset, clean)
        if pixels is not None:
            clean[PIXEL_DATA] = pixels
        clean.file_meta = _file_meta(dataset, clean)
        return clean

    def _copy(self, source: Dataset, target: Dataset) -> None:
        signed = int(source.get("PixelRepresentation") == 1)
        for tag in source.keys():  # noqa: SIM118 (iterating a Dataset would parse every element)
            if tag not in RULE_OF_TAG:
                continue
            raw = source.get_item(tag)
            if isinstance(raw, RawDataElement):
                key = (int(tag), raw.VR, raw.value, signed)
                if key not in self._kept:
                    self._kept[key] = self._element(source, tag, signed)
                element = self._kept[key]
            else:
                element = self._element(source, tag, signed)
            if element is not None:
                target[tag] = element

    def _element(self, source: Dataset, tag: BaseTag, signed: int) -> DataElement | None:
        vr, rule = RULE_OF_TAG[tag]
        if vr == "US or SS":
            vr = "SS" if signed else "US"
        try:
            return self._apply(tag, vr, rule, source[tag].value)
        except UNUSABLE:
            return None

    def _apply(self, tag: BaseTag, vr: str, rule: Rule, value: object) -> DataElement | None:
        if rule is nested:
            return self._sequence(tag, value)
        kept = rule(value, self.patient)
        if kept is None:
            return None
        if vr in INTEGER_VRS:
            whole = [int(item) for item in (kept if isinstance(kept, list) else [kept])]
            if vr in {"US", "SS"} and tag.group == 0x0028:
                # Files disagree on the type of a pixel value; both mean the same 16 bits.
                whole = [(n + 2**15) % 2**16 - 2**15 if vr == "SS" else n % 2**16 for n in whole]
            kept = whole if len(whole) > 1 else whole[0]
        return DataElement(tag, vr, kept)

    def _sequence(self, tag: BaseTag, value: object) -> DataElement | None:
        if not isinstance(value, Sequence):
            return None
        items = []
        for item in value:
            clean = Dataset()
            self._copy(item, clean)
            if self.retain_safe_private:
                self._copy_private(item, clean)
            if len(clean):
                items.append(clean)
        return DataElement(tag, "SQ", Sequence(items)) if items else None

    def _copy_private(self, source: Dataset, target: Dataset) -> None:
        groups = {tag.group for tag in source.keys() if tag.group & 1}  # noqa: SIM118
        for (group, creator, offset), (vr, rule) in SAFE_PRIVATE.items():
            if group not in groups:
                continue
            try:
                value = source.private_block(group, creator)[offset].value
                element = self._apply(BaseTag(group << 16 | 0x1000 | offset), vr, rule, value)
            except UNUSABLE:
                continue
            if element is not None:
                target.private_block(group, creator, create=True).add_new(offset, vr, element.value)


def _identity(patient: str, band: str) -> list[DataElement]:
    """Return the elements that say whose pseudonym it is, and how it was de-identified."""
    fixed = Dataset()
    fixed.PatientName = patient
    fixed.PatientID = patient
    fixed.PatientBirthDate = ""
    fixed.PatientSex = ""
    fixed.StudyTime = ""
    fixed.StudyID = ""
    fixed.AccessionNumber = ""
    fixed.ReferringPhysicianName = ""
    if band:
        fixed.PatientAge = f"{int(band.split('-')[0].rstrip('+')):03d}Y"
    fixed.PatientIdentityRemoved = "YES"
    fixed.DeidentificationMethod = METHOD
    fixed.DeidentificationMethodCodeSequence = Sequence()
    for value, meaning in METHOD_CODES.items():
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning[:64]
        fixed.DeidentificationMethodCodeSequence.append(item)
    fixed.LongitudinalTemporalInformationModified = "MODIFIED"
    return list(fixed)


def _pixel_element(dataset: Dataset, clean: Dataset) -> DataElement | None:
    raw = dataset.get_item(PIXEL_DATA) if PIXEL_DATA in dataset else None
    if raw is None or not isinstance(raw.value, bytes):
        return None
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    value = raw.value
    if not syntax.is_compressed or syntax.is_deflated:
        # What follows the last pixel is no image, but somebody's chance to hide text.
        bits = clean.get("BitsAllocated", 0) * clean.get("SamplesPerPixel", 1)
        size = clean.get("Rows", 0) * clean.get("Columns", 0) * int(clean.get("NumberOfFrames", 1)) * bits // 8
        value = value[: size + size % 2]
    element = DataElement(PIXEL_DATA, raw.VR or "OW", value)
    element.is_undefined_length = syntax.is_encapsulated
    return element


def _file_meta(dataset: Dataset, clean: Dataset) -> FileMetaDataset:
    syntax = str(getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID", ""))
    if syntax not in UID_dictionary or "SOPInstanceUID" not in clean or "SOPClassUID" not in clean:
        raise ValueError("no SOP class, SOP instance or transfer syntax")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = clean.SOPClassUID
    meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    meta.TransferSyntaxUID = UID(syntax)
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    meta.ImplementationVersionName = IMPLEMENTATION_NAME
    return meta
