"""Preprocess one volume: oriented, resampled, quantised, with its foreground."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.params import Params
from neurovfm_core.vocabulary import PATCH_SHAPE, Modality
from neurovfm_core.volumes.foreground import foreground_ct, foreground_mr
from neurovfm_core.volumes.intensity import clip_limits, encode_ct, encode_mr
from neurovfm_core.volumes.official import load_official
from neurovfm_core.volumes.orientation import View, acquired_slice_axis, check_geometry, orient
from neurovfm_core.volumes.quality import check_intensity, check_size, quality
from neurovfm_core.volumes.resampling import antialiased_operator, centred_map, resample
from neurovfm_core.volumes.volume import Volume

MIN_FOREGROUND_ML = 10
"""Less is no head: about two and a half tokens."""

Millimetres = Annotated[float, Field(gt=0.2, le=10)]


class PreprocessParams(Params):
    """How a volume is brought to the common grid and to 8 bits."""

    preset: Literal["paper", "official"] = "paper"
    """`paper`: as published, anti-aliased, whole head kept. `official`: as the published weights' own
    loader does it (cubic B-spline without low-pass, centred crop, simple thresholds)."""
    in_plane_mm: Millimetres = 1.0
    """Voxel size within a slice (paper: 1 mm)."""
    slice_mm: Millimetres = 4.0
    """Voxel size along the slice axis (paper: 4 mm)."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One volume on the common grid; every axis is a multiple of the patch.

    Attributes
    ----------
    code : (D, H, W) uint8
        MR: 0 to 255. CT: the joint code of the three windows, see `decode_ct`.
    foreground : (D, H, W) bool
        True where the patient is.
    spacing_mm
        Along D, H, W.
    affine : (4, 4) float64
        Voxel (d, h, w) to patient coordinates, RAS, mm: the way back for evidence maps.
    qc
        Figures about this volume, by name; see `quality`.
    """

    code: NDArray[np.uint8]
    foreground: NDArray[np.bool_]
    modality: Modality
    spacing_mm: tuple[float, float, float]
    view: View
    affine: NDArray[np.float64]
    qc: dict[str, float]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches along D, H, W."""
        d, h, w = (size // patch for size, patch in zip(self.code.shape, PATCH_SHAPE, strict=True))
        return d, h, w


def prepare(volume: Volume, params: PreprocessParams) -> Prepared:
    """Bring a volume to the common grid and to one byte per voxel.

    Parameters
    ----------
    volume
        MR in any unit, CT in HU; any axis order.

    Raises
    ------
    Excluded
        IMPLAUSIBLE_GEOMETRY, IMPLAUSIBLE_INTENSITY, TOO_SMALL or EMPTY_FOREGROUND.
    """
    check_geometry(volume)
    make = _prepare_official if params.preset == "official" else _prepare_paper
    prepared = make(volume, params)
    if prepared.qc["foreground_ml"] < MIN_FOREGROUND_ML:
        raise Excluded(
            Reason.EMPTY_FOREGROUND,
            f"{prepared.qc['foreground_ml']:.1f} ml of foreground, at least {MIN_FOREGROUND_ML} are needed",
        )
    return prepared


def _prepare_paper(volume: Volume, params: PreprocessParams) -> Prepared:
    oriented, view = orient(volume, acquired_slice_axis(volume))
    target_mm = (params.slice_mm, params.in_plane_mm, params.in_plane_mm)
    maps = [
        centred_map(num, spacing, target)
        for num, spacing, target in zip(oriented.array.shape, oriented.spacing_mm, target_mm, strict=True)
    ]
    check_size(tuple(axis.num_out for axis in maps))
    depth, rows, columns = (antialiased_operator(axis) for axis in maps)
    resampled = np.ascontiguousarray(resample(oriented.array, (depth, rows, columns)))
    check_intensity(resampled, volume.modality)
    limits: dict[str, float] = {}
    if volume.modality is Modality.MR:
        low, high = clip_limits(resampled)
        code = encode_mr(resampled, low, high)
        foreground = foreground_mr(code)
        limits = {"clip_low": low, "clip_high": high}
    else:
        code = encode_ct(resampled)
        foreground = foreground_ct(resampled)
    qc = quality(resampled, code, foreground, volume.modality, target_mm) | limits
    code, foreground, first = fit_to_patches(code, foreground)
    to_input = np.eye(4)
    for axis, (axis_map, start) in enumerate(zip(maps, first, strict=True)):
        to_input[axis, axis] = axis_map.step
        to_input[axis, 3] = axis_map.first + axis_map.step * start
    return Prepared(code, foreground, volume.modality, target_mm, view, oriented.affine @ to_input, qc)


def _prepare_official(volume: Volume, params: PreprocessParams) -> Prepared:
    loaded = load_official(volume, params.slice_mm, params.in_plane_mm)
    check_intensity(loaded.array, volume.modality)
    if volume.modality is Modality.MR:
        code = np.floor(255 * loaded.images()[None]).astype(np.uint8)
    else:
        # Three 8-bit windows do not fit one byte; blood and bone keep the paper's 4 bits.
        code = encode_ct(loaded.array)
    target_mm = (params.slice_mm, params.in_plane_mm, params.in_plane_mm)
    qc = quality(loaded.array.astype(np.float32), code, loaded.foreground, volume.modality, target_mm)
    return Prepared(code, loaded.foreground, volume.modality, target_mm, loaded.view, loaded.affine, qc)


def fit_to_patches(
    code: NDArray[np.uint8], foreground: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[int, ...]]:
    """Crop or pad every axis to whole patches, about the centre: crop if that loses no foreground.

    Returns
    -------
    code, foreground
        Padded with 0 and False: the darkest level, which is air.
    first
        Index, on the given grid, of the first voxel returned; negative where padded.
    """
    window, margins, first = [], [], []
    for axis, (size, patch) in enumerate(zip(code.shape, PATCH_SHAPE, strict=True)):
        excess = size % patch
        start = excess // 2
        occupied = np.flatnonzero(foreground.any(axis=tuple({0, 1, 2} - {axis})))
        kept = slice(start, size - (excess - start))
        if len(occupied) == 0 or (occupied[0] >= kept.start and occupied[-1] < kept.stop):
            window.append(kept)
            margins.append((0, 0))
            first.append(start)
        else:
            missing = patch - excess
            window.append(slice(None))
            margins.append((missing // 2, missing - missing // 2))
            first.append(-(missing // 2))
    inside = tuple(window)
    return np.pad(code[inside], margins), np.pad(foreground[inside], margins), tuple(first)
