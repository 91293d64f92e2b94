"""Solids as signed distances, smooth noise, and a canvas that mixes two tissues per voxel.

Distances are in mm, negative inside. Points are three float32 arrays (x, y, z) of one shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovfm_core.hospital.contrast import Tissue

Array = NDArray[np.floating[Any]]
Points = tuple[Array, Array, Array]
Place = tuple[float, float, float]


def ellipsoid(points: Points, center: Place, radii: Place) -> Array:
    """Return the signed distance to an ellipsoid, exact on its surface, first order near it."""
    scaled = [(part - np.float32(c)) / np.float32(r) for part, c, r in zip(points, center, radii, strict=True)]
    # The floor keeps the quotient finite at the very centre, where it tends to a radius.
    norm = np.sqrt(np.maximum(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2, np.float32(1e-8)))
    slope = np.sqrt(sum((part / np.float32(r)) ** 2 for part, r in zip(scaled, radii, strict=True)))
    return norm * (norm - 1) / np.maximum(slope, norm / np.float32(max(radii)))


def capsule(points: Points, start: Place, stop: Place, radius: float, stop_radius: float | None = None) -> Array:
    """Return the signed distance to a rod with round ends whose radius runs from one to the other."""
    axis = np.subtract(stop, start).astype(np.float32)
    offset = [part - np.float32(c) for part, c in zip(points, start, strict=True)]
    along = (offset[0] * axis[0] + offset[1] * axis[1] + offset[2] * axis[2]) / np.float32(axis @ axis)
    np.clip(along, 0, 1, out=along)
    gap = np.sqrt(sum((part - along * a) ** 2 for part, a in zip(offset, axis, strict=True)))
    end = radius if stop_radius is None else stop_radius
    return gap - (np.float32(radius) + along * np.float32(end - radius))


def chain(points: Points, nodes: Sequence[tuple[float, float, float, float]], scale: float = 1.0) -> Array:
    """Return the signed distance to a bent rod through nodes (x, y, z, radius)."""
    distance = np.full(points[0].shape, np.inf, dtype=np.float32)
    for first, second in pairwise(nodes):
        rod = capsule(points, first[:3], second[:3], first[3] * scale, second[3] * scale)
        np.minimum(distance, rod, out=distance)
    return distance


def distance_to(points: Points, center: Place) -> Array:
    """Return the distance to a point, mm."""
    return np.sqrt(sum((part - np.float32(c)) ** 2 for part, c in zip(points, center, strict=True)))


def smooth_min(first: Array, second: Array, width: float) -> Array:
    """Return the minimum of two distances, rounded over `width` mm where they meet."""
    blend = np.maximum(np.float32(width) - np.abs(first - second), 0) / np.float32(width)
    return np.minimum(first, second) - blend * blend * np.float32(width / 4)


def smooth_step(value: Array, low: float, high: float) -> Array:
    """Return 0 at `low` and below, 1 at `high` and above, without a kink between."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True, slots=True)
class Waves:
    """Smooth noise of unit variance: a sum of plane waves, so it can be read at any point."""

    vectors: Array  # (K, 3), rad / mm
    phases: Array  # (K,)

    @classmethod
    def draw(cls, rng: np.random.Generator, wavelength_mm: float, count: int = 12) -> "Waves":
        """Draw waves of all directions with about this wavelength."""
        directions = rng.standard_normal((count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = wavelength_mm * rng.uniform(0.8, 1.25, (count, 1))
        vectors = (2 * np.pi / lengths * directions).astype(np.float32)
        return cls(vectors, rng.uniform(0, 2 * np.pi, count).astype(np.float32))

    def at(self, points: Points) -> Array:
        """Return the noise at the points."""
        total = np.zeros(points[0].shape, dtype=np.float32)
        for (kx, ky, kz), phase in zip(self.vectors, self.phases, strict=True):
            total += np.cos(kx * points[0] + ky * points[1] + kz * points[2] + phase)
        return total * np.float32(np.sqrt(2 / len(self.phases)))


@dataclass(frozen=True, slots=True)
class Canvas:
    """Voxels that are `share` of tissue `above` and the rest of tissue `below`: soft edges, six bytes."""

    below: NDArray[np.uint8]
    above: NDArray[np.uint8]
    share: Array
    edge_mm: float
    """A voxel's width: over this distance a surface goes from nothing to full."""

    @classmethod
    def blank(cls, shape: tuple[int, ...], edge_mm: float) -> "Canvas":
        """Return a canvas of air."""
        return cls(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8), np.zeros(shape, np.float32), edge_mm)

    def soft(self, distance: Array) -> Array:
        """Return how much of each voxel lies inside a solid."""
        return np.clip(np.float32(0.5) - distance / np.float32(self.edge_mm), 0, 1)

    def share_of(self, tissue: Tissue) -> Array:
        """Return how much of each voxel a tissue fills."""
        return (self.above == tissue) * self.share + (self.below == tissue) * (1 - self.share)

    def paint(self, tissue: Tissue, amount: Array, where: tuple[slice, ...] | NDArray[np.intp] | None = None) -> None:
        """Cover `amount` of each voxel with a tissue; of what was there the dominant tissue stays."""
        touched = amount > 0.02
        if isinstance(where, np.ndarray):
            below, above, share = self.below, self.above, self.share
            place: NDArray[Any] = where[touched]
        else:
            box = (slice(None),) if where is None else where
            below, above, share = self.below[box], self.above[box], self.share[box]
            place = touched
        below[place] = np.where(share[place] > 0.5, above[place], below[place])
        above[place] = np.uint8(tissue)
        share[place] = amount[touched]
