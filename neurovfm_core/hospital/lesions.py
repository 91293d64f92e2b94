"""What goes wrong inside the skull. Each painter draws one finding and marks its voxels."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from neurovfm_core.hospital.contrast import Tissue
from neurovfm_core.hospital.findings import CAVITY_CENTER_MM, CAVITY_RADII_MM, Finding
from neurovfm_core.hospital.shapes import Array, Waves, capsule, distance_to, ellipsoid, smooth_step
from neurovfm_core.hospital.sketch import Brain, Sketch

_COLLECTIONS = {
    "subdural_hematoma",
    "acute_subdural_hematoma",
    "subacute_chronic_subdural_hematoma",
    "subdural_hygroma_effusions",
    "epidural_hematoma",
}
_MARKED = 0.5


def is_collection(finding: Finding) -> bool:
    """Return whether a finding lies between skull and brain."""
    return finding.label in _COLLECTIONS


def collection_mm(brain: Brain, finding: Finding) -> Array:
    """Return how thick a collection between skull and brain is at each voxel, mm.

    A subdural spreads as a crescent over its hemisphere and never crosses the midline; an epidural,
    held by the sutures, is a lens.
    """
    side = np.sign(finding.center_mm[0])
    away = distance_to(brain.points, finding.center_mm)
    if finding.label == "epidural_hematoma":
        return finding.size_mm * np.clip(1 - (away / (24 + 0.9 * finding.size_mm)) ** 2, 0, 1)
    reach = 62 if finding.label == "subdural_hygroma_effusions" else 92
    crescent = np.sqrt(np.clip(1 - (away / reach) ** 2, 0, 1))
    inside = smooth_step(side * brain.points[0], 3, 20) * smooth_step(brain.points[2], -30, -6)
    return np.float32(finding.size_mm) * crescent * inside


def draw_lesions(brain: Brain, sketch: Sketch, findings: tuple[Finding, ...], rng: np.random.Generator) -> None:
    """Paint every finding that lies inside the skull, soft ones first, air and blood last."""
    for finding in sorted(findings, key=lambda one: _ORDER.get(one.label, 99)):
        painter = _PAINTERS.get(finding.label)
        if painter is not None:
            painter(brain, sketch, finding, rng)


def mark_implied(brain: Brain, sketch: Sketch, findings: tuple[Finding, ...]) -> None:
    """Give the labels that follow from a finding their voxels."""
    swollen = brain.canvas.share_of(Tissue.EDEMA) > 0.35
    for finding in findings:
        for label in finding.implied:
            if label == "cerebral_edema":
                brain.mark(sketch, label, np.flatnonzero(swollen))
            elif label == "ventriculomegaly":
                brain.mark(sketch, label, np.flatnonzero(brain.ventricle < 0))
            elif label in ("midline_shift", "brain_midline_shift"):
                central = (np.abs(brain.origin[0]) < 4) & (brain.depth > 10)
                aside = np.abs(brain.points[0] - brain.origin[0]) * central
                brain.mark(sketch, label, np.flatnonzero(aside > 0.5 * aside.max()))
            elif label == "brain_mass_effect":
                pushed = (brain.moved > 0.5 * brain.moved.max()) & (brain.parenchyma > _MARKED)
                brain.mark(sketch, label, np.flatnonzero(pushed))
            else:
                sketch.mark(label, sketch.mask(finding.label))


def _blob(
    brain: Brain,
    center: tuple[float, float, float],
    radius: float,
    rng: np.random.Generator,
    rough: float = 0.15,
) -> tuple[NDArray[np.intp], Array]:
    """Return the voxels around an irregular ball and their signed distance to it."""
    waves = Waves.draw(rng, max(1.6 * radius, 7.0), 6)
    where = brain.near(center, 1.5 * radius + 22)
    points = brain.at(where)
    return where, distance_to(points, center) - radius * (1 + rough * waves.at(points))


def _swell(brain: Brain, where: NDArray[np.intp], distance: Array, reach_mm: float) -> None:
    """Paint vasogenic oedema: it runs along white matter and spares the cortex."""
    if reach_mm < 1:
        return
    fade = 1 - smooth_step(distance, 0.45 * reach_mm, reach_mm)
    brain.canvas.paint(Tissue.EDEMA, fade * (0.1 + 0.85 * brain.white[where]) * (brain.parenchyma[where] > 0.3), where)


def _in_brain(brain: Brain, where: NDArray[np.intp]) -> Array:
    """Return how much of the voxel lies below the surface of the brain."""
    return brain.canvas.soft(-brain.surface[where] - 0.5)


def _hemorrhage(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    where, distance = _blob(brain, finding.center_mm, finding.size_mm / 2, rng)
    _swell(brain, where, distance, 4 + 0.15 * finding.size_mm)
    amount = brain.canvas.soft(distance) * _in_brain(brain, where)
    brain.canvas.paint(Tissue.BLOOD_ACUTE, amount, where)
    brain.mark(sketch, finding.label, where[amount > _MARKED])


def _contusion(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    where, distance = _blob(brain, finding.center_mm, finding.size_mm / 2, rng)
    inside = _in_brain(brain, where)
    brain.canvas.paint(Tissue.EDEMA, brain.canvas.soft(distance) * inside * 0.8, where)
    brain.mark(sketch, finding.label, where[(distance < 0) & (inside > _MARKED)])
    for _ in range(5):
        middle = tuple(float(part + rng.normal(0, finding.size_mm / 6)) for part in finding.center_mm)
        spot, edge = _blob(brain, middle, finding.size_mm * rng.uniform(0.12, 0.24), rng)  # type: ignore[arg-type]
        brain.canvas.paint(Tissue.BLOOD_ACUTE, brain.canvas.soft(edge) * _in_brain(brain, spot), spot)


def _ring(
    brain: Brain,
    sketch: Sketch,
    label: str,
    center: tuple[float, float, float],
    size_mm: float,
    edema_mm: float,
    rng: np.random.Generator,
) -> None:
    """Paint a malignant mass: oedema, an enhancing wall of uneven thickness, a necrotic core."""
    where, distance = _blob(brain, center, size_mm / 2, rng, 0.16)
    _swell(brain, where, distance, edema_mm)
    inside = _in_brain(brain, where)
    brain.canvas.paint(Tissue.TUMOR_ENHANCING, brain.canvas.soft(distance) * inside, where)
    if size_mm > 13:
        wall = 3.0 + 0.05 * size_mm + 1.3 * Waves.draw(rng, 14, 4).at(brain.at(where))
        brain.canvas.paint(Tissue.NECROSIS, brain.canvas.soft(distance + wall) * inside, where)
    brain.mark(sketch, label, where[(distance < 0.4) & (inside > 0.4)])


def _malignant(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    edema_mm = finding.parameters["edema_mm"]
    _ring(brain, sketch, finding.label, finding.center_mm, finding.size_mm, edema_mm, rng)


def _metastases(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    sides = {"left": (1,), "right": (-1,)}.get(finding.laterality, (1, -1))
    for number in range(int(finding.parameters["count"])):
        center = _grey_white_junction(rng, sides[number % len(sides)])
        size_mm = finding.size_mm * (1.0 if number == 0 else rng.uniform(0.45, 0.9))
        _ring(brain, sketch, finding.label, center, size_mm, finding.parameters["edema_mm"], rng)


def _grey_white_junction(rng: np.random.Generator, side: int) -> tuple[float, float, float]:
    azimuth, elevation = np.radians(rng.uniform(-70, 70)), np.radians(rng.uniform(-5, 55))
    direction = np.array(
        [side * np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
    )
    norm = np.linalg.norm(direction / CAVITY_RADII_MM)
    x, y, z = np.array(CAVITY_CENTER_MM) + direction / norm * rng.uniform(0.66, 0.78)
    return (float(x), float(y), float(z))


def _low_grade(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    where, distance = _blob(brain, finding.center_mm, finding.size_mm / 2, rng, 0.2)
    amount = brain.canvas.soft(distance / 1.6) * _in_brain(brain, where)
    brain.canvas.paint(Tissue.TUMOR_SOLID, amount * 0.95, where)
    brain.mark(sketch, finding.label, where[amount > _MARKED])


def _dural_mass(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    """Paint a mass with its base on the dura, a cleft of fluid and some oedema around it."""
    radius = finding.size_mm / 2
    inward = np.array(CAVITY_CENTER_MM) - finding.center_mm
    x, y, z = finding.center_mm + inward / np.linalg.norm(inward) * radius * 0.6
    where, distance = _blob(brain, (float(x), float(y), float(z)), radius, rng, 0.06)
    _swell(brain, where, distance, finding.parameters["edema_mm"])
    brain.canvas.paint(Tissue.CSF, brain.canvas.soft(distance - 1.2) * 0.8, where)
    amount = brain.canvas.soft(distance)
    brain.canvas.paint(Tissue.MENINGIOMA, amount, where)
    brain.mark(sketch, finding.label, where[amount > _MARKED])
    tail = np.clip(1 - (distance - 2) / 14, 0, 1) * brain.canvas.soft(brain.depth[where] - 2.2) * (distance > 0)
    brain.canvas.paint(Tissue.DURA, tail, where)


def _sellar(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    where, distance = _blob(brain, finding.center_mm, finding.size_mm / 2, rng, 0.06)
    amount = brain.canvas.soft(distance)
    brain.canvas.paint(Tissue.TUMOR_ENHANCING, amount, where)
    brain.mark(sketch, finding.label, where[amount > _MARKED])


def _wedge(brain: Brain, finding: Finding, rng: np.random.Generator) -> tuple[NDArray[np.intp], Array]:
    """Return a vascular territory: a cone from the deep white matter out to the cortex."""
    side = np.sign(finding.center_mm[0])
    center = np.array(finding.center_mm)
    apex = np.array([side * min(13.0, abs(center[0]) * 0.5), center[1] * 0.35, 10.0])
    axis = center - apex
    length = float(np.linalg.norm(axis))
    axis /= length
    where = brain.near(tuple(center), 66.0)
    points = brain.was_at(where)
    offset = [part - np.float32(a) for part, a in zip(points, apex, strict=True)]
    along = sum(part * np.float32(a) for part, a in zip(offset, axis, strict=True))
    across = np.sqrt(np.maximum(sum(part**2 for part in offset) - along**2, 0))
    opening = finding.size_mm / 2 / length * 0.95
    edge = Waves.draw(rng, 22, 6).at(points) * 2.5
    distance = (across - opening * along) / np.sqrt(1 + opening**2)
    distance = np.maximum(distance + edge, 7 - along)
    # No territory crosses the midline.
    return where, np.maximum(distance, 2 - side * points[0])


def _acute_stroke(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    where, distance = _wedge(brain, finding, rng)
    inside = brain.canvas.soft(distance / 2) * (brain.parenchyma[where] > 0.2)
    swollen = np.maximum(brain.parenchyma[where], 0.6 * brain.sulcus[where])
    brain.canvas.paint(Tissue.INFARCT, inside * swollen * np.float32(rng.uniform(0.75, 0.98)), where)
    brain.mark(sketch, finding.label, where[inside * swollen > _MARKED])


def _scar(brain: Brain, sketch: Sketch, label: str, where: NDArray[np.intp], distance: Array, rim_mm: float) -> None:
    """Paint lost brain: fluid where the tissue was, a rim of gliosis."""
    inside = _in_brain(brain, where)
    rim = brain.canvas.soft((distance - rim_mm) / 1.5) * inside * (0.3 + 0.6 * brain.white[where])
    brain.canvas.paint(Tissue.GLIOSIS, rim, where)
    brain.canvas.paint(Tissue.CSF, brain.canvas.soft((distance + 1.0) / 1.5) * inside * 0.95, where)
    brain.mark(sketch, label, where[(distance < rim_mm) & (inside > _MARKED)])


def _chronic_stroke(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    where, distance = _wedge(brain, finding, rng)
    _scar(brain, sketch, finding.label, where, distance + 4, 5)


def _encephalomalacia(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    x, y, z = finding.center_mm
    center = (x * 1.12, y * 1.12, z * 1.05)
    where, distance = _blob(brain, center, finding.size_mm / 2, rng, 0.22)
    _scar(brain, sketch, finding.label, where, distance, 4)


def _resection(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    """Paint a cavity that reaches the surface, with a thin wall that takes up contrast."""
    x, y, z = finding.center_mm
    where, distance = _blob(brain, (x * 1.15, y * 1.15, z * 1.1), finding.size_mm / 2, rng, 0.08)
    inside = brain.canvas.soft(-brain.depth[where] + 1.5)
    brain.canvas.paint(
        Tissue.GLIOSIS,
        brain.canvas.soft((distance - 4) / 2) * inside * (0.2 + 0.7 * brain.white[where]),
        where,
    )
    brain.canvas.paint(Tissue.DURA, brain.canvas.soft(distance - 0.6) * inside, where)
    brain.canvas.paint(Tissue.CSF, brain.canvas.soft(distance + 1.0) * inside, where)
    brain.mark(sketch, finding.label, where[(distance < 0) & (inside > _MARKED)])


def _lacunes(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    for number in range(int(finding.parameters["count"])):
        spread = 0.0 if number == 0 else 5.0
        x, y, z = (float(part + rng.normal(0, spread)) for part in finding.center_mm)
        where, distance = _blob(brain, (x, y, z), finding.size_mm / 2, rng, 0.08)
        brain.canvas.paint(Tissue.GLIOSIS, brain.canvas.soft(distance - 1.5) * 0.9, where)
        brain.canvas.paint(Tissue.CSF, brain.canvas.soft(distance), where)
        brain.mark(sketch, finding.label, where[distance < 0.8])


def _collection(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    thickness = collection_mm(brain, finding)
    where = np.flatnonzero(thickness > 0.8)
    amount = brain.canvas.soft(brain.depth[where] - thickness[where]) * brain.canvas.soft(0.2 - brain.depth[where])
    if finding.label == "subdural_hygroma_effusions":
        tissue, other = Tissue.CSF, Tissue.CSF
    elif finding.age == "acute":
        tissue, other = Tissue.BLOOD_ACUTE, Tissue.BLOOD_ACUTE
    elif finding.label == "subdural_hematoma":
        tissue, other = Tissue.BLOOD_SUBACUTE, Tissue.BLOOD_CHRONIC
    else:
        tissue, other = Tissue.BLOOD_CHRONIC, Tissue.BLOOD_SUBACUTE
    brain.canvas.paint(tissue, amount, where)
    layered = Waves.draw(rng, 40, 5).at(brain.at(where)) > 0.9
    brain.canvas.paint(other, amount * layered, where)
    brain.mark(sketch, finding.label, where[amount > _MARKED])


def _in_ventricles(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    """Paint blood that has settled in the back of the ventricles of a patient lying supine."""
    level_y = 44 - 34 * finding.parameters["level"]
    amount = brain.canvas.soft(brain.ventricle + 0.3) * brain.canvas.soft(level_y - brain.points[1])
    brain.canvas.paint(Tissue.BLOOD_ACUTE, amount)
    brain.mark(sketch, finding.label, np.flatnonzero(amount > _MARKED))


def _subarachnoid(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    where = brain.near(finding.center_mm, finding.size_mm)
    away = distance_to(brain.at(where), finding.center_mm)
    patchy = 0.75 + 0.35 * Waves.draw(rng, 30, 5).at(brain.at(where))
    fade = 1 - smooth_step(away, 0.4 * finding.size_mm, 0.62 * finding.size_mm)
    amount = np.clip(1.8 * brain.sulcus[where], 0, 1) * np.clip(patchy, 0, 0.97) * fade
    brain.canvas.paint(Tissue.BLOOD_ACUTE, amount, where)
    brain.mark(sketch, finding.label, where[amount > 0.4])


def _small_vessel(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    severity = finding.parameters["severity"]
    caps = np.exp(-((np.maximum(brain.ventricle, 0) / (2.0 + 4.0 * severity)) ** 2)) * 1.1
    spots = Waves.draw(rng, 15, 14).at(brain.points)
    deep = smooth_step(spots, 2.3 - 1.1 * severity, 2.6 - 1.1 * severity) * smooth_step(brain.surface, 6, 10)
    above = smooth_step(brain.origin[2], -4, 8)
    amount = np.clip(np.maximum(caps, deep), 0, 0.95) * brain.white * above
    brain.canvas.paint(Tissue.WHITE_LESION, amount)
    brain.mark(sketch, finding.label, np.flatnonzero(amount > 0.4))


def _demyelination(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    """Paint ovoid plaques at right angles to the ventricles, a few of them enhancing."""
    for number in range(int(finding.parameters["count"])):
        side = 1 if number % 2 else -1
        y = rng.uniform(-44, 40)
        start = np.array([side * (11 + 0.16 * max(y, 0)), y, rng.uniform(14, 24)])
        outward = np.array([side * 1.0, rng.normal(0, 0.25), rng.uniform(0.1, 0.9)])
        if number % 5 == 4:
            start += outward * rng.uniform(14, 26)
        length = finding.size_mm * rng.uniform(0.6, 1.5)
        stop = start + outward / np.linalg.norm(outward) * length
        where = brain.near(tuple((start + stop) / 2), length + 10)
        radius = rng.uniform(0.35, 0.5) * finding.size_mm
        distance = capsule(brain.at(where), tuple(start), tuple(stop), radius * 0.8, radius * 0.6)
        amount = brain.canvas.soft(distance) * np.clip(brain.white[where] + 0.15, 0, 1)
        brain.canvas.paint(Tissue.WHITE_LESION, amount, where)
        if rng.random() < finding.parameters["active"]:
            brain.canvas.paint(Tissue.TUMOR_ENHANCING, brain.canvas.soft(np.abs(distance + 1) - 0.8) * amount, where)
        brain.mark(sketch, finding.label, where[amount > 0.4])


def _ventricles(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    if finding.label == "obstructive_hydrocephalus":
        seeping = 0.85 * np.exp(-((np.maximum(brain.ventricle, 0) / 4.0) ** 2)) * brain.white
        brain.canvas.paint(Tissue.EDEMA, seeping * (brain.ventricle > 0))
    brain.mark(sketch, finding.label, np.flatnonzero(brain.ventricle < 0))


def _global_edema(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    above = smooth_step(brain.origin[2], -20, -5)
    amount = np.float32(0.45 * finding.parameters["severity"]) * brain.parenchyma * above
    brain.canvas.paint(Tissue.EDEMA, amount)
    brain.mark(sketch, finding.label, np.flatnonzero((brain.parenchyma > _MARKED) & (above > 0.5)))


def _atrophy(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    wide = (brain.sulcus > _MARKED) & (brain.origin[2] > -10)
    brain.mark(sketch, finding.label, np.flatnonzero(wide))


def _cyst(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    where, distance = _blob(brain, finding.center_mm, finding.size_mm / 2, rng, 0.05)
    amount = brain.canvas.soft(distance)
    brain.canvas.paint(Tissue.CSF, amount, where)
    brain.mark(sketch, finding.label, where[amount > _MARKED])


def _air(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    """Paint air that has risen to the front of the skull of a patient lying supine."""
    x, y, z = brain.points
    level = np.float32(CAVITY_CENTER_MM[1] - CAVITY_RADII_MM[1] + 3 + 0.8 * finding.size_mm)
    pocket = np.maximum(np.maximum(y - level, 1.2 - np.abs(x)), 4 - z)
    amount = brain.canvas.soft(pocket)
    brain.canvas.paint(Tissue.AIR, amount)
    brain.mark(sketch, finding.label, np.flatnonzero(amount > _MARKED))


def _calcified(brain: Brain, sketch: Sketch, finding: Finding, rng: np.random.Generator) -> None:
    _, y, z = finding.center_mm
    grain = Waves.draw(rng, 6, 6)
    for side in (1, -1):
        center = (side * 19.5, y, z)
        where = brain.near(center, 18)
        points = brain.was_at(where)
        distance = ellipsoid(points, center, (0.45 * finding.size_mm, finding.size_mm, 0.7 * finding.size_mm))
        amount = brain.canvas.soft(distance) * np.clip(0.6 + 0.4 * grain.at(points), 0, 1)
        brain.canvas.paint(Tissue.CALCIFICATION, amount, where)
        brain.mark(sketch, finding.label, where[amount > 0.3])


_PAINTERS: dict[str, Callable[[Brain, Sketch, Finding, np.random.Generator], None]] = {
    "cerebral_atrophy": _atrophy,
    "ventriculomegaly": _ventricles,
    "obstructive_hydrocephalus": _ventricles,
    "cerebral_edema": _global_edema,
    "small_vessel_ischemic_disease": _small_vessel,
    "multiple_sclerosis": _demyelination,
    "acute_ischemic_stroke": _acute_stroke,
    "chronic_ischemic_stroke": _chronic_stroke,
    "encephalomalacia_gliosis": _encephalomalacia,
    "lacunar_stroke": _lacunes,
    "low_grade_glioma": _low_grade,
    "high_grade_glioma": _malignant,
    "intra_axial_brain_tumor": _malignant,
    "brain_metastasis": _metastases,
    "meningioma": _dural_mass,
    "extra_axial_brain_tumor": _dural_mass,
    "pituitary_tumor": _sellar,
    "arachnoid_cyst": _cyst,
    "tumor_resection_cavity": _resection,
    "resection_cavity": _resection,
    "basal_ganglia_calcification": _calcified,
    "brain_contusion": _contusion,
    "intraparenchymal_hemorrhage": _hemorrhage,
    "intraventricular_hemorrhage": _in_ventricles,
    "traumatic_subarachnoid_hemorrhage": _subarachnoid,
    "aneurysmal_subarachnoid_hemorrhage": _subarachnoid,
    **dict.fromkeys(sorted(_COLLECTIONS), _collection),
    "pneumocephalus": _air,
}
_ORDER = {label: position for position, label in enumerate(_PAINTERS)}
