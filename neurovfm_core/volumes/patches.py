"""The patches of one volume and the grid they tile, as one value."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from neurovfm_core.vocabulary import PATCH_SHAPE, VOXELS_PER_TOKEN
from neurovfm_core.volumes.preparation import Prepared

Grid = tuple[int, int, int]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """The patches of one volume, and the grid they tile.

    Attributes
    ----------
    patches : (N, 4, 16, 16) uint8
        Row-major over the grid: d slowest, w fastest.
    foreground_count : (N,) uint16
        Foreground voxels of each patch, 0 to 1024.
    shape
        (d, h, w) patches per axis, N = d * h * w.
    """

    patches: NDArray[np.uint8]
    foreground_count: NDArray[np.uint16]
    shape: Grid

    def flip(self, axis: int) -> "PatchGrid":
        """Mirror the volume along an axis: 0 is D, 1 is H, 2 is W. Twice is the identity."""
        patches = np.flip(self.patches.reshape(*self.shape, *PATCH_SHAPE), (axis, axis + 3))
        counts = np.flip(self.foreground_count.reshape(self.shape), axis)
        return PatchGrid(patches.reshape(-1, *PATCH_SHAPE), counts.ravel(), self.shape)

    def swap_in_plane(self) -> "PatchGrid":
        """Exchange rows and columns of every slice. Twice is the identity."""
        d, h, w = self.shape
        patches = self.patches.reshape(d, h, w, *PATCH_SHAPE).transpose(0, 2, 1, 3, 5, 4)
        counts = self.foreground_count.reshape(self.shape).transpose(0, 2, 1)
        return PatchGrid(patches.reshape(-1, *PATCH_SHAPE), counts.ravel(), (d, w, h))

    def dense(self) -> NDArray[np.uint8]:
        """Return the (D, H, W) volume that the patches tile."""
        d, h, w = self.shape
        blocks = self.patches.reshape(d, h, w, *PATCH_SHAPE).transpose(0, 3, 1, 4, 2, 5)
        return blocks.reshape(d * PATCH_SHAPE[0], h * PATCH_SHAPE[1], w * PATCH_SHAPE[2])


def to_patches(prepared: Prepared) -> PatchGrid:
    """Cut a prepared volume into patches of 4 x 16 x 16 voxels and count their foreground."""
    shape, blocks = _blocks(prepared.code)
    _, foreground = _blocks(prepared.foreground)
    counts = foreground.reshape(-1, VOXELS_PER_TOKEN).sum(axis=1, dtype=np.uint16)
    return PatchGrid(blocks.reshape(-1, *PATCH_SHAPE), counts, shape)


def _blocks(volume: NDArray[Scalar]) -> tuple[Grid, NDArray[Scalar]]:
    (pd, ph, pw), (D, H, W) = PATCH_SHAPE, volume.shape
    shape = (D // pd, H // ph, W // pw)
    split = volume.reshape(shape[0], pd, shape[1], ph, shape[2], pw)
    return shape, split.transpose(0, 2, 4, 1, 3, 5)
