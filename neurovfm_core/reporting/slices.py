"""Slices of test studies: the patient mask, and where the evidence for a label lies."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray

from neurovfm_core.reporting.drawing import GREEN, RED, WIDTH_IN, Figure, canvas, png_bytes
from neurovfm_core.vocabulary import PATCH_SHAPE

EVIDENCE_COLOURS = LinearSegmentedColormap.from_list("evidence", ["#000004", "#7a1d6b", RED, "#fcffa4"])


@dataclass(frozen=True, slots=True)
class SlicePanel:
    """One slice as it is shown: `image` (H, W) uint8, `foreground` (H, W) bool, `evidence` (H, W) float32."""

    title: str
    image: NDArray[np.uint8]
    foreground: NDArray[np.bool_]
    evidence: NDArray[np.float32]


def token_map(
    coords: NDArray[np.integer], values: NDArray[np.floating], grid: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Add the values of tokens up on their grid.

    Parameters
    ----------
    coords : (T, 3) integer
        Grid coordinates; a token that occurs once per CT window is added up over windows.
    values : (T,)

    Returns
    -------
    (d, h, w) float32
        0 where there is no token.
    """
    result = np.zeros(grid, np.float64)
    np.add.at(result, tuple(np.asarray(coords).T), values)
    return result.astype(np.float32)


def slice_panel(
    title: str,
    image: NDArray[np.uint8],
    foreground: NDArray[np.bool_],
    evidence: NDArray[np.float32],
    affine: NDArray[np.float64],
) -> SlicePanel:
    """Cut the slice with the most evidence and turn it the way radiologists look at it.

    Parameters
    ----------
    image, foreground : (D, H, W)
        A prepared volume, decoded to grey, and its mask.
    evidence : (d, h, w) float32
        From `token_map`; each value is spread over the voxels of its token.
    affine : (4, 4)
        Voxel (d, h, w) to RAS mm.
    """
    token = int(np.clip(evidence, 0, None).sum((1, 2)).argmax())
    # Of the token's slices the fullest: at the ends of a volume some of them are padding.
    first = token * PATCH_SHAPE[0]
    d = first + int(image[first : first + PATCH_SHAPE[0]].mean((1, 2)).argmax())
    spread = evidence[token].repeat(PATCH_SHAPE[1], 0).repeat(PATCH_SHAPE[2], 1)
    spread = spread[: image.shape[1], : image.shape[2]]
    return SlicePanel(
        title,
        as_displayed(image[d], affine),
        as_displayed(foreground[d], affine),
        as_displayed(spread, affine),
    )


def as_displayed(plane: NDArray, affine: NDArray[np.float64]) -> NDArray:
    """Turn an (H, W) plane so that up is superior (or anterior) and left is the patient's right (or front).

    The radiological convention: rows run along the more superior-inferior of the two axes, and both axes
    run against the RAS axis they are nearest to.
    """
    directions = affine[:3, 1:3]
    nearest = [int(np.abs(directions[:, k]).argmax()) for k in (0, 1)]
    signs = [np.sign(directions[nearest[k], k]) for k in (0, 1)]
    turned = plane[:: -1 if signs[0] > 0 else 1, :: -1 if signs[1] > 0 else 1]
    return np.ascontiguousarray(turned if nearest[0] > nearest[1] else turned.T)


def centred(plane: NDArray, side: int) -> NDArray:
    """Return the plane in the middle of a square of zeros."""
    margins = [((side - size) // 2, side - size - (side - size) // 2) for size in plane.shape]
    return np.pad(plane, margins)


def slice_figure(panels: Sequence[SlicePanel], caption: str) -> Figure:
    """Draw every panel twice: with the outline of the patient mask, and with the evidence on top."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    side = max(max(panel.image.shape) for panel in panels)
    cell_in = WIDTH_IN / 4
    with canvas(2 * columns * cell_in, rows * (cell_in + 0.24), layout=None) as figure:
        for i, panel in enumerate(panels):
            left, top = (i % columns) / columns, 1 - (i // columns) / rows
            width, height = 0.97 / (2 * columns), cell_in / (rows * (cell_in + 0.24))
            plain, overlaid = (
                figure.add_axes((left + k / (2 * columns), top - 1 / rows, width, height)) for k in (0, 1)
            )
            for axes in (plain, overlaid):
                axes.set_axis_off()
                axes.imshow(centred(panel.image, side), cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
            if panel.foreground.any():
                outline = centred(panel.foreground, side)
                plain.contour(outline, levels=[0.5], colors=[GREEN], linewidths=0.8)
            positive = np.clip(centred(panel.evidence, side), 0, None)
            strength = positive / positive.max() if positive.max() > 0 else positive
            overlaid.imshow(
                strength,
                cmap=EVIDENCE_COLOURS,
                vmin=0,
                vmax=1,
                alpha=0.75 * np.sqrt(strength),
                interpolation="nearest",
            )
            plain.set_title(panel.title, size=7.5, weight="normal", pad=3)
        image = png_bytes(figure)
    return Figure(
        "slices",
        "Where the evidence lies",
        image,
        "Pairs of slices: " + "; ".join(panel.title for panel in panels),
        caption,
        "evidence",
    )
