"""The tokens of one volume: what a shard stores and a model reads."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.vocabulary import PATCH_SHAPE, VOXELS_PER_TOKEN, Modality, Split
from neurovfm_core.volumes import Prepared, View, to_patches

Grid = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class VolumeTokens:
    """Tokens that hold patient, and where they lie; everything that must change together.

    Attributes
    ----------
    tokens : (N, 1024) uint8
        4 x 16 x 16 stored voxels each, row-major over (d, h, w). Read-only where they come from a shard.
    coords : (N, 3) int32
        Position (d, h, w) of each token on the grid. Rows are in raster order, d slowest.
    foreground_count : (N,) uint16
        Patient voxels in each token, 0 to 1024.
    grid
        Tokens along D, H, W, empty ones included.
    spacing_mm
        Of voxels along D, H, W.
    affine : (4, 4) float64
        Voxel (d, h, w) of the grid to patient coordinates, RAS, mm.
    view
        How the volume was acquired; a flip or swap does not change that.
    """

    volume_id: str
    study_id: str
    patient_id: str
    split: Split
    modality: Modality
    tokens: NDArray[np.uint8]
    coords: NDArray[np.int32]
    foreground_count: NDArray[np.uint16]
    grid: Grid
    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]
    view: View

    @classmethod
    def from_prepared(
        cls, prepared: Prepared, *, volume_id: str, study_id: str, patient_id: str, split: Split
    ) -> "VolumeTokens":
        """Cut a prepared volume into tokens and keep those with any foreground.

        Raises
        ------
        Excluded
            EMPTY_FOREGROUND if none has.
        """
        patches = to_patches(prepared)
        kept = np.flatnonzero(patches.foreground_count)
        if len(kept) == 0:
            raise Excluded(Reason.EMPTY_FOREGROUND, "no token holds foreground", where=volume_id)
        return cls(
            volume_id=volume_id,
            study_id=study_id,
            patient_id=patient_id,
            split=split,
            modality=prepared.modality,
            tokens=patches.patches.reshape(-1, VOXELS_PER_TOKEN)[kept],
            coords=raster_coords(kept, patches.shape),
            foreground_count=patches.foreground_count[kept],
            grid=patches.shape,
            spacing_mm=prepared.spacing_mm,
            affine=prepared.affine,
            view=prepared.view,
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, min_foreground_share: float) -> "VolumeTokens":
        """Keep tokens of which at least this share is patient; 0.25 is the default elsewhere."""
        keep = self.foreground_count >= min_foreground_share * VOXELS_PER_TOKEN
        return self if keep.all() else self._rows(np.flatnonzero(keep))

    def crop(self, start: Grid, size: Grid) -> "VolumeTokens":
        """Cut a box of tokens out; its first corner gets the coordinates (0, 0, 0).

        Raises
        ------
        ValueError
            The box is empty or leaves the grid.
        """
        first, length = np.array(start, np.int32), np.array(size, np.int32)
        if (first < 0).any() or (length < 1).any() or (first + length > self.grid).any():
            raise ValueError(f"box {start} + {size} is not inside the grid {self.grid}")
        inside = ((self.coords >= first) & (self.coords < first + length)).all(axis=1)
        cut = self._rows(np.flatnonzero(inside))
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ (first * PATCH_SHAPE)
        return replace(cut, coords=cut.coords - first, grid=(size[0], size[1], size[2]), affine=affine)

    def flip(self, axis: int) -> "VolumeTokens":
        """Mirror the volume along an axis: 0 is D, 1 is H, 2 is W. Twice is the identity."""
        tokens = np.flip(self.tokens.reshape(-1, *PATCH_SHAPE), axis + 1)
        coords = self.coords.copy()
        coords[:, axis] = self.grid[axis] - 1 - coords[:, axis]
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, axis] * (self.grid[axis] * PATCH_SHAPE[axis] - 1)
        affine[:3, axis] *= -1
        return replace(self, affine=affine)._in_raster_order(tokens, coords)

    def swap_in_plane(self) -> "VolumeTokens":
        """Exchange rows and columns of every slice. Twice is the identity."""
        (d, h, w), (depth, rows, columns) = self.grid, self.spacing_mm
        swapped = replace(self, grid=(d, w, h), spacing_mm=(depth, columns, rows), affine=self.affine[:, [0, 2, 1, 3]])
        tokens = self.tokens.reshape(-1, *PATCH_SHAPE).transpose(0, 1, 3, 2)
        return swapped._in_raster_order(tokens, self.coords[:, [0, 2, 1]])

    def dense(self) -> NDArray[np.uint8]:
        """Return the (D, H, W) stored volume, 0 where no token was kept."""
        d, h, w = self.grid
        pd, ph, pw = PATCH_SHAPE
        volume = np.zeros((d, pd, h, ph, w, pw), np.uint8)
        # Indexing with three arrays around slices puts the token axis first.
        volume[self.coords[:, 0], :, self.coords[:, 1], :, self.coords[:, 2], :] = self.tokens.reshape(-1, *PATCH_SHAPE)
        return volume.reshape(d * pd, h * ph, w * pw)

    def _rows(self, rows: NDArray[np.integer]) -> "VolumeTokens":
        return replace(
            self,
            tokens=self.tokens[rows],
            coords=self.coords[rows],
            foreground_count=self.foreground_count[rows],
        )

    def _in_raster_order(self, tokens: NDArray[np.uint8], coords: NDArray[np.int32]) -> "VolumeTokens":
        order = np.argsort(np.ravel_multi_index(tuple(coords.T), self.grid))
        return replace(
            self,
            tokens=tokens[order].reshape(-1, VOXELS_PER_TOKEN),
            coords=coords[order],
            foreground_count=self.foreground_count[order],
        )


def raster_coords(raster: NDArray[np.integer], grid: Grid) -> NDArray[np.int32]:
    """Return (N, 3) int32 grid coordinates of raster positions."""
    return np.stack(np.unravel_index(raster, grid), axis=1).astype(np.int32)
