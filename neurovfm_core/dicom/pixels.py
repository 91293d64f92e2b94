"""Where the pixels of a file lie, whether they are all there, and how to read one frame."""

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.pacs.silence import silent_pydicom

UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
LONG_VRS = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN"}


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """How to read the pixels of one file."""

    path: Path
    rows: int
    columns: int
    num_frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    big_endian: bool
    offset: int | None  # of the first pixel; None: compressed, a decoder has to find it

    @property
    def frame_bytes(self) -> int:
        """Bytes of one native frame."""
        return self.rows * self.columns * self.bits_allocated // 8

    def read(self, frame: int) -> NDArray[np.integer]:
        """Return the stored values of one frame.

        Returns
        -------
        (rows, columns) integers
            Stored values as their type and number of bits say, before any rescale.

        Raises
        ------
        Excluded
            `UNSUPPORTED_ENCODING` if no decoder can read it.
        """
        if self.offset is None:
            return _bits(self._decoded(frame), self)
        dtype = np.dtype(f"{'i' if self.signed else 'u'}{self.bits_allocated // 8}")
        with self.path.open("rb") as file:
            file.seek(self.offset + frame * self.frame_bytes)
            raw = file.read(self.frame_bytes)
        values = np.frombuffer(raw, dtype=dtype.newbyteorder(">" if self.big_endian else "<"))
        return _bits(values.reshape(self.rows, self.columns).astype(dtype), self)

    def _decoded(self, frame: int) -> NDArray[np.integer]:
        with silent_pydicom():
            try:
                return pixel_array(pydicom.dcmread(self.path), index=frame, raw=True)
            except (RuntimeError, ValueError, AttributeError, NotImplementedError, EOFError) as error:
                raise Excluded(
                    Reason.UNSUPPORTED_ENCODING, f"pixel data not decoded ({type(error).__name__})"
                ) from None


def read_header(path: Path) -> tuple[Dataset, PixelLayout]:
    """Return the header of an image file and the layout of its pixels.

    Raises
    ------
    Excluded
        `UNREADABLE` if it is not DICOM, `NOT_AN_IMAGE`, `NOT_GREYSCALE`,
        `UNSUPPORTED_ENCODING`, or `TRUNCATED` if not all pixels are there.
    """
    with path.open("rb") as file, silent_pydicom():
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
            syntax = dataset.file_meta.TransferSyntaxUID
            rows, columns = int(dataset.Rows), int(dataset.Columns)
            bits, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
            layout = PixelLayout(
                path=path,
                rows=rows,
                columns=columns,
                num_frames=int(dataset.get("NumberOfFrames") or 1),
                bits_allocated=bits,
                bits_stored=stored,
                high_bit=int(dataset.get("HighBit", stored - 1)),
                signed=dataset.get("PixelRepresentation") == 1,
                big_endian=syntax == ExplicitVRBigEndian,
                offset=None,
            )
        except pydicom.errors.InvalidDicomError:
            raise Excluded(Reason.UNREADABLE, "a file is not DICOM") from None
        except (AttributeError, TypeError):
            raise Excluded(Reason.NOT_AN_IMAGE, "no rows and columns of pixels") from None
        except (ValueError, KeyError, NotImplementedError, EOFError, struct.error) as error:
            raise Excluded(Reason.UNREADABLE, f"a header could not be parsed ({type(error).__name__})") from None
        if int(dataset.get("SamplesPerPixel", 1)) != 1 or "PALETTE" in dataset.get("PhotometricInterpretation", ""):
            raise Excluded(Reason.NOT_GREYSCALE, "colour pixels")
        if bits not in (8, 16, 32):
            raise Excluded(Reason.UNSUPPORTED_ENCODING, f"{bits} bits allocated")
        if syntax.is_deflated:
            whole = len(pydicom.dcmread(path).get("PixelData", b"")) >= layout.frame_bytes * layout.num_frames
            return dataset, _complete(layout, whole, None)
        if syntax.is_encapsulated:
            return dataset, _complete(layout, _fragments_complete(file, layout.num_frames), None)
        start, length = _native_value(file, syntax == ImplicitVRLittleEndian, layout.big_endian)
        left = path.stat().st_size - start
        whole = min(length, left) >= layout.frame_bytes * layout.num_frames
        return dataset, _complete(layout, whole, start)


def _complete(layout: PixelLayout, whole: bool, offset: int | None) -> PixelLayout:
    if not whole:
        raise Excluded(Reason.TRUNCATED, "a file ends before its last pixel")
    return replace(layout, offset=offset)


def _native_value(file: BinaryIO, implicit: bool, big_endian: bool) -> tuple[int, int]:
    """Return (offset, length) of the value of the element that the file stands at."""
    start = file.tell()
    head = file.read(12)
    if len(head) < 12:
        return start, 0
    order = ">" if big_endian else "<"
    if implicit:
        return start + 8, struct.unpack_from(f"{order}I", head, 4)[0]
    if head[4:6] in LONG_VRS:
        return start + 12, struct.unpack_from(f"{order}I", head, 8)[0]
    return start + 8, struct.unpack_from(f"{order}H", head, 6)[0]


def _fragments_complete(file: BinaryIO, num_frames: int) -> bool:
    """Walk the fragments of compressed pixels (PS3.5 A.4); False if the file ends inside one."""
    position = file.tell() + 12
    size = file.seek(0, 2)
    num_items = 0
    while position + 8 <= size:
        file.seek(position)
        group, element, length = struct.unpack("<HHI", file.read(8))
        if (group, element) == SEQUENCE_END:
            return num_items > num_frames  # the first item is the offset table
        if (group, element) != ITEM or length == UNDEFINED_LENGTH:
            return False
        position += 8 + length
        num_items += 1
    return False


def _bits(values: NDArray[np.integer], layout: PixelLayout) -> NDArray[np.integer]:
    """Keep the bits that are the pixel: old files hide overlays in the unused ones."""
    if layout.bits_stored >= layout.bits_allocated:
        return values
    up = values.dtype.itemsize * 8 - 1 - layout.high_bit
    down = values.dtype.itemsize * 8 - layout.bits_stored
    return (values << up) >> down  # arithmetic for signed types: the sign is extended
