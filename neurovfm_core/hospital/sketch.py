"""A head while it is being drawn: coordinates, tissues, masks; and the lists of brain voxels."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neurovfm_core.hospital.shapes import Array, Canvas, Place, Points

SPACING_MM = 1.6
LOW_MM, HIGH_MM = (-94.0, -122.0, -122.0), (94.0, 114.0, 104.0)
"""The corners of the drawn part of the head's frame: the neck is cut below the chin."""


@dataclass(frozen=True, slots=True)
class Build:
    """How one patient is built, beyond what is wrong."""

    skull_mm: float
    scalp_mm: float
    ventricle_scale: float
    third_mm: float
    sulcus_mm: float
    gap_mm: float
    """Width of the fluid between skull and brain."""


@dataclass(slots=True)
class Sketch:
    """The whole grid."""

    points: Points  # (X, Y, Z) each: the frame of the head, bent a little for this patient
    depth: Array  # (X, Y, Z) mm below the inner surface of the skull, negative outside
    canvas: Canvas  # (X, Y, Z)
    skin: Array  # (X, Y, Z) mm to the skin, negative inside
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def box(self, center: ArrayLike, reach: ArrayLike) -> tuple[slice, ...]:
        """Return the part of the grid within `reach` mm of a place."""
        reaches = np.broadcast_to(np.asarray(reach, dtype=float), 3) + 6.0
        low = np.floor((np.array(center) - reaches - LOW_MM) / SPACING_MM).astype(int)
        high = np.ceil((np.array(center) + reaches - LOW_MM) / SPACING_MM).astype(int) + 1
        shape = self.depth.shape
        return tuple(slice(min(max(a, 0), n), max(min(b, n), 0)) for a, b, n in zip(low, high, shape, strict=True))

    def within(self, box: tuple[slice, ...]) -> Points:
        """Return the coordinates of a box."""
        return (self.points[0][box], self.points[1][box], self.points[2][box])

    def mark(self, label: str, where: NDArray[np.bool_], box: tuple[slice, ...] = (slice(None),)) -> None:
        """Add voxels to the mask of a label."""
        self.mask(label)[box] |= where

    def mask(self, label: str) -> NDArray[np.bool_]:
        """Return the mask of a label, empty at first."""
        return self.masks.setdefault(label, np.zeros(self.depth.shape, dtype=bool))


@dataclass(slots=True)
class Brain:
    """The voxels inside the skull, as lists of N, and what lesions need to know of them."""

    index: NDArray[np.intp]  # flat index into the grid
    points: Points  # frame of the head
    origin: Points  # where that tissue would sit if nothing displaced it
    depth: Array  # mm below the inner surface of the skull
    canvas: Canvas
    moved: Array  # mm by which the tissue is displaced
    collection: Array  # mm of fluid or blood between skull and brain
    surface: Array  # mm below the surface of the brain
    parenchyma: Array  # share of the voxel
    white: Array  # share of the voxel
    ventricle: Array  # mm to the nearest lateral ventricle, negative inside
    sulcus: Array  # share of subarachnoid fluid

    def near(self, center: Place, reach: float) -> NDArray[np.intp]:
        """Return the positions in the lists within `reach` mm of a place, as a cube."""
        x, y, z = (np.abs(part - np.float32(c)) < reach for part, c in zip(self.points, center, strict=True))
        return np.flatnonzero(x & y & z)

    def at(self, where: NDArray[np.intp]) -> Points:
        """Return the coordinates of some positions."""
        return (self.points[0][where], self.points[1][where], self.points[2][where])

    def was_at(self, where: NDArray[np.intp]) -> Points:
        """Return where the tissue of some positions belongs."""
        return (self.origin[0][where], self.origin[1][where], self.origin[2][where])

    def mark(self, sketch: Sketch, label: str, where: NDArray[np.intp]) -> None:
        """Add positions of the lists to the mask of a label."""
        sketch.mask(label).reshape(-1)[self.index[where]] = True
