"""What goes wrong outside the brain: opened, broken or bruised skulls, and filled sinuses."""

import numpy as np
from numpy.typing import NDArray

from neurovfm_core.hospital.contrast import Tissue
from neurovfm_core.hospital.findings import CAVITY_CENTER_MM, Finding
from neurovfm_core.hospital.shapes import Array, Waves, distance_to, ellipsoid
from neurovfm_core.hospital.sketch import Build, Sketch

_Box = tuple[slice, ...]


def draw_openings(sketch: Sketch, findings: tuple[Finding, ...], build: Build, rng: np.random.Generator) -> None:
    """Paint every finding of skull, scalp and sinuses, and mark its voxels."""
    for finding in findings:
        match finding.label:
            case "craniotomy" | "craniotomy_craniectomy":
                _flap(sketch, finding, build, rng)
            case "burr_hole":
                _hole(sketch, finding, build)
            case "nondisplaced_skull_fracture" | "displaced_skull_fracture":
                _fracture(sketch, finding, build, rng)
            case "scalp_hemorrhage_hematoma":
                _swelling(sketch, finding, build)
            case "sinusitis":
                _opaque_sinus(sketch, finding)
            case "mastoid_effusion":
                _opaque_mastoid(sketch, finding)


def _shell(sketch: Sketch, box: _Box, build: Build, inward: Array | float = 0.0) -> Array:
    """Return the signed distance to the bone of the vault, moved inward by so many mm."""
    outside = -sketch.depth[box] + inward
    return np.maximum(-outside, outside - np.float32(build.skull_mm))


def _flap(sketch: Sketch, finding: Finding, build: Build, rng: np.random.Generator) -> None:
    """Saw out a piece of bone: a kerf with holes at its corners, or nothing where it was."""
    radius = finding.size_mm / 2
    box = sketch.box(finding.center_mm, radius + 12)
    points = sketch.within(box)
    away = distance_to(points, finding.center_mm)
    away = away * (1 + 0.07 * Waves.draw(rng, 60, 4).at(points))
    bone = _shell(sketch, box, build) - 0.8
    canvas = sketch.canvas
    if finding.parameters["removed"]:
        canvas.paint(Tissue.MUSCLE, canvas.soft(np.maximum(bone, away - radius)), box)
    else:
        canvas.paint(Tissue.MUSCLE, canvas.soft(np.maximum(bone, np.abs(away - radius) - 1.5)), box)
        for angle in rng.uniform(0, 2 * np.pi) + np.arange(4) * np.pi / 2:
            corner = _on_rim(finding, radius, angle)
            hole = distance_to(points, corner) - 5.5
            canvas.paint(Tissue.MUSCLE, canvas.soft(np.maximum(bone, hole)), box)
    lining = np.maximum(np.abs(sketch.depth[box] - 1.0) - 1.0, away - radius - 6)
    canvas.paint(Tissue.DURA, canvas.soft(lining), box)
    sketch.mark(finding.label, (bone < 0) & (away < radius + 2), box)


def _frame(finding: Finding) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the outward normal at a place of the vault, and two directions along the bone."""
    normal = np.array(finding.center_mm) - CAVITY_CENTER_MM
    normal /= np.linalg.norm(normal)
    first = np.cross(normal, [0.0, 0.0, 1.0])
    first /= np.linalg.norm(first)
    return normal, first, np.cross(normal, first)


def _on_rim(finding: Finding, radius: float, angle: float) -> tuple[float, float, float]:
    normal, first, second = _frame(finding)
    along = first * np.cos(angle) + second * np.sin(angle)
    # The rim of a flap lies below the tangent plane, because the skull curves away.
    x, y, z = finding.center_mm + radius * along * 0.93 - normal * radius**2 / 150
    return (float(x), float(y), float(z))


def _hole(sketch: Sketch, finding: Finding, build: Build) -> None:
    box = sketch.box(finding.center_mm, 24)
    points = sketch.within(box)
    normal, _, _ = _frame(finding)
    offset = [part - np.float32(c) for part, c in zip(points, finding.center_mm, strict=True)]
    along = sum(part * np.float32(n) for part, n in zip(offset, normal, strict=True))
    across = np.sqrt(np.maximum(sum(part**2 for part in offset) - along**2, 0)) - finding.size_mm / 2
    bone = _shell(sketch, box, build) - 1.0
    hole = np.maximum(bone, across)
    sketch.canvas.paint(Tissue.MUSCLE, sketch.canvas.soft(hole), box)
    sketch.mark(finding.label, hole < 0, box)


def _fracture(sketch: Sketch, finding: Finding, build: Build, rng: np.random.Generator) -> None:
    """Break the vault along a wavy line; a displaced fragment is pushed inward beside it."""
    box = sketch.box(finding.center_mm, finding.size_mm / 2 + 8)
    points = sketch.within(box)
    _, first, second = _frame(finding)
    angle = rng.uniform(0, np.pi)
    across_axis = first * np.cos(angle) + second * np.sin(angle)
    offset = [part - np.float32(c) for part, c in zip(points, finding.center_mm, strict=True)]
    across = sum(part * np.float32(a) for part, a in zip(offset, across_axis, strict=True))
    across = across + 1.5 * Waves.draw(rng, 22, 4).at(points)
    away = distance_to(points, finding.center_mm)
    line = np.maximum(np.abs(across) - 1.1, away - finding.size_mm / 2)
    bone = _shell(sketch, box, build) - 0.8
    canvas = sketch.canvas
    depth_mm = finding.parameters["depth_mm"]
    marked = (np.maximum(line - 1.0, bone) < 0) & (bone < 0)
    if depth_mm:
        fragment = np.maximum(np.maximum(-across, across - 24), away - finding.size_mm / 2.2)
        canvas.paint(Tissue.MUSCLE, canvas.soft(np.maximum(bone, fragment)), box)
        slope = depth_mm * np.clip(1 - across / 24, 0, 1)
        pushed = np.maximum(_shell(sketch, box, build, slope), fragment)
        canvas.paint(Tissue.BONE, canvas.soft(pushed), box)
        marked |= (fragment < 0) & (pushed < 1)
    canvas.paint(Tissue.MUSCLE, canvas.soft(np.maximum(line, bone)), box)
    sketch.mark(finding.label, marked, box)


def _swelling(sketch: Sketch, finding: Finding, build: Build) -> None:
    """Lift the scalp off the bone with blood."""
    box = sketch.box(finding.center_mm, 46)
    away = distance_to(sketch.within(box), finding.center_mm)
    lift = np.float32(finding.size_mm) * np.clip(1 - (away / 42) ** 2, 0, 1)
    skin = sketch.skin[box] - lift * np.float32(0.8)
    canvas = sketch.canvas
    over_bone = np.float32(build.skull_mm + 0.8) + sketch.depth[box]
    raised = np.maximum(skin, over_bone)
    there = lift > 1.0
    canvas.paint(Tissue.SKIN, canvas.soft(raised) * there, box)
    blood = np.maximum(skin + 2.2, over_bone)
    blood = np.maximum(blood, -sketch.depth[box] - np.float32(build.skull_mm) - lift)
    canvas.paint(Tissue.BLOOD_ACUTE, canvas.soft(blood) * there * 0.9, box)
    sketch.mark(finding.label, (blood < 0) & there, box)


def _opaque_sinus(sketch: Sketch, finding: Finding) -> None:
    """Thicken the lining of a maxillary sinus and fill it from the back, as in a supine patient."""
    side = np.sign(finding.center_mm[0])
    center = (side * 27, -60, -57)
    box = sketch.box(center, 18)
    points = sketch.within(box)
    inner = ellipsoid(points, center, (14, 17, 17))
    canvas = sketch.canvas
    level_y = -43 - 36 * finding.parameters["level"]
    fluid = np.maximum(inner, level_y - points[1])
    lining = np.maximum(inner, -inner - 3.5)
    canvas.paint(Tissue.MUCOSA, canvas.soft(lining), box)
    canvas.paint(Tissue.SINUS_FLUID, canvas.soft(np.maximum(fluid, inner + 3.0)), box)
    sketch.mark(finding.label, np.minimum(fluid, lining) < 0, box)


def _opaque_mastoid(sketch: Sketch, finding: Finding) -> None:
    side = np.sign(finding.center_mm[0])
    center = (side * 56, 25, -43)
    box = sketch.box(center, 18)
    inner = ellipsoid(sketch.within(box), center, (12.5, 15.5, 18.5))
    canvas = sketch.canvas
    airy = np.where(canvas.above[box] == Tissue.AIR, canvas.share[box], 0)
    filled = airy * (inner < 0)
    canvas.paint(Tissue.SINUS_FLUID, filled, box)
    sketch.mark(finding.label, filled > 0.3, box)
