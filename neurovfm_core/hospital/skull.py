"""Everything outside the brain: scalp, skull, face, orbits, sinuses, neck."""

from collections.abc import Callable

import numpy as np

from neurovfm_core.hospital.contrast import Tissue
from neurovfm_core.hospital.findings import CAVITY_CENTER_MM, CAVITY_RADII_MM
from neurovfm_core.hospital.shapes import (
    Array,
    Points,
    Waves,
    capsule,
    ellipsoid,
    smooth_min,
    smooth_step,
)
from neurovfm_core.hospital.sketch import Build, Sketch

_BUMPS = (  # nose, mastoids, ears
    ((0, -98, -54), (13, 19, 21)),
    ((47, 20, -42), (27, 34, 38)),
    ((-47, 20, -42), (27, 34, 38)),
    ((81, 14, -26), (5, 13, 27)),
    ((-81, 14, -26), (5, 13, 27)),
)


def petrous_mm(width: Array) -> Array:
    """Return y of the petrous ridge, which runs outward and back, at a distance from the midline."""
    return 4 + 0.4 * np.maximum(width - 16, 0)


def cavity(points: Points) -> Array:
    """Return the signed distance to the inner surface of the skull: a vault on three fossae."""
    x, y, z = points
    width = np.abs(x)
    behind_frontal = smooth_step(y, -48, -32)
    lateral = smooth_step(width, 10, 24)
    clivus = -16 - 38 * smooth_step(y, -22, 14)
    middle = clivus + (-38 - clivus) * lateral
    posterior = smooth_step(y, 4, 20)
    ridge = 13 * lateral * np.exp(-(((y - petrous_mm(width) - 3) / 6) ** 2))
    orbital = -21 + 6 * np.exp(-(((width - 31) / 15) ** 2))
    floor = orbital + behind_frontal * (middle - orbital)
    floor = floor + posterior * (-56 - floor) + ridge
    return -smooth_min(-ellipsoid(points, CAVITY_CENTER_MM, CAVITY_RADII_MM), z - floor, 8)


def skin(points: Points, thickness_mm: float) -> Array:
    """Return the signed distance to the skin."""
    x, y, z = points
    vault = ellipsoid(points, CAVITY_CENTER_MM, CAVITY_RADII_MM) - np.float32(thickness_mm)
    temple = np.exp(-(((y + 26) / 26) ** 2) - ((z + 4) / 26) ** 2) * smooth_step(np.abs(x), 30, 60)
    vault -= 5 * temple
    face = ellipsoid(points, (0, -36, -62), (60, 62, 74))
    neck = np.maximum(np.sqrt((x / 56) ** 2 + ((y - 20) / 62) ** 2) * 58 - 58, z + 30)
    return smooth_min(smooth_min(vault, face, 18), neck, 16)


def draw_skull(sketch: Sketch, build: Build, rng: np.random.Generator) -> None:
    """Paint the head without its brain; the cavity is left full of cerebrospinal fluid."""
    canvas, points, depth = sketch.canvas, sketch.points, sketch.depth
    sketch.skin = skin(points, build.skull_mm + build.scalp_mm)
    for center, radii in _BUMPS:
        box = sketch.box(center, radii)
        bump = ellipsoid(sketch.within(box), center, radii)
        sketch.skin[box] = smooth_min(sketch.skin[box], bump, 6)
    inside = sketch.skin
    canvas.paint(Tissue.SKIN, canvas.soft(inside))
    canvas.paint(Tissue.FAT, canvas.soft(inside + 1.8))
    low = sketch.box((0, 0, -60), (94, 122, 66))
    planes = Waves.draw(rng, 26, 6).at(sketch.within(low))
    below_vault = -depth[low] - np.float32(build.skull_mm)
    muscle = np.maximum(inside[low] + 5.5, np.float32(1.2) - np.abs(planes) * 12)
    canvas.paint(Tissue.MUSCLE, canvas.soft(np.maximum(muscle, -below_vault)), low)
    _draw_vault(sketch, build, rng)
    _draw_face(sketch, rng)
    _draw_neck(sketch)
    canvas.paint(Tissue.CSF, canvas.soft(-depth))


def _draw_vault(sketch: Sketch, build: Build, rng: np.random.Generator) -> None:
    canvas = sketch.canvas
    _, y, z = sketch.points
    # The roofs of orbits and nose are a few mm thin; a vault's thickness there would look like a tumour.
    roofs = smooth_step(-y, 26, 40) * smooth_step(y, -80, -70) * smooth_step(-z, 8, 14)
    thickness = (build.skull_mm + Waves.draw(rng, 70, 4).at(sketch.points) * 0.6) * (1 - 0.6 * roofs)
    outside = -sketch.depth
    canvas.paint(Tissue.BONE, canvas.soft(outside - thickness))
    middle = np.abs(outside - thickness * 0.5) - thickness * 0.17
    canvas.paint(Tissue.MARROW, canvas.soft(middle))


def _draw_face(sketch: Sketch, rng: np.random.Generator) -> None:
    canvas = sketch.canvas
    cells = Waves.draw(rng, 7, 8)

    def solid(tissue: Tissue, center: tuple, radii: tuple, *, honeycomb: float | None = None, grow: float = 0) -> None:
        box = sketch.box(center, radii)
        points = sketch.within(box)
        distance = ellipsoid(points, center, radii) - np.float32(grow)
        if honeycomb is not None:
            distance = np.maximum(distance, np.float32(honeycomb) - np.abs(cells.at(points)) * 2.2)
        canvas.paint(tissue, canvas.soft(distance), box)

    def rod(tissue: Tissue, start: tuple, stop: tuple, radius: float, stop_radius: float | None = None) -> None:
        middle = np.add(start, stop) / 2
        box = sketch.box(middle, np.abs(np.subtract(start, stop)) / 2 + radius)
        canvas.paint(tissue, canvas.soft(capsule(sketch.within(box), start, stop, radius, stop_radius)), box)

    solid(Tissue.MARROW, (0, -18, -40), (17, 22, 17))
    solid(Tissue.BONE, (0, -62, -54), (17, 32, 27))
    solid(Tissue.MUCOSA, (0, -62, -54), (15, 31, 25.5))
    _draw_nasal_airways(sketch)
    sphenoid = 9 + rng.normal(0, 1.5)
    solid(Tissue.AIR, (0, -27, -36), (sphenoid + 1, 9, 8))
    solid(Tissue.AIR, (0, -58, -33), (12, 23, 8), honeycomb=0.5)
    if rng.random() < 0.85:
        for side in (1, -1):
            solid(Tissue.AIR, (side * 10, -86, -7), (9, 4.5, 8 + rng.normal(0, 2)))
    for side in (1, -1):
        solid(Tissue.BONE, (side * 27, -60, -57), (15, 18, 18), grow=1.5)
        solid(Tissue.AIR, (side * 27, -60, -57), (14, 17, 17))
        solid(Tissue.BONE, (side * 38, 11, -36), (27, 10, 12))
        solid(Tissue.BONE, (side * 55, 24, -43), (14, 17, 20))
        solid(Tissue.AIR, (side * 56, 25, -43), (11, 14, 17), honeycomb=0.9)
        rod(Tissue.AIR, (side * 84, 12, -33), (side * 50, 10, -33), 1.9)
        rod(Tissue.BONE, (side * 63, -62, -46), (side * 72, -6, -40), 3.0)
        rod(Tissue.BONE, (side * 51, -12, -44), (side * 47, -24, -102), 6, 7)
        rod(Tissue.BONE, (side * 47, -24, -102), (side * 6, -84, -110), 6.5)
        _draw_orbit(solid, rod, side)
    for side in (1, -1):
        rod(Tissue.BONE, (side * 30, -58, -88), (side * 4, -86, -86), 4.5)
    rod(Tissue.AIR, (0, -18, -58), (0, -6, -122), 7, 8)


def _draw_orbit(solid: Callable[..., None], rod: Callable[..., None], side: int) -> None:
    """Cone of fat with its walls, globe, lens, muscles and nerve."""
    solid(Tissue.BONE, (side * 32, -60, -29), (19, 26, 17), grow=1.6)
    solid(Tissue.FAT, (side * 32, -62, -29), (18.5, 27, 16.5))
    for dx, dz in ((9, 0), (-9, 0), (0, 9), (0, -9)):
        rod(Tissue.MUSCLE, (side * 16, -36, -27), (side * 32 + dx, -66, -29 + dz), 1.6, 2.0)
    rod(Tissue.WHITE, (side * 14, -36, -26), (side * 32, -64, -29), 2.0)
    solid(Tissue.MUSCLE, (side * 32, -75, -29), (12.6, 12.6, 12.6))
    solid(Tissue.VITREOUS, (side * 32, -75, -29), (11.4, 11.4, 11.4))
    solid(Tissue.LENS, (side * 32, -83.5, -29), (4.6, 2.4, 4.6))


def _draw_nasal_airways(sketch: Sketch) -> None:
    """Two airways with turbinates, either side of a septum."""
    canvas = sketch.canvas
    box = sketch.box((0, -64, -56), (14, 34, 26))
    x, _, z = points = sketch.within(box)
    meatus = np.abs(np.abs(x) - 3.4) - 1.3
    shelves = np.maximum(np.abs(np.abs(x) - 8) - 5, np.abs(np.mod(z, 13) - 6.5) - 1.5)
    wall = ellipsoid(points, (0, -64, -54), (13, 32, 24))
    canvas.paint(Tissue.AIR, canvas.soft(np.maximum(np.minimum(meatus, shelves), wall)), box)


def _draw_neck(sketch: Sketch) -> None:
    """Two and a half vertebrae with their canal, opened through the skull base."""
    canvas = sketch.canvas
    box = sketch.box((0, 16, -90), (26, 34, 36))
    x, y, z = sketch.within(box)
    body = np.sqrt(x**2 + (y - 8) ** 2) - 10.5
    ring = np.abs(np.sqrt(x**2 + (y - 25) ** 2) - 13) - 2.4
    disc = np.abs(np.mod(z + 62, 20) - 10) - 8.2
    under = z + 60
    bone = np.maximum(np.maximum(np.minimum(body, ring), disc), under)
    canvas.paint(Tissue.BONE, canvas.soft(bone), box)
    canvas.paint(Tissue.MARROW, canvas.soft(np.maximum(np.maximum(body + 2.2, disc + 2), under)), box)
    canal = np.maximum(np.sqrt(x**2 + (y - 24) ** 2) - 10, z + 48)
    canvas.paint(Tissue.CSF, canvas.soft(canal), box)
    cord = np.maximum(np.sqrt((x / 1.25) ** 2 + (y - 24) ** 2) - 4.6, z + 54)
    canvas.paint(Tissue.WHITE, canvas.soft(cord), box)
