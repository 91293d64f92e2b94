"""Which series are refused as a whole, by what their headers say they are."""

import re

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from neurovfm_core.deid.export import SECONDARY_CAPTURE_ROOT
from neurovfm_core.dicom.frames import Frame
from neurovfm_core.dicom.geometry import orientations
from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.vocabulary import Modality

LOCALIZER_MAX_SLICES = 32
LOCALIZER_NAME = re.compile(
    r"\b(?:\w*scout|locali[sz]ers?|loc|topo|topogramm?|survey|surview|scanogram|pilot|3.?plane)\b", re.I
)
PROJECTIONS = {
    *("MIP", "MINIP", "MNIP", "MPR", "CPR", "CURVED", "RADIAL", "PARALLEL", "THICK MPR", "PROJECTION IMAGE"),
    *("REFORMATTED", "RFMT", "VOLUME_RENDERING", "CSA MPR", "CSA MIP", "CSA 3D EDITOR", "CSA RESAMPLED"),
    *("RESAMPLED", "SUBTRACTION", "SUB"),
}
PARAMETER_MAPS = {
    "PERFUSION_MAP",
    "RCBV",
    "RCBF",
    "CBV",
    "CBF",
    "MTT",
    "TTP",
    "TMAX",
    "FA",
    "EADC",
    "EXP_ADC",
}
DERIVED_NAME = re.compile(
    r"\b(?:mip|minip|mnip|mpr|cpr|reformat\w*|rfmt|vrt?|projection|subtract\w*|rcb[fv]|mtt|ttp|tmax)\b", re.I
)


def words_of(header: Dataset) -> set[str]:
    """Return the words of ImageType."""
    return {str(word).strip().upper() for word in header.get("ImageType") or ()}


def name_of(header: Dataset) -> str:
    """Return the words of the series and protocol names, separated by blanks."""
    text = f"{header.get('SeriesDescription', '')} {header.get('ProtocolName', '')}"
    return text.replace("_", " ").replace("-", " ").replace("/", " ")


def check_series(frames: list[Frame]) -> None:
    """Raise `Excluded` if these slices, all of one series, are not a volume of the patient.

    Raises
    ------
    Excluded
        `SECONDARY_CAPTURE`, `NOT_CT_OR_MR`, `LOCALIZER`, `DERIVED` or `MIXED_ORIENTATIONS`.
    """
    header = frames[0].header
    if str(header.get("SOPClassUID", "")).startswith(SECONDARY_CAPTURE_ROOT):
        raise Excluded(Reason.SECONDARY_CAPTURE, "a picture of the screen")
    if header.get("Modality") not in list(Modality):
        raise Excluded(Reason.NOT_CT_OR_MR, "neither CT nor MR")
    words: set[str] = set().union(*(words_of(frame.header) for frame in frames))
    name = name_of(header)
    distinct = orientations(frames)
    if "LOCALIZER" in words:
        raise Excluded(Reason.LOCALIZER, "ImageType says LOCALIZER")
    # A scout may be one thin 3D slab; a long stack under that name is an acquisition.
    if LOCALIZER_NAME.search(name) and len(frames) <= LOCALIZER_MAX_SLICES * len(distinct):
        raise Excluded(Reason.LOCALIZER, f"named as one, {len(frames)} slices")
    if len(distinct) >= 3 and _perpendicular(distinct):
        raise Excluded(Reason.LOCALIZER, f"{len(distinct)} orientations at right angles")
    derived = any("DERIVED" in words_of(frame.header) for frame in frames)
    if derived and words & (PROJECTIONS | PARAMETER_MAPS):
        raise Excluded(Reason.DERIVED, f"ImageType says {sorted(words & (PROJECTIONS | PARAMETER_MAPS))[0]}")
    if derived and DERIVED_NAME.search(name):
        raise Excluded(Reason.DERIVED, "derived, and named as a projection, a reformat or a map")
    if len(distinct) > 1:
        raise Excluded(Reason.MIXED_ORIENTATIONS, f"{len(distinct)} orientations in one series")


def _perpendicular(distinct: list[NDArray[np.float64]]) -> bool:
    normals = [np.cross(cosines[:3], cosines[3:]) for cosines in distinct]
    return any(
        max(abs(a @ b), abs(a @ c), abs(b @ c)) < 0.35
        for i, a in enumerate(normals)
        for j, b in enumerate(normals[:i])
        for c in normals[:j]
    )
