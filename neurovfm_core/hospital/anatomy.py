"""Procedural heads: every structure is a formula in millimetres, so each patient can be bent differently.

The frame of the head is upright and unscaled: x to the Left, y to Posterior, z to Superior, origin
between the thalami. What displaces the brain (a mass, a collection) displaces these coordinates, so that
anatomy really moves. Pose and size are in the affine.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from neurovfm_core.hospital.brain import draw_brain, inside_skull, put_back
from neurovfm_core.hospital.findings import Finding
from neurovfm_core.hospital.lesions import collection_mm, draw_lesions, is_collection, mark_implied
from neurovfm_core.hospital.openings import draw_openings
from neurovfm_core.hospital.shapes import Array, Canvas, Points
from neurovfm_core.hospital.sketch import HIGH_MM, LOW_MM, SPACING_MM, Build, Sketch
from neurovfm_core.hospital.skull import cavity, draw_skull


@dataclass(frozen=True, slots=True)
class Head:
    """A head as the scanner finds it: two tissues per voxel, where it lies, where its findings are."""

    below: NDArray[np.uint8]  # (X, Y, Z) Tissue
    above: NDArray[np.uint8]  # (X, Y, Z) Tissue
    share: Array  # (X, Y, Z) how much of the voxel is `above`
    texture: Array  # (X, Y, Z) relative deviation from the tissue's value
    affine: NDArray[np.float64]  # (4, 4) voxel index -> LPS mm
    masks: dict[str, NDArray[np.bool_]]  # label -> (X, Y, Z)
    spacing_mm: float
    findings: tuple[Finding, ...]

    def to_lps(self, place_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where a place of the head's frame lies in patient coordinates (LPS mm)."""
        index = (place_mm - np.array(LOW_MM)) / self.spacing_mm
        return self.affine[:3, :3] @ index + self.affine[:3, 3]


def build_head(
    rng: np.random.Generator, *, age_years: int, sex: str, findings: tuple[Finding, ...], modality: str
) -> Head:
    """Draw a head with its findings, posed as it lies in the scanner.

    The same stream, age, sex, findings and modality give the same head. Every label of
    `truth_labels(findings, modality)` has a mask.

    Parameters
    ----------
    sex
        "M" or "F": heads of women are a few per cent smaller.
    modality
        "MR" or "CT".
    """
    build = _build_of(rng, age_years, findings)
    points = _bent_grid(rng)
    blank = np.zeros(points[0].shape, dtype=np.float32)
    sketch = Sketch(points, -cavity(points), Canvas.blank(blank.shape, SPACING_MM), blank)
    draw_skull(sketch, build, rng)
    brain = inside_skull(sketch, findings)
    for finding in findings:
        if is_collection(finding):
            brain.collection = np.maximum(brain.collection, collection_mm(brain, finding))
    draw_brain(brain, build, rng)
    draw_lesions(brain, sketch, findings, rng)
    put_back(brain, sketch)
    draw_openings(sketch, findings, build, rng)
    mark_implied(brain, sketch, findings)
    texture = rng.standard_normal(blank.shape, dtype=np.float32)
    ndimage.gaussian_filter(texture, 1.0, output=texture, truncate=2)
    texture *= np.float32(0.02) / texture.std()
    return Head(
        below=sketch.canvas.below,
        above=sketch.canvas.above,
        share=sketch.canvas.share,
        texture=texture,
        affine=_pose(rng, sex, modality),
        masks=sketch.masks,
        spacing_mm=SPACING_MM,
        findings=findings,
    )


def _build_of(rng: np.random.Generator, age_years: int, findings: tuple[Finding, ...]) -> Build:
    """Return this patient's sizes: age widens fluid spaces, findings widen or squeeze them."""
    severity = {finding.label: finding.parameters.get("severity", 0.0) for finding in findings}
    aging = float(np.clip((age_years - 40) / 50, 0, 1))
    atrophy = 0.35 * aging + 0.1 * rng.random() + 0.85 * severity.get("cerebral_atrophy", 0.0)
    dilated = max(severity.get("ventriculomegaly", 0.0), severity.get("obstructive_hydrocephalus", 0.0))
    swelling = severity.get("cerebral_edema", 0.0)
    ventricles = (0.8 + 0.35 * atrophy + 1.0 * dilated) * rng.uniform(0.92, 1.08) * (1 - 0.5 * swelling)
    squeeze = (1 - 0.55 * min(dilated, 1.0)) * (1 - 0.95 * swelling)
    return Build(
        skull_mm=float(np.clip(rng.normal(6.6, 0.7), 5.2, 8.2)),
        scalp_mm=float(np.clip(rng.normal(5.6, 1.0), 3.8, 8.0)),
        ventricle_scale=ventricles,
        third_mm=(1.6 + 2.0 * atrophy + 3.0 * dilated) * (1 - 0.6 * swelling),
        sulcus_mm=(0.3 + 1.25 * atrophy) * squeeze,
        gap_mm=(0.9 + 2.2 * atrophy) * squeeze + 0.3,
    )


def _bent_grid(rng: np.random.Generator) -> Points:
    """Return the head-frame coordinates of the grid, bent smoothly by a few mm.

    Bends are products of one wave per axis: cheap, and smooth enough to stay invertible.
    """
    axes = [
        np.arange(low, high, SPACING_MM, dtype=np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, (low, high) in enumerate(zip(LOW_MM, HIGH_MM, strict=True))
    ]
    bent = []
    for axis in range(3):
        total = np.broadcast_to(axes[axis], np.broadcast_shapes(*(part.shape for part in axes))).copy()
        for _ in range(2):
            waves = [
                np.cos(part * np.float32(2 * np.pi / rng.uniform(150, 320)) + np.float32(rng.uniform(0, 2 * np.pi)))
                for part in axes
            ]
            total += np.float32(rng.normal(0, 1.3)) * (waves[0] * waves[1] * waves[2])
        bent.append(total)
    return (bent[0], bent[1], bent[2])


def _pose(rng: np.random.Generator, sex: str, modality: str) -> NDArray[np.float64]:
    """Return voxel index -> LPS mm: size, tilt (a few degrees) and place of the head in the scanner."""
    size = (0.97 if sex == "F" else 1.02) * rng.normal(1.0, 0.025, 3).clip(0.94, 1.06)
    nod, turn, lean = np.radians(rng.normal(0, [4.0, 3.0, 2.5]).clip(-10, 10))
    about_x = np.array([[1, 0, 0], [0, np.cos(nod), -np.sin(nod)], [0, np.sin(nod), np.cos(nod)]])
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_y = np.array([[np.cos(lean), 0, np.sin(lean)], [0, 1, 0], [-np.sin(lean), 0, np.cos(lean)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_y @ about_x * (size * SPACING_MM)
    place = rng.normal(0, [4.0, 8.0, 8.0])
    if modality == "CT":
        place += [0.0, -150.0, rng.uniform(-900, 200)]  # CT counts from the table's zero
    affine[:3, 3] = place + affine[:3, :3] @ (np.array(LOW_MM) / SPACING_MM)
    return affine
