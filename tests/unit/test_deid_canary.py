"""No planted word, UID or date of any DICOM element survives export."""

import logging
import struct

import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from neurovfm_core.deid import ExportParams, Pseudonymizer, export_series
from neurovfm_core.deid.profile import PIXEL_DATA, _identity
from neurovfm_core.deid.rules import RULE_OF_TAG
from neurovfm_core.errors import Excluded
from neurovfm_core.pacs import FolderSource, SeriesListing

WITHOUT_WAREHOUSE = ExportParams(require_warehouse=False)
WORD, DAY, CLOCK, UID_ROOT = "CANARY", "19610717", "235917.770077", "1.2.826.0.1.770077."
TEXT_VRS = {"AE", "AS", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
LONG_VRS = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UC", "UN", "UR", "UT"}
ROWS = COLUMNS = 8


def element(tag: int, vr: str, value: bytes) -> bytes:
    """Encode one element, explicit VR little endian; pydicom would refuse most of these values."""
    value += (b"\0" if vr in {"UI", "OB", "UN"} else b" ") * (len(value) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    return head + (struct.pack("<HI", 0, len(value)) if vr in LONG_VRS else struct.pack("<H", len(value))) + value


def sequence(tag: int, *items: bytes) -> bytes:
    return element(tag, "SQ", b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(i)) + i for i in items))


def canaries(*, numbers_too: bool) -> dict[int, bytes]:
    """Return an encoded element with a canary for every attribute of the dictionary that can hold one."""
    planted = {}
    for number, (tag, (vr, *_)) in enumerate(sorted(DicomDictionary.items())):
        if tag >> 16 in (0x0000, 0x0002, 0xFFFE) or tag & 0xFFFF == 0 or tag == PIXEL_DATA:
            continue
        word = f"{WORD}{number}"
        if vr in TEXT_VRS:
            planted[tag] = element(tag, vr, word.encode())
        elif vr == "UI":
            planted[tag] = element(tag, vr, f"{UID_ROOT}{number}".encode())
        elif vr in {"DA", "DT"}:
            planted[tag] = element(tag, vr, (DAY + (CLOCK if vr == "DT" else "")).encode())
        elif vr == "TM":
            planted[tag] = element(tag, vr, CLOCK.encode())
        elif vr in {"OB", "OW", "UN", "OB or OW"}:
            planted[tag] = element(tag, "OB", word.encode())
        elif numbers_too and vr in {"DS", "IS"}:
            planted[tag] = element(tag, vr, word.encode())
        elif numbers_too and vr in {"US", "SS", "UL", "FD", "FL", "US or SS"}:
            planted[tag] = element(tag, "LO", word.encode())  # a number's tag under a text's type
    return planted


def image_elements(instance: str) -> dict[int, bytes]:
    """Return what makes an image out of canaries."""

    def us(value: int) -> bytes:
        return struct.pack("<H", value)

    values = {
        "SOPClassUID": ("UI", CTImageStorage.encode()),
        "SOPInstanceUID": ("UI", instance.encode()),
        "StudyInstanceUID": ("UI", (UID_ROOT + "1").encode()),
        "SeriesInstanceUID": ("UI", (UID_ROOT + "2").encode()),
        "Modality": ("CS", b"CT"),
        "SamplesPerPixel": ("US", us(1)),
        "PhotometricInterpretation": ("CS", b"MONOCHROME2"),
        "NumberOfFrames": ("IS", b"1"),
        "Rows": ("US", us(ROWS)),
        "Columns": ("US", us(COLUMNS)),
        "BitsAllocated": ("US", us(16)),
        "BitsStored": ("US", us(16)),
        "HighBit": ("US", us(15)),
        "PixelRepresentation": ("US", us(1)),
        "ImageType": ("CS", b"ORIGINAL\\PRIMARY\\" + WORD.encode()),
        "BurnedInAnnotation": ("CS", b"NO"),
        "BodyPartExamined": ("CS", b"HEAD"),
    }
    tags = {pydicom.datadict.tag_for_keyword(keyword): spec for keyword, spec in values.items()}
    return {tag: element(tag, vr, value) for tag, (vr, value) in tags.items()}


def private_elements() -> dict[int, bytes]:
    """Return private blocks, those of the safe list among them, that hold words where numbers belong."""
    blocks = {
        (0x0019, "SIEMENS MR HEADER"): (0x0A, 0x0C, 0x55),
        (0x0029, "SIEMENS CSA HEADER"): (0x10,),
        (0x0043, "GEMS_PARM_01"): (0x39,),
        (0x2001, "Philips Imaging DD 001"): (0x03,),
        (0x0065, "Image Private Header"): (0x09,),
        (0x0077, f"{WORD} CREATOR"): (0x01,),
    }
    planted = {}
    for (group, creator), offsets in blocks.items():
        planted[group << 16 | 0x10] = element(group << 16 | 0x10, "LO", creator.encode())
        for offset in offsets:
            tag = group << 16 | 0x1000 | offset
            planted[tag] = element(tag, "LO" if offset != 0x10 else "OB", f"{WORD}private{offset}".encode())
    return planted


def canary_file(instance: str, *, numbers_too: bool) -> bytes:
    inner = canaries(numbers_too=True)
    nested_item = b"".join(inner[tag] for tag in sorted(inner))
    deep = sequence(0x00081140, nested_item)  # ReferencedImageSequence, which is kept
    body = canaries(numbers_too=numbers_too) | private_elements() | image_elements(instance)
    for tag in (0x00081140, 0x00082112, 0x00400275, 0x52009229, 0x52009230, 0x00081111):
        body[tag] = sequence(tag, nested_item + deep) if tag > 0x00081140 else sequence(tag, nested_item)
    pixels = np.arange(ROWS * COLUMNS, dtype="<i2").tobytes() + f"{WORD} after the last pixel ".encode()
    body[int(PIXEL_DATA)] = element(PIXEL_DATA, "OW", pixels)
    body[0xFFFCFFFC] = element(0xFFFCFFFC, "OB", f"{WORD} padding".encode())
    meta = (
        element(0x00020002, "UI", CTImageStorage.encode())
        + element(0x00020003, "UI", instance.encode())
        + element(0x00020010, "UI", ExplicitVRLittleEndian.encode())
        + element(0x00020012, "UI", (UID_ROOT + "9").encode())
        + element(0x00020013, "SH", f"{WORD}IMPL".encode())
        + element(0x00020016, "AE", f"{WORD}AE".encode())
        + element(0x00020100, "UI", (UID_ROOT + "8").encode())
        + element(0x00020102, "OB", f"{WORD} private meta".encode())
    )
    preamble = f"{WORD} preamble".encode().ljust(128, b"!")
    group_length = element(0x00020000, "UL", struct.pack("<I", len(meta)))
    return preamble + b"DICM" + group_length + meta + b"".join(body[tag] for tag in sorted(body))


def leaks(content: bytes) -> list[str]:
    """Return which canaries occur, in any case, reversed, or in UTF-16."""
    folded = content.upper()
    spellings = [
        spelled
        for word in (WORD, DAY, CLOCK, UID_ROOT)
        for spelled in (
            word.encode(),
            word[::-1].encode(),
            word.encode("utf-16-le"),
            word.encode("utf-16-be"),
        )
    ]
    return [spelled.decode("latin1") for spelled in spellings if spelled in folded]


def everything(root) -> bytes:
    return b"".join(
        str(p.relative_to(root)).encode() + (p.read_bytes() if p.is_file() else b"") for p in root.rglob("*")
    )


@pytest.fixture
def pseudonymizer():
    return Pseudonymizer(b"k" * 32)


@pytest.mark.parametrize("numbers_too", [False, True])
def test_no_canary_survives_export_in_bytes_names_logs_or_facts(tmp_path, pseudonymizer, caplog, recwarn, numbers_too):
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / f"{WORD}_archive"
    folder.mkdir()
    for number in range(2):
        content = canary_file(f"{UID_ROOT}3.{number}", numbers_too=numbers_too)
        (folder / f"{WORD}{number}.dcm").write_bytes(content)
        assert len(leaks(content)) >= 4  # the test would see them
    source = FolderSource(folder)
    (listing,) = source.listing()
    assert isinstance(listing, SeriesListing)
    out = tmp_path / "dicom"
    exported = export_series(listing, source, pseudonymizer, out, WITHOUT_WAREHOUSE, None)
    assert (exported.instances_received, exported.instances_dropped) == (2, 0)
    said = caplog.text + repr(exported) + repr(listing) + "".join(str(w.message) for w in recwarn)
    assert leaks(everything(out)) == []
    assert leaks(said.encode()) == []


def test_what_leaves_is_only_what_has_a_rule(tmp_path, pseudonymizer):
    (tmp_path / "x.dcm").write_bytes(canary_file(UID_ROOT + "3", numbers_too=False))
    source = FolderSource(tmp_path)
    (listing,) = source.listing()
    export_series(listing, source, pseudonymizer, tmp_path / "out", ExportParams(require_warehouse=False), None)
    (path,) = (tmp_path / "out").rglob("*.dcm")
    allowed = set(RULE_OF_TAG) | {element.tag for element in _identity("pat_x", "40-49")} | {PIXEL_DATA}
    written = pydicom.dcmread(path)
    assert set(written.keys()) <= allowed
    assert path.read_bytes()[:128] == bytes(128)
    assert written.PatientIdentityRemoved == "YES"
    assert written.LongitudinalTemporalInformationModified == "MODIFIED"
    assert {item.CodeValue for item in written.DeidentificationMethodCodeSequence} >= {
        "113100",
        "113107",
        "113109",
    }
    assert np.array_equal(written.pixel_array, np.arange(ROWS * COLUMNS, dtype=np.int16).reshape(ROWS, COLUMNS))


def test_a_refusal_tells_no_identifier(tmp_path, pseudonymizer):
    body = image_elements(UID_ROOT + "3") | {0x00080016: element(0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.7")}
    whole = canary_file(UID_ROOT + "3", numbers_too=False)
    head = whole[: whole.index(image_elements(UID_ROOT + "3")[0x00080016])]
    (tmp_path / f"{WORD}.dcm").write_bytes(head + b"".join(body[tag] for tag in sorted(body)))
    source = FolderSource(tmp_path)
    (listing,) = (entry for entry in source.listing() if isinstance(entry, SeriesListing))
    with pytest.raises(Excluded) as refusal:
        export_series(listing, source, pseudonymizer, tmp_path / "out", ExportParams(require_warehouse=False), None)
    assert leaks(repr(refusal.value.args).encode() + str(refusal.value).encode()) == []
    assert not list((tmp_path / "out").rglob("*.dcm"))
