"""Writing habits of four vendors: what differs between archives that hold the same anatomy.

The habits are those seen in real series: number formats, the meaning of
SpacingBetweenSlices, order of InstanceNumber, names of series and files, and
private blocks that repeat what the public elements already leak.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How one vendor stores the numbers of one modality."""

    bits_stored: int
    signed: bool
    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True, slots=True)
class Style:
    """The habits of one vendor. `syntaxes` are equally likely."""

    syntaxes: tuple[str, ...]
    character_set: str
    instance_order: str  # "ascending", "descending" or "interleaved" along the stack
    spacing_is_gap: bool  # SpacingBetweenSlices holds the gap alone, not the distance of centres
    mr_pixels: PixelFormat
    ct_pixels: PixelFormat
    file_name: Callable[[str, int, str], str]  # of modality, instance number, SOP instance UID
    folder_separator: str
    view_words: tuple[str, str, str]  # axial, coronal, sagittal
    names: Mapping[str, str]  # SeriesDescription by sequence; {view} is filled in
    image_types: Mapping[str, str]  # ImageType by sequence; "" is every other one
    kernels: tuple[str, str]  # soft, bone
    private: Callable[[Dataset, Mapping[str, str]], None]

    def description(self, sequence: str, view: str, thin: bool) -> str:
        """Return the SeriesDescription; `thin` marks a 3D acquisition."""
        name = self.names.get(f"{sequence}_3D" if thin else sequence) or self.names[sequence]
        return name.format(view=self.view_words[("axial", "coronal", "sagittal").index(view)])

    def image_type(self, sequence: str) -> list[str]:
        """Return the values of ImageType."""
        return self.image_types.get(sequence, self.image_types[""]).split("\\")


def siemens_csa(tags: Mapping[str, str]) -> bytes:
    """Return a well-formed CSA2 header whose tags hold one text each.

    Layout: "SV10", four bytes, tag count, 77; per tag a 64-byte name, VM, VR,
    syngo type, item count, 77; per item four int32 of which the second is the
    length, then the text padded to four bytes.
    """
    parts = [b"SV10\x04\x03\x02\x01", struct.pack("<II", len(tags), 77)]
    for name, text in tags.items():
        raw = text.encode("latin-1") + b"\x00"
        parts.append(struct.pack("<64si4siii", name.encode(), 1, b"LO\x00\x00", 19, 1, 77))
        parts.append(struct.pack("<4i", len(raw), len(raw), 77, len(raw)) + raw + bytes(-len(raw) % 4))
    blob = b"".join(parts)
    return blob + bytes(len(blob) % 2)


def _siemens_private(header: Dataset, ids: Mapping[str, str]) -> None:
    csa = {"PatientPosition": "HFS", "UsedPatientName": ids["csa_patient_name"]}
    protocol = {"Protocol": f"### ASCCONV BEGIN ###\ntPatient = {ids['csa_patient_name']}\n### ASCCONV END ###"}
    block = header.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x08, "CS", "IMAGE NUM 4")
    block.add_new(0x10, "OB", siemens_csa(csa))
    block.add_new(0x18, "CS", "MR")
    block.add_new(0x20, "OB", siemens_csa(protocol))
    block = header.private_block(0x0051, "SIEMENS MR HEADER", create=True)
    block.add_new(0x08, "CS", "IMAGE NUM 4")
    block.add_new(0x12, "SH", "TP 0")
    block.add_new(0x15, "LO", ids["national_id"])


def _ge_private(header: Dataset, ids: Mapping[str, str]) -> None:
    block = header.private_block(0x0009, "GEMS_IDEN_01", create=True)
    block.add_new(0x01, "LO", "GE_GENESIS_FF")
    block.add_new(0x02, "SH", ids["private_exam_number"])
    block.add_new(0x30, "SH", ids["performed_step_id"])
    block.add_new(0x31, "LO", ids["patient_name_capitals"])
    block = header.private_block(0x0043, "GEMS_PARM_01", create=True)
    block.add_new(0x61, "UI", ids["study_instance_uid"])
    block.add_new(0x80, "LO", [ids["national_id"], ids["scanner_address"]])


def _philips_private(header: Dataset, ids: Mapping[str, str]) -> None:
    block = header.private_block(0x2001, "Philips Imaging DD 001", create=True)
    block.add_new(0x63, "CS", "ELSEWHERE")
    block.add_new(0xC1, "LO", ids["scanner_address"])
    nested = Dataset()
    nested.PatientID = ids["patient_id"]
    nested.PatientName = ids["patient_name"]
    nested.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x37, "PN", ids["operator"])
    block = header.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    block.add_new(0x80, "SQ", [nested])
    block.add_new(0x99, "UT", ids["private_archive_path"])


def _uih_private(header: Dataset, ids: Mapping[str, str]) -> None:
    block = header.private_block(0x0065, "Image Private Header", create=True)
    block.add_new(0x0F, "LT", f"pat={ids['patient_name_capitals']};host={ids['scanner_address']}")
    block.add_new(0x10, "UN", f"{ids['patient_id']}|{ids['national_id']}".encode())


def _toshiba_private(header: Dataset, ids: Mapping[str, str]) -> None:
    block = header.private_block(0x7005, "TOSHIBA_MEC_CT3", create=True)
    block.add_new(0x06, "LO", ids["private_exam_number"])
    block.add_new(0x0B, "LT", f"Stored for {ids['patient_name_capitals']} at {ids['private_archive_path']}")


STYLES: Mapping[str, Style] = {
    "SIEMENS": Style(
        syntaxes=(ExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGLSLossless),
        character_set="ISO_IR 100",
        instance_order="ascending",
        spacing_is_gap=False,
        mr_pixels=PixelFormat(12, signed=False),
        ct_pixels=PixelFormat(12, signed=False, intercept=-1024),
        file_name=lambda modality, number, uid: f"{modality}.{number:05d}.IMA",
        folder_separator="_",
        view_words=("tra", "cor", "sag"),
        names={
            "T1": "t1_se_{view}",
            "T1_3D": "t1_mprage_{view}_p2_iso",
            "T1C": "t1_se_{view}_post gd",
            "T1C_3D": "t1_mprage_{view}_POST",
            "T2": "t2_tse_{view}_512",
            "FLAIR": "t2_tirm_{view}_dark-fluid",
            "DWI": "ep2d_diff_3scan_trace_p2_TRACEW",
            "ADC": "ep2d_diff_3scan_trace_p2_ADC",
            "SWI": "SWI_Images",
            "CT": "Head  5.0  J40s  3",
            "CT_BONE": "Head  3.0  H70h  BONE",
            "LOCALIZER": "localizer",
            "SCOUT": "Topogram  0.6  T20f",
            "MPR": "MPR {view} 3mm",
        },
        image_types={
            "": "ORIGINAL\\PRIMARY\\M\\NORM\\DIS2D",
            "DWI": "DERIVED\\PRIMARY\\DIFFUSION\\TRACEW\\ND",
            "ADC": "DERIVED\\PRIMARY\\DIFFUSION\\ADC\\ND",
            "SWI": "ORIGINAL\\PRIMARY\\M\\SWI\\NORM",
            "CT": "ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 SEQ",
            "CT_BONE": "ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 SEQ",
            "LOCALIZER": "ORIGINAL\\PRIMARY\\M\\ND\\NORM",
            "SCOUT": "ORIGINAL\\PRIMARY\\LOCALIZER\\CT_SOM5 TOP",
            "MPR": "DERIVED\\SECONDARY\\MPR",
        },
        kernels=("J40s", "H70h"),
        private=_siemens_private,
    ),
    "GE MEDICAL SYSTEMS": Style(
        syntaxes=(ExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless),
        character_set="ISO_IR 100",
        instance_order="descending",
        spacing_is_gap=False,
        mr_pixels=PixelFormat(16, signed=True),
        ct_pixels=PixelFormat(16, signed=True, intercept=-1024),
        file_name=lambda modality, number, uid: f"i{number * 7919 + 100_003}.{modality}DC.{number}",
        folder_separator="-",
        view_words=("Ax", "Cor", "Sag"),
        names={
            "T1": "{view} T1",
            "T1_3D": "{view} 3D T1 BRAVO",
            "T1C": "{view} T1 +C",
            "T1C_3D": "{view} 3D T1 BRAVO +C",
            "T2": "{view} T2 PROPELLER",
            "FLAIR": "{view} T2 FLAIR",
            "DWI": "{view} DWI b1000",
            "ADC": "Apparent Diffusion Coefficient (mm2/s)",
            "SWI": "{view} SWAN",
            "CT": "HEAD STD 5mm",
            "CT_BONE": "HEAD BONE",
            "LOCALIZER": "3 Pl Loc FGRE",
            "SCOUT": "Scout",
            "MPR": "{view} MIP Reformat",
        },
        image_types={
            "": "ORIGINAL\\PRIMARY\\OTHER",
            "ADC": "DERIVED\\PRIMARY\\ADC",
            "CT": "ORIGINAL\\PRIMARY\\AXIAL",
            "CT_BONE": "ORIGINAL\\PRIMARY\\AXIAL",
            "SCOUT": "ORIGINAL\\PRIMARY\\LOCALIZER",
            "MPR": "DERIVED\\SECONDARY\\REFORMATTED\\MAX IP",
        },
        kernels=("STANDARD", "BONEPLUS"),
        private=_ge_private,
    ),
    "Philips Medical Systems": Style(
        syntaxes=(ImplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian),
        character_set="ISO_IR 192",
        instance_order="ascending",
        spacing_is_gap=False,
        mr_pixels=PixelFormat(12, signed=False, slope=1.84713),
        ct_pixels=PixelFormat(12, signed=False, intercept=-1024),
        file_name=lambda modality, number, uid: f"IM_{number:04d}",
        folder_separator=" ",
        view_words=("AX", "COR", "SAG"),
        names={
            "T1": "T1W_SE {view}",
            "T1_3D": "sT1W_3D_TFE {view}",
            "T1C": "T1W_SE {view} GD",
            "T1C_3D": "sT1W_3D_TFE {view} GD",
            "T2": "T2W_TSE {view}",
            "FLAIR": "FLAIR_longTR {view}",
            "DWI": "DWI_SSh {view} b1000",
            "ADC": "dADC {view}",
            "SWI": "SWIp {view}",
            "CT": "BRAIN 5.0, iDose (3)",
            "CT_BONE": "BONE 2.5 YD",
            "LOCALIZER": "Survey_SHC",
            "SCOUT": "Surview",
            "MPR": "MPR {view} thick",
        },
        image_types={
            "": "ORIGINAL\\PRIMARY\\M_SE\\M\\SE",
            "SWI": "ORIGINAL\\PRIMARY\\M_FFE\\M\\FFE",
            "ADC": "DERIVED\\PRIMARY\\ADC\\UNSPECIFIED\\ADC",
            "CT": "ORIGINAL\\PRIMARY\\AXIAL\\HELIX",
            "CT_BONE": "ORIGINAL\\PRIMARY\\AXIAL\\HELIX",
            "SCOUT": "ORIGINAL\\PRIMARY\\LOCALIZER",
            "MPR": "DERIVED\\SECONDARY\\MPR",
        },
        kernels=("UB", "YD"),
        private=_philips_private,
    ),
    "UIH": Style(
        syntaxes=(ExplicitVRLittleEndian, JPEG2000Lossless),
        character_set="ISO_IR 192",
        instance_order="interleaved",
        spacing_is_gap=True,
        mr_pixels=PixelFormat(16, signed=False),
        ct_pixels=PixelFormat(16, signed=True),
        file_name=lambda modality, number, uid: f"{number:08d}.dcm",
        folder_separator="_",
        view_words=("tra", "cor", "sag"),
        names={
            "T1": "t1_fse_{view}",
            "T1_3D": "t1_gre_fsp_3d_{view}",
            "T1C": "t1_fse_{view}+C",
            "T1C_3D": "t1_gre_fsp_3d_{view}+C",
            "T2": "t2_fse_{view}",
            "FLAIR": "t2_fse_flair_{view}",
            "DWI": "epi_dwi_{view}_b1000",
            "ADC": "epi_dwi_{view}_ADC",
            "SWI": "gre_swi_{view}",
            "CT": "Head Routine",
            "CT_BONE": "Head Bone",
            "LOCALIZER": "scout_3plane",
            "SCOUT": "Topo",
            "MPR": "MPR_{view}",
        },
        image_types={
            "": "ORIGINAL\\PRIMARY\\M\\SE",
            "ADC": "DERIVED\\PRIMARY\\ADC",
            "MPR": "DERIVED\\SECONDARY\\MPR",
            "SCOUT": "ORIGINAL\\PRIMARY\\LOCALIZER",
            "LOCALIZER": "ORIGINAL\\PRIMARY\\LOCALIZER",
        },
        kernels=("B_SOFT", "B_BONE"),
        private=_uih_private,
    ),
    "TOSHIBA": Style(
        syntaxes=(ExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless),
        character_set="ISO_IR 100",
        instance_order="interleaved",
        spacing_is_gap=True,
        mr_pixels=PixelFormat(16, signed=False),
        ct_pixels=PixelFormat(16, signed=True),
        file_name=lambda modality, number, uid: f"{uid}.dcm",
        folder_separator="_",
        view_words=("Axial", "Coronal", "Sagittal"),
        names={
            "CT": "Head 5.0 mm Axial",
            "CT_BONE": "Head Bone FC81",
            "SCOUT": "Scano",
            "LOCALIZER": "Scano",
            "MPR": "MPR {view}",
        },
        image_types={
            "": "ORIGINAL\\PRIMARY\\AXIAL",
            "SCOUT": "ORIGINAL\\PRIMARY\\LOCALIZER",
            "LOCALIZER": "ORIGINAL\\PRIMARY\\LOCALIZER",
            "MPR": "DERIVED\\SECONDARY\\MPR",
        },
        kernels=("FC21", "FC81"),
        private=_toshiba_private,
    ),
}
