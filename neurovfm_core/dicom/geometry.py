"""Slices become a stack: order, spacing and affine come from positions, never from numbers or tags.

Coordinates here are DICOM's patient coordinates (LPS, mm); `to_ras` is the one place that turns them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurovfm_core.dicom.frames import Frame
from neurovfm_core.errors import Excluded, Reason

SAME_DIRECTION = 0.01  # largest difference of an orientation cosine
SAME_PLACE_MM = 0.01
UNEVEN_SHARE, UNEVEN_MM = 0.05, 0.1  # of a step; the larger one counts
TILT_COSINE = 0.9998  # between the step and the slice normal
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Stack:
    """Evenly spaced slices of one orientation, along their normal."""

    frames: tuple[Frame, ...]
    affine: NDArray[np.float64]  # (4, 4), index (column, row, slice) -> LPS mm

    @property
    def tilted(self) -> bool:
        """Whether the slices are sheared against each other, as with a tilted gantry."""
        step, normal = self.affine[:3, 2], np.cross(self.affine[:3, 0], self.affine[:3, 1])
        return bool(abs(step @ normal) < TILT_COSINE * np.linalg.norm(step) * np.linalg.norm(normal))


def orientations(frames: Sequence[Frame]) -> list[NDArray[np.float64]]:
    """Return the distinct orientations (6 cosines each), in the order of first appearance."""
    distinct: list[NDArray[np.float64]] = []
    for frame in frames:
        cosines = np.array(frame.orientation)
        if all(np.abs(cosines - known).max() > SAME_DIRECTION for known in distinct):
            distinct.append(cosines)
    return distinct


def normal_of(frame: Frame) -> NDArray[np.float64]:
    """Return the unit normal of a slice."""
    normal = np.cross(frame.orientation[:3], frame.orientation[3:])
    return normal / np.linalg.norm(normal)


def by_place(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Return the slices grouped by place, in the order of the slice normal.

    Within a place the order is that of acquisition, which is the only use of
    instance numbers.
    """
    normal = normal_of(min(frames, key=lambda frame: frame.sop_uid))
    along = {id(frame): float(normal @ np.array(frame.position_mm)) for frame in frames}
    places: list[list[Frame]] = []
    last = -np.inf
    for frame in sorted(frames, key=lambda f: (along[id(f)], f.repeat_key, f.sop_uid)):
        if along[id(frame)] - last > SAME_PLACE_MM:
            places.append([])
            last = along[id(frame)]
        places[-1].append(frame)
    for place in places:
        place.sort(key=lambda f: (f.repeat_key, f.sop_uid))
    return places


def stack(frames: Sequence[Frame]) -> Stack:
    """Return the stack that slices in order make.

    Raises
    ------
    Excluded
        `UNEVEN_SPACING` if a step differs from the median step by more than
        5 % and 0.1 mm, or a slice lies off the line through the others.
    """
    first = frames[0]
    positions = np.array([frame.position_mm for frame in frames])
    if len(frames) > 1:
        step = (positions[-1] - positions[0]) / (len(frames) - 1)
        steps = np.diff(positions @ normal_of(first))
        typical = float(np.median(steps))
        allowed = max(UNEVEN_SHARE * typical, UNEVEN_MM)
        worst = float(np.abs(steps - typical).max())
        off_line = positions - positions[0] - np.arange(len(frames))[:, None] * step
        off_line -= np.outer(off_line @ normal_of(first), normal_of(first))
        if worst > allowed or np.abs(off_line).max() > max(allowed, 0.5):
            raise Excluded(
                Reason.UNEVEN_SPACING,
                f"steps from {steps.min():.2f} to {steps.max():.2f} mm over {len(frames)} slices",
            )
    else:
        step = normal_of(first) * float(first.header.get("SliceThickness") or 1.0)
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * first.spacing_mm[1]
    affine[:3, 1] = np.array(first.orientation[3:]) * first.spacing_mm[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return Stack(tuple(frames), affine)


def to_ras(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn an affine to DICOM's LPS millimetres into one to NIfTI's RAS millimetres, or back."""
    return LPS_TO_RAS @ affine


def unsheared(
    volume: NDArray[np.float64], affine: NDArray[np.float64], outside: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shift every slice within its plane so that the stack axis is the slice normal.

    Parameters
    ----------
    volume : (i, j, k) float64
        Columns, rows, slices.
    affine : (4, 4)
        To LPS mm, with the true direction of the steps.
    outside
        Value of voxels that no slice covers.

    Returns
    -------
    volume : (i', j', k) float64
        Linear interpolation along the shift; the grid grows so that nothing is cut off.
    affine : (4, 4)
        With perpendicular axes.
    """
    num_slices = volume.shape[2]
    affine = affine.copy()
    for axis in (0, 1):
        direction = affine[:3, axis]
        drift = float(affine[:3, 2] @ direction / (direction @ direction))  # pixels per slice
        shifts = drift * np.arange(num_slices)
        low, high = int(np.floor(shifts.min())), int(np.ceil(shifts.max()))
        if np.abs(shifts).max() < 1e-3:
            continue
        size = volume.shape[axis] + high - low
        moved = [_shifted(volume[:, :, k], axis, shifts[k] - low, size, outside) for k in range(num_slices)]
        volume = np.stack(moved, axis=2)
        affine[:3, 3] += low * direction
        affine[:3, 2] -= drift * direction
    return volume, affine


def _shifted(image: NDArray[np.float64], axis: int, shift: float, size: int, outside: float) -> NDArray[np.float64]:
    """Return `image` moved by `shift` >= 0 pixels along an axis that becomes `size` long."""
    whole = int(np.floor(shift))
    share = shift - whole
    # One voxel more in front, so that the interpolated edge has a neighbour outside.
    margins = [(0, 0), (0, 0)]
    margins[axis] = (whole + 1, size - whole - image.shape[axis])
    padded = np.pad(image, margins, constant_values=outside)
    here, before = padded.take(range(1, size + 1), axis), padded.take(range(size), axis)
    return here * (1 - share) + before * share
