"""One frame is one slice: single-frame files, enhanced multi-frame files and mosaics alike.

Whatever the encoding, what follows sees slices with a position, an orientation
and the acquisition they belong to.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from neurovfm_core.deid.mosaic import is_mosaic, read_mosaic
from neurovfm_core.dicom.pixels import PixelLayout, read_header
from neurovfm_core.errors import Excluded, Reason

PARTS = {word: word[0] for word in ("M", "P", "R", "I", "MAGNITUDE", "PHASE", "REAL", "IMAGINARY", "MAG", "PHASE MAP")}
KIND_WORDS = (
    "ADC EADC EXP_ADC TRACEW TRACE FA B0 WATER FAT W F IN OPP IN_PHASE OUT_PHASE OPP_PHASE OUT SWI MINIP "
    "MIP MNIP MPR T1_MAP T2_MAP FAT_FRACTION MEAN SUBTRACTION"
)
"""Words of ImageType that tell apart images of one series at one place."""
PRIVATE_B_VALUES = (
    (0x0019, "SIEMENS MR HEADER", 0x0C),
    (0x0043, "GEMS_PARM_01", 0x39),
    (0x2001, "Philips Imaging DD 001", 0x03),
    (0x0065, "Image Private Header", 0x09),
)
FUNCTIONAL_GROUPS = {
    "FrameContentSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "MREchoSequence",
    "MRTimingAndRelatedParametersSequence",
    "MRModifierSequence",
    "InversionTimesSequence",
    "MRDiffusionSequence",
    "CTReconstructionSequence",
}


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """Which acquisition of a series a slice belongs to."""

    echo: float = 0.0
    inversion_ms: float = 0.0
    b_value: float = -1.0  # -1: not diffusion
    part: str = ""  # M, P, R, I
    words: tuple[str, ...] = ()
    temporal: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """One slice: where it lies, what it belongs to, how to read it."""

    layout: PixelLayout
    index: int  # frame in the file
    tile: tuple[int, int, int, int] | None  # (top, left, rows, columns) inside a mosaic
    header: Dataset
    sop_uid: str
    kind: Kind
    repeat_key: tuple[float, ...]  # orders slices of equal place and kind, nothing else
    position_mm: tuple[float, float, float]  # centre of the first pixel, LPS
    orientation: tuple[float, float, float, float, float, float]  # LPS directions along a row, along a column
    spacing_mm: tuple[float, float]  # between rows, between columns
    slope: float
    intercept: float

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return (self.tile[2], self.tile[3]) if self.tile else (self.layout.rows, self.layout.columns)

    def stored(self) -> NDArray[np.integer]:
        """Return the (rows, columns) stored values, before rescale."""
        values = self.layout.read(self.index)
        if self.tile:
            top, left, rows, columns = self.tile
            values = values[top : top + rows, left : left + columns]
        return values


def read_frames(path: Path) -> list[Frame]:
    """Return the slices of one file.

    Raises
    ------
    Excluded
        As `read_header`; `MISSING_GEOMETRY` if a slice has no place in space.
    """
    header, layout = read_header(path)
    try:
        if "PerFrameFunctionalGroupsSequence" in header:
            return list(_enhanced(header, layout))
        if is_mosaic(header):
            return list(_mosaic(header, layout))
        if layout.num_frames > 1:
            raise Excluded(Reason.UNSUPPORTED_ENCODING, "several frames in one file without functional groups")
        return [_frame(header, layout, 0)]
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise Excluded(Reason.UNREADABLE, f"a header value could not be parsed ({type(error).__name__})") from None


def _frame(header: Dataset, layout: PixelLayout, index: int) -> Frame:
    position = _numbers(header.get("ImagePositionPatient"), 3)
    orientation = _numbers(header.get("ImageOrientationPatient"), 6)
    spacing = _numbers(header.get("PixelSpacing"), 2)
    if position is None or orientation is None or spacing is None or min(spacing) <= 0:
        raise Excluded(Reason.MISSING_GEOMETRY, "no position, orientation or pixel spacing")
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    if abs(row @ row - 1) > 1e-2 or abs(column @ column - 1) > 1e-2 or abs(row @ column) > 1e-2:
        raise Excluded(Reason.MISSING_GEOMETRY, "the orientation is not two perpendicular directions")
    return Frame(
        layout=layout,
        index=index,
        tile=None,
        header=header,
        sop_uid=str(header.get("SOPInstanceUID", "")),
        kind=_kind(header),
        repeat_key=(
            _or(_number(header.get("AcquisitionNumber")), 0.0),
            _or(echo_time_ms(header), 0.0),
            _or(_number(header.get("InstanceNumber")), 0.0),
            float(index),
        ),
        position_mm=(position[0], position[1], position[2]),
        orientation=tuple(orientation),  # type: ignore[arg-type]
        spacing_mm=(spacing[0], spacing[1]),
        slope=_or(_number(header.get("RescaleSlope")), 1.0),
        intercept=_or(_number(header.get("RescaleIntercept")), 0.0),
    )


def echo_time_ms(header: Dataset) -> float | None:
    """Return the echo time, under whichever of its two names."""
    return _number(header.get("EffectiveEchoTime") or header.get("EchoTime"))


def _kind(header: Dataset) -> Kind:
    words = [str(word).strip().upper() for word in header.get("FrameType") or header.get("ImageType") or ()]
    stated = str(header.get("ComplexImageComponent", "")).upper()
    # Philips writes M_FFE where others write M.
    parts = [PARTS.get(word) or PARTS.get(word[: word.find("_")], "") for word in [stated, *words[2:]]]
    echo = _number(header.get("EchoNumbers"))
    temporal = header.get("TemporalPositionIndex") or header.get("TemporalPositionIdentifier")
    return Kind(
        echo=round(_or(echo_time_ms(header), 0.0), 1) if echo is None else echo,
        inversion_ms=round(_or(_number(header.get("InversionTime")), 0.0)),
        b_value=_or(_b_value(header), -1.0),
        part=next(filter(None, parts), ""),
        words=tuple(sorted(set(words) & set(KIND_WORDS.split()))),
        temporal=int(_or(_number(temporal), 0.0)),
    )


def _b_value(header: Dataset) -> float | None:
    """Return the diffusion b-value in s/mm2 from wherever the vendor writes it, None if nowhere."""
    stated = _number(header.get("DiffusionBValue"))
    if stated is not None:
        return stated
    for group, creator, offset in PRIVATE_B_VALUES:
        try:
            stated = _number(header.private_block(group, creator)[offset].value)
        except (KeyError, ValueError, TypeError, IndexError):
            continue
        if stated is not None:
            return stated % 1e9  # GE adds a billion in protocols of several b-values
    return None


def _enhanced(header: Dataset, layout: PixelLayout) -> Iterator[Frame]:
    """Yield the frames of an enhanced object; what all frames share is said once (PS3.3 C.7.6.16)."""
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    per_frame = header.PerFrameFunctionalGroupsSequence
    if len(per_frame) < layout.num_frames:
        raise Excluded(Reason.MISSING_GEOMETRY, "fewer functional groups than frames")
    common = Dataset()
    common.update({element.tag: element for element in header if element.VR != "SQ"})
    common.update(_flattened(shared[0]))
    for index in range(layout.num_frames):
        facts = Dataset()
        facts.update(common)
        facts.update(_flattened(per_frame[index]))
        yield _frame(facts, layout, index)


def _flattened(item: Dataset) -> Dataset:
    """Return the elements of all sequences below `item` in one dataset."""
    flat = Dataset()
    for element in item:
        if element.VR != "SQ":
            flat[element.tag] = element
        elif element.keyword in FUNCTIONAL_GROUPS and element.value:
            flat.update(_flattened(element.value[0]))
    return flat


def _mosaic(header: Dataset, layout: PixelLayout) -> Iterator[Frame]:
    """Yield the tiles of a Siemens mosaic as slices.

    The position of a mosaic is that of a slice as large as the whole mosaic,
    centred where the first slice is.
    """
    mosaic = read_mosaic(header)
    whole = _frame(header, layout, 0)
    gap = _number(header.get("SpacingBetweenSlices")) or _number(header.get("SliceThickness"))
    if mosaic is None or not gap:
        raise Excluded(Reason.UNSUPPORTED_ENCODING, "a mosaic whose header does not tell its layout")
    across = math.ceil(math.sqrt(mosaic.num_slices))
    rows, columns = layout.rows // across, layout.columns // across
    row, column = np.array(whole.orientation[:3]), np.array(whole.orientation[3:])
    first = (
        np.array(whole.position_mm)
        + row * whole.spacing_mm[1] * (layout.columns - columns) / 2
        + column * whole.spacing_mm[0] * (layout.rows - rows) / 2
    )
    for k in range(mosaic.num_slices):
        position = first + k * abs(gap) * np.array(mosaic.normal)
        yield replace(
            whole,
            tile=(k // across * rows, k % across * columns, rows, columns),
            position_mm=tuple(position.tolist()),
        )


def _number(value: object) -> float | None:
    if value is None or value == "":
        return None
    number = float(value[0] if hasattr(value, "append") else value)  # type: ignore[index, arg-type]
    return number if math.isfinite(number) else None


def _numbers(value: object, count: int) -> list[float] | None:
    if value is None or not hasattr(value, "__len__") or len(value) != count:
        return None
    numbers = [float(item) for item in value]  # type: ignore[attr-defined]
    return numbers if all(map(math.isfinite, numbers)) else None


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
