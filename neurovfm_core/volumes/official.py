"""The preset `official`: what the published weights' own loader does to a volume.

Kept apart because it is deliberately worse: no low-pass before decimation, the slice axis
guessed from sizes, a background voxel of 0 where the grid runs out. Use it with the
published weights only.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovfm_core.vocabulary import PATCH_SHAPE, WIDTH_LEVEL_HU, Modality, Window
from neurovfm_core.volumes.intensity import CLIP_PERCENTILES
from neurovfm_core.volumes.orientation import View, nearest_axes, orient
from neurovfm_core.volumes.quality import check_size
from neurovfm_core.volumes.resampling import AxisMap, interpolation_operator, resample
from neurovfm_core.volumes.volume import Volume

EPSILON = 1e-8
BACKGROUND_PERCENTILE = 10
CT_FOREGROUND_HU = -500


@dataclass(frozen=True, slots=True)
class OfficialVolume:
    """A volume on the official grid, intensities not yet quantised.

    Attributes
    ----------
    array : (D, H, W)
        In the dtype of the input: integers are truncated towards zero, as ITK does.
    foreground : (D, H, W) bool
    affine : (4, 4) float64
        Voxel (d, h, w) to RAS mm.
    """

    array: NDArray[Any]
    foreground: NDArray[np.bool_]
    view: View
    affine: NDArray[np.float64]
    modality: Modality

    def images(self) -> dict[Window | None, NDArray[np.float64]]:
        """Return the network's inputs in [0, 1]: one image for MR (key None), three for CT."""
        values = self.array.astype(np.float64)
        if self.modality is Modality.MR:
            clipped = np.clip(values, *np.percentile(values, CLIP_PERCENTILES))
            low, high = clipped.min(), clipped.max()
            return {None: (clipped - low) / (high - low + EPSILON)}
        images: dict[Window | None, NDArray[np.float64]] = {}
        for window, (width, level) in WIDTH_LEVEL_HU.items():
            low = level - width / 2
            images[window] = (np.clip(values, low, low + width) - low) / (width + EPSILON)
        return images


def official_slice_axis(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> int:
    """Guess the slice axis as the official loader does, on an image oriented to (x, y, z).

    The axis with the smallest size among sizes that occur once; z if all spacings are equal.
    Where no size occurs once the official loader crashes; here the largest spacing decides.
    """
    if len(set(spacing_mm)) == 1:
        return 2
    single = [size for size in shape if shape.count(size) == 1]
    return shape.index(min(single)) if single else int(np.argmax(spacing_mm))


def load_official(volume: Volume, slice_mm: float = 4.0, in_plane_mm: float = 1.0) -> OfficialVolume:
    """Orient, resample, crop and threshold a volume as the official loader does.

    Raises
    ------
    Excluded
        TOO_SMALL if an axis is shorter than one patch.
    """
    of_xyz = nearest_axes(volume.affine)
    # NIfTI keeps spacings in single precision, and the official loader sees those; norms of an
    # oblique affine differ in the last digits, which would decide truncations and ties.
    spacing_mm = [float(np.float32(mm)) for mm in volume.spacing_mm]
    slice_xyz = official_slice_axis(
        tuple(volume.array.shape[axis] for axis in of_xyz), tuple(spacing_mm[axis] for axis in of_xyz)
    )
    oriented, view = orient(volume, of_xyz[slice_xyz])
    sizes, operators, to_input = [], [], np.eye(4)
    targets = (slice_mm, in_plane_mm, in_plane_mm)
    for axis, (num_in, mm, target) in enumerate(zip(oriented.array.shape, oriented.spacing_mm, targets, strict=True)):
        spacing = float(np.float32(mm))
        num_resampled = int(num_in * (spacing / target))
        num_out, excess = num_resampled - num_resampled % PATCH_SHAPE[axis], num_resampled % PATCH_SHAPE[axis]
        step = target / spacing
        first = excess // 2 * step
        operators.append(interpolation_operator(AxisMap(num_in, num_out, first, step)))
        to_input[axis, axis], to_input[axis, 3] = step, first
        sizes.append(num_resampled)
    check_size(tuple(sizes))
    depth, rows, columns = operators
    values = np.ascontiguousarray(resample(oriented.array, (depth, rows, columns)))
    dtype = volume.array.dtype
    if dtype.kind in "iu":
        values = np.clip(values, np.iinfo(dtype).min, np.iinfo(dtype).max)
    array = values.astype(dtype)
    if volume.modality is Modality.CT:
        foreground = array > CT_FOREGROUND_HU
    else:
        foreground = array > np.percentile(array.astype(np.float64), BACKGROUND_PERCENTILE)
    return OfficialVolume(array, foreground, view, oriented.affine @ to_input, volume.modality)
