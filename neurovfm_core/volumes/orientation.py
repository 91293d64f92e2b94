"""Which way up: any axis order and sign to (D, H, W) with D the slice axis.

The oriented frame is RPI: x runs to the patient's Right, y to Posterior, z to Inferior
(letters name the direction of increasing index). Rows and columns of a slice follow from
it: axial (z, y, x), coronal (y, z, x), sagittal (x, y, z).
"""

from enum import IntEnum
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.volumes.volume import Volume

ISOTROPIC_TOLERANCE = 0.01
"""Spacings within this share of the largest are a tie: headers round."""
MIN_SPACING_MM, MAX_SPACING_MM, MAX_EXTENT_MM = 0.05, 12.0, 1000.0
MAX_SHEAR = 0.1
"""Largest cosine between two axes; a grid with more is no box."""


class View(IntEnum):
    """The acquisition axis of a volume, by the plane its slices show: the axis of (z, y, x) that is D."""

    AXIAL = 0
    CORONAL = 1
    SAGITTAL = 2


RPI_AXES = {View.AXIAL: (2, 1, 0), View.CORONAL: (1, 2, 0), View.SAGITTAL: (0, 1, 2)}
"""Which of x, y, z becomes D, H, W."""
RAS_OF_RPI = (1.0, -1.0, -1.0)
"""Sign of x, y, z in RAS."""


def orient(volume: Volume, slice_axis: int) -> tuple[Volume, View]:
    """Turn a volume so that its axes are (D, H, W); an oblique one to the nearest axes.

    Parameters
    ----------
    slice_axis
        Axis of `volume.array` that becomes D.

    Returns
    -------
    Volume
        A view of the same voxels, no copy; its affine maps (d, h, w) to RAS mm.
    View
    """
    order = nearest_axes(volume.affine)
    view = next(view for view, axes in RPI_AXES.items() if order[axes[0]] == slice_axis)
    stored_axes = [order[axis] for axis in RPI_AXES[view]]
    array = volume.array.transpose(stored_axes)
    affine = volume.affine.copy()
    affine[:, :3] = affine[:, stored_axes]
    for axis, rpi_axis in enumerate(RPI_AXES[view]):
        if affine[rpi_axis, axis] * RAS_OF_RPI[rpi_axis] < 0:
            array = np.flip(array, axis)
            affine[:, 3] += affine[:, axis] * (array.shape[axis] - 1)
            affine[:, axis] *= -1
    return Volume(array, affine, volume.modality, slice_axis=0), view


def nearest_axes(affine: NDArray[np.float64]) -> tuple[int, ...]:
    """Return for x, y and z the array axis that runs closest to it: the best of the six assignments."""
    cosines = np.abs(affine[:3, :3]) / np.linalg.norm(affine[:3, :3], axis=0)
    return max(permutations(range(3)), key=lambda order: sum(cosines[x, order[x]] for x in range(3)))


def acquired_slice_axis(volume: Volume) -> int:
    """Return the stack axis: as recorded, else the largest spacing, among equals the last axis."""
    if volume.slice_axis is not None:
        return volume.slice_axis
    spacing = np.array(volume.spacing_mm)
    return int(np.flatnonzero(spacing >= spacing.max() * (1 - ISOTROPIC_TOLERANCE))[-1])


def check_geometry(volume: Volume) -> None:
    """Raise `Excluded` (IMPLAUSIBLE_GEOMETRY) unless the grid could be of a patient."""
    if not np.isfinite(volume.affine).all():
        raise Excluded(Reason.IMPLAUSIBLE_GEOMETRY, "the affine is not finite")
    spacing = np.array(volume.spacing_mm)
    if spacing.min() < MIN_SPACING_MM or spacing.max() > MAX_SPACING_MM:
        sizes = " x ".join(f"{mm:.3g}" for mm in spacing)
        raise Excluded(
            Reason.IMPLAUSIBLE_GEOMETRY,
            f"voxels of {sizes} mm, each side must be in [{MIN_SPACING_MM}, {MAX_SPACING_MM:g}]",
        )
    extent_mm = float((spacing * volume.array.shape).max())
    if extent_mm > MAX_EXTENT_MM:
        raise Excluded(Reason.IMPLAUSIBLE_GEOMETRY, f"{extent_mm:.0f} mm long, at most {MAX_EXTENT_MM:.0f} is expected")
    directions = volume.affine[:3, :3] / spacing
    shear = np.abs(directions.T @ directions - np.eye(3)).max()
    if shear > MAX_SHEAR:
        raise Excluded(Reason.IMPLAUSIBLE_GEOMETRY, f"axes are not at right angles (cosine {shear:.2f})")
