"""The brain: folded cortex, white matter, deep grey, ventricles, cerebellum, brainstem, membranes."""

import numpy as np
from numpy.typing import NDArray

from neurovfm_core.hospital.contrast import Tissue
from neurovfm_core.hospital.findings import CAVITY_CENTER_MM, CAVITY_RADII_MM, Finding
from neurovfm_core.hospital.shapes import (
    Array,
    Canvas,
    Points,
    Waves,
    capsule,
    chain,
    distance_to,
    ellipsoid,
    smooth_step,
)
from neurovfm_core.hospital.sketch import SPACING_MM, Brain, Build, Sketch
from neurovfm_core.hospital.skull import petrous_mm

_LATERAL_VENTRICLE = (  # x, y, z, radius of the left one, mm
    (9, -46, 2, 2.6),
    (9, -32, 9, 5.0),
    (9, -10, 18, 4.6),
    (13, 12, 18, 4.8),
    (23, 28, 9, 6.2),
    (21, 50, 4, 2.4),
)
_TEMPORAL_HORN = ((23, 28, 9, 5.0), (32, 15, -8, 2.4), (33, -8, -18, 1.8))
_CORTEX_MM = 3.2
_SULCUS_DEPTH_MM = 19.0

_PUSHES = {
    "high_grade_glioma": 0.45,
    "low_grade_glioma": 0.25,
    "brain_metastasis": 0.35,
    "meningioma": 0.55,
    "intra_axial_brain_tumor": 0.45,
    "extra_axial_brain_tumor": 0.55,
    "intraparenchymal_hemorrhage": 0.45,
    "arachnoid_cyst": 0.45,
    "epidural_hematoma": 0.5,
}
"""By how much of its radius a mass pushes its wall outward."""


def inside_skull(sketch: Sketch, findings: tuple[Finding, ...]) -> Brain:
    """Return the voxels inside the skull and where their tissue came from."""
    index = np.flatnonzero(sketch.depth > 0.3)
    points: Points = tuple(part.reshape(-1)[index] for part in sketch.points)  # type: ignore[assignment]
    depth = sketch.depth.reshape(-1)[index]
    shift = displacement(points, depth, findings)
    origin: Points = tuple(part - by for part, by in zip(points, shift, strict=True))  # type: ignore[assignment]
    moved = np.sqrt(shift[0] ** 2 + shift[1] ** 2 + shift[2] ** 2)
    canvas = Canvas.blank(index.shape, SPACING_MM)
    zero = np.zeros(index.shape, dtype=np.float32)
    return Brain(index, points, origin, depth, canvas, moved, zero, zero, zero, zero, zero, zero)


def displacement(points: Points, depth: Array, findings: tuple[Finding, ...]) -> Points:
    """Return by how much findings displace the tissue at each point, mm.

    A mass pushes radially; hemisphere-wide pressure pushes the midline to the other side. Both fade
    towards the skull, which does not give.
    """
    total = tuple(np.zeros(depth.shape, dtype=np.float32) for _ in range(3))
    fixed = smooth_step(depth, 0, 26)
    for finding in findings:
        center = finding.center_mm
        share = _PUSHES.get(finding.label, 0.0)
        if share and finding.size_mm:
            radius = finding.size_mm / 2
            away = distance_to(points, center)
            reach = np.exp(-((np.maximum(away - radius, 0) / (1.3 * radius)) ** 2))
            strength = share * radius * np.minimum(away / radius, 1) * reach * smooth_step(depth, 0, 14)
            for part, at, c in zip(total, points, center, strict=True):
                part += strength * (at - np.float32(c)) / np.maximum(away, 1e-3)
        shift_mm = finding.parameters.get("shift_mm", 0.0)
        if shift_mm:
            along = np.exp(-(((points[1] - 0.4 * center[1]) / 58) ** 2))
            across = np.exp(-(((points[2] - 14 - 0.2 * center[2]) / 48) ** 2))
            total[0][...] -= np.float32(np.sign(center[0]) * shift_mm) * along * across * fixed
    return total  # type: ignore[return-value]


def tentorium(width: Array, y: Array) -> Array:
    """Return the height of the tent between cerebrum and cerebellum."""
    return 3 - 0.36 * width - 0.20 * (y - 15)


def draw_brain(brain: Brain, build: Build, rng: np.random.Generator) -> None:
    """Paint the brain and fill in what lesions need to know of it."""
    x, y, z = brain.origin
    width = np.abs(x)
    mirrored: Points = (width, y, z)
    canvas = brain.canvas
    brain.surface = brain.depth - brain.collection - np.float32(build.gap_mm)
    tent = z - tentorium(width, y)
    before = petrous_mm(width) - y
    infratentorial = (tent < 0) & (before < 0)
    brainstem = np.minimum.reduce(
        [
            ellipsoid(brain.origin, (0, 3, -9), (17, 11, 12)),
            ellipsoid(brain.origin, (0, 4, -25), (16, 12.5, 13)),
            capsule(brain.origin, (0, 10, -36), (0, 23, -62), 8.5, 6),
        ]
    )
    callosal = np.sqrt(((y - 2) / 43) ** 2 + ((z - 6) / 24) ** 2)

    to_fluid = _to_cerebral_fluid(brain, build, brainstem, callosal, rng)
    beside_tent = np.maximum(tent - 0.6, np.where(tent < 0, before, -9))
    to_fluid = np.where(infratentorial, np.minimum(brain.surface, -tent), to_fluid)
    to_fluid = np.where(~infratentorial & (before < 12) & (z < 8), np.minimum(to_fluid, beside_tent), to_fluid)
    canvas.paint(Tissue.CSF, np.ones(width.shape, dtype=np.float32))
    canvas.paint(Tissue.GREY, canvas.soft(-to_fluid))
    canvas.paint(Tissue.WHITE, canvas.soft(np.float32(_CORTEX_MM) - to_fluid) * ~infratentorial)
    _draw_deep_grey(canvas, mirrored)
    _draw_posterior_fossa(brain, canvas, infratentorial, brainstem, -to_fluid, rng)
    brain.sulcus = canvas.soft(to_fluid) * (brainstem > 1)
    brain.ventricle = _draw_ventricles(brain, canvas, mirrored, build)
    brain.parenchyma = 1 - canvas.share_of(Tissue.CSF)
    brain.white = canvas.share_of(Tissue.WHITE)
    _draw_membranes(brain, canvas, width, callosal, tent, smooth_step(y, 3, 9))
    _draw_vessels(brain, canvas, mirrored)


def _to_cerebral_fluid(
    brain: Brain, build: Build, brainstem: Array, callosal: Array, rng: np.random.Generator
) -> Array:
    """Return how far the cerebrum lies from fluid: its surface, sulci, fissures and cisterns.

    Where tissue has been displaced, the folds are squeezed shut.
    """
    x, y, z = brain.origin
    width = np.abs(x)
    squeeze = 1 - 0.8 * smooth_step(brain.moved, 1.5, 6)
    open_mm = np.float32(0.5 + 0.7 * build.sulcus_mm) * squeeze
    sulcal = _to_sulci(brain.origin, width, brain.surface, build.sulcus_mm * squeeze, rng)
    # Inside the ellipse of the corpus callosum the two halves are joined.
    halves = np.where(callosal > 1, width, np.maximum(width, (1 - callosal) * 24))
    interhemispheric = halves - np.float32(0.5 + 0.5 * build.sulcus_mm)
    bend = Waves.draw(rng, 34, 6).at((width, y, z))
    plane = np.abs(z + 5 - 0.38 * y + 2.5 * bend)
    sylvian = np.maximum(np.maximum(plane - open_mm, 36 - width), np.abs(y) - 30)
    sheet = np.abs(width - 38 + 2.0 * bend) - open_mm * 0.8
    insular = np.maximum(np.maximum(sheet, plane - 12), np.abs(y + 3) - 24)
    ambient = np.maximum(brainstem - 4.0, z - 2)
    suprasellar = ellipsoid(brain.origin, (0, -17, -17), (15, 11, 8))
    return np.minimum.reduce([brain.surface, sulcal, interhemispheric, sylvian, insular, ambient, suprasellar])


def _to_sulci(origin: Points, width: Array, surface: Array, half_width: Array, rng: np.random.Generator) -> Array:
    """Return the distance to the nearest sulcus: sheets that hang from the surface.

    The sheets are the zero set of smooth noise, read on a shell, so that they run straight inward.
    """
    center, radii = CAVITY_CENTER_MM, CAVITY_RADII_MM
    norm = np.sqrt(
        sum(((part - np.float32(c)) / np.float32(r)) ** 2 for part, c, r in zip(origin, center, radii, strict=True))
    )
    outward = np.maximum(norm, 0.25) ** np.float32(-0.75)
    wavelength = rng.uniform(17, 20)
    both = Waves.draw(rng, wavelength, 14)
    each = Waves.draw(rng, wavelength, 8)
    y, z = (origin[1] - 2) * outward, (origin[2] - 8) * outward
    noise = both.at((width * outward, y, z)) + np.float32(0.5) * each.at((origin[0] * outward, y, z))
    # The expected slope of the noise turns its value into a distance; 1.12 is the two sets' joint deviation.
    slope = np.float32(1.12 * 2 * np.pi / wavelength / np.sqrt(3))
    sheet = np.abs(noise) / slope - half_width
    below = np.maximum(surface - np.float32(_SULCUS_DEPTH_MM), 0)
    return np.where(below > 0, np.sqrt(np.maximum(sheet, 0) ** 2 + below**2), sheet)


def _draw_deep_grey(canvas: Canvas, mirrored: Points) -> None:
    for center, radii in (
        ((14, -30, 7), (5.5, 12, 9)),
        ((16, -8, 19), (4, 14, 5)),
        ((27, -13, 2), (5.5, 17, 11)),
        ((20, -10, 0), (4, 9.5, 6.5)),
        ((11, 4, 8), (9, 15, 9)),
        ((23, -8, -21), (8, 9, 6)),
    ):
        canvas.paint(Tissue.DEEP_GREY, canvas.soft(ellipsoid(mirrored, center, radii)))


def _draw_posterior_fossa(
    brain: Brain,
    canvas: Canvas,
    infratentorial: NDArray[np.bool_],
    brainstem: Array,
    to_tissue: Array,
    rng: np.random.Generator,
) -> None:
    """Paint cerebellum (leaves of grey around a white core) and brainstem."""
    where = np.flatnonzero(infratentorial)
    x, y, z = points = brain.was_at(where)
    mirrored: Points = (np.abs(x), y, z)
    lobe = np.minimum(ellipsoid(mirrored, (20, 40, -26), (40, 36, 35)), ellipsoid(points, (0, 44, -22), (15, 30, 32)))
    pons = np.maximum(brainstem[where] - 3, y - 24)
    lobe = np.maximum(np.maximum(lobe, to_tissue[where] + 1.0), -pons)
    core = np.minimum(ellipsoid(mirrored, (24, 38, -32), (18, 18, 10)), ellipsoid(points, (0, 30, -29), (9, 10, 9)))
    waves = Waves.draw(rng, 40, 4).at(points)
    radial = np.sqrt((y - 18) ** 2 + (z + 30) ** 2)
    angle = np.arctan2(z + 30, y - 18)
    leaves = np.cos(angle * 22 + waves * 0.9)
    fluid = np.clip(leaves - 0.72, 0, 0.28) * 2.0 * (lobe > -9) * (radial > 14)
    core = np.minimum(core, np.maximum(core - 10, np.abs(leaves + 1) * 6 - 2.0))
    blank = np.ones(where.shape, dtype=np.float32)
    canvas.paint(Tissue.CSF, blank, where)
    canvas.paint(Tissue.GREY, canvas.soft(lobe) * (1 - fluid), where)
    canvas.paint(Tissue.WHITE, canvas.soft(core) * (lobe < -2.5), where)
    for side in (1, -1):
        stalk = capsule(brain.origin, (side * 10, 8, -26), (side * 22, 28, -30), 6.5)
        canvas.paint(Tissue.WHITE, canvas.soft(stalk))
    canvas.paint(Tissue.WHITE, canvas.soft(brainstem))


def _draw_ventricles(brain: Brain, canvas: Canvas, mirrored: Points, build: Build) -> Array:
    """Paint the four ventricles; return the distance to the lateral ones."""
    scale = build.ventricle_scale
    lateral = np.minimum(
        chain(mirrored, _LATERAL_VENTRICLE, scale),
        chain(mirrored, _TEMPORAL_HORN, scale * (0.55 + 0.45 * scale)),
    )
    septum = np.float32(0.9) - mirrored[0]
    lateral = np.maximum(lateral, septum)
    canvas.paint(Tissue.CSF, canvas.soft(lateral))
    plexus = np.maximum(chain(mirrored, ((14, 14, 15, 1.2), (22, 27, 7, 2.6), (28, 22, -2, 1.2))), lateral + 1)
    canvas.paint(Tissue.CHOROID, canvas.soft(plexus))
    third = ellipsoid(brain.origin, (0, -2, 0), (build.third_mm, 15, 11))
    canvas.paint(Tissue.CSF, canvas.soft(third))
    canvas.paint(Tissue.CSF, canvas.soft(capsule(brain.origin, (0, 11, -8), (0, 15, -22), 1.0)))
    fourth = ellipsoid(brain.origin, (0, 20, -31), (7, 5, 9))
    canvas.paint(Tissue.CSF, canvas.soft(fourth))
    return np.minimum(lateral, third)


def _draw_membranes(brain: Brain, canvas: Canvas, width: Array, callosal: Array, tent: Array, behind: Array) -> None:
    """Paint falx and tentorium, and the venous sinuses along their edges."""
    y, z = brain.origin[1], brain.origin[2]
    falx = np.maximum(width - 0.7, (1.22 - callosal) * 30)
    falx = np.maximum(falx, -tent * behind)
    falx = np.where((z > 0) | ((y > 40) & (tent > 0)), falx, 9)
    canvas.paint(Tissue.DURA, canvas.soft(falx) * 0.85)
    sheet = np.maximum(np.abs(tent) - 0.7, np.maximum(12 - y, np.float32(16) - width - 0.4 * (y - 12)))
    canvas.paint(Tissue.DURA, canvas.soft(sheet) * 0.8)
    roof = np.maximum(np.abs(brain.points[0]) - 3.6 + 0.45 * brain.depth, brain.depth - 6.5)
    superior = np.maximum(roof, np.maximum(np.float32(-2) - brain.points[2], -brain.points[1] - 75))
    transverse = np.maximum(np.abs(tent + 2) - 3.4, brain.depth - 5.5)
    transverse = np.maximum(transverse, 30 - y)
    straight = np.maximum(np.maximum(width - 1.8, np.abs(tent + 1) - 2.0), 24 - y)
    canvas.paint(Tissue.VENOUS_SINUS, canvas.soft(np.minimum.reduce([superior, transverse, straight])))


def _draw_vessels(brain: Brain, canvas: Canvas, mirrored: Points) -> None:
    """Paint the circle of Willis and its first branches."""
    for nodes in (
        ((0, -10, -38, 1.5), (0, -11, -14, 1.4)),
        ((9, -24, -30, 2.0), (9, -20, -17, 1.8), (20, -20, -15, 1.5), (36, -18, -10, 1.2), (37, -2, -2, 0.8)),
        ((9, -20, -17, 1.2), (1.5, -30, -12, 1.1), (1.5, -46, 2, 0.9), (1.5, -38, 28, 0.7)),
        ((1, -11, -14, 1.1), (14, -4, -13, 0.9), (17, 14, -4, 0.7)),
    ):
        center = np.mean([node[:3] for node in nodes], axis=0)
        x, y, z = mirrored
        where = np.flatnonzero((x < 45) & (np.abs(y - center[1]) < 40) & (np.abs(z - center[2]) < 40))
        points: Points = (x[where], y[where], z[where])
        canvas.paint(Tissue.ARTERY, canvas.soft(chain(points, nodes)), where)


def put_back(brain: Brain, sketch: Sketch) -> None:
    """Write the brain into the grid; voxels that the skull shares keep their bone edge."""
    deep = brain.depth > 0.8
    index = brain.index[deep]
    for name in ("below", "above", "share"):
        getattr(sketch.canvas, name).reshape(-1)[index] = getattr(brain.canvas, name)[deep]
