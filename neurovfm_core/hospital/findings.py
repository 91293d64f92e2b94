"""What is wrong with a synthetic patient: findings, where they sit, and the labels they imply.

Names are those of the two label lists (74 MR, 82 CT). Positions are in the frame of the upright,
unscaled head: x to the Left, y to Posterior, z to Superior, millimetres, origin between the thalami.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Laterality = Literal["left", "right", "bilateral", "midline", "none"]
Age = Literal["acute", "chronic", ""]

CAVITY_CENTER_MM = (0.0, 2.0, 8.0)
CAVITY_RADII_MM = (67.0, 86.0, 68.0)
"""The ellipsoid of the cranial vault's inner surface."""

SHIFT_REPORTED_MM = 5.0
"""A septum displaced by less than this is mass effect, not midline shift."""
MASS_EFFECT_MM = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One planted finding.

    `size_mm` is the diameter of a mass, the thickness of a collection, the width of a territory.
    `parameters` holds what else the painter needs (`shift_mm`, `count`, `severity` ...).
    `implied` are the labels that follow from this one, in this modality.
    """

    label: str
    laterality: Laterality
    center_mm: tuple[float, float, float]
    size_mm: float
    age: Age
    implied: tuple[str, ...]
    parameters: Mapping[str, float]


MR_PRINCIPAL = {
    "acute_ischemic_stroke": 0.23,
    "high_grade_glioma": 0.14,
    "brain_metastasis": 0.09,
    "meningioma": 0.09,
    "low_grade_glioma": 0.03,
    "pituitary_tumor": 0.02,
    "intraparenchymal_hemorrhage": 0.12,
    "subdural_hematoma": 0.12,
    "subdural_hygroma_effusions": 0.02,
    "multiple_sclerosis": 0.10,
    "chronic_ischemic_stroke": 0.08,
    "lacunar_stroke": 0.04,
    "encephalomalacia_gliosis": 0.04,
    "ventriculomegaly": 0.06,
    "obstructive_hydrocephalus": 0.06,
    "tumor_resection_cavity": 0.06,
    "craniotomy_craniectomy": 0.02,
    "arachnoid_cyst": 0.03,
}
CT_PRINCIPAL = {
    "intraparenchymal_hemorrhage": 0.18,
    "acute_subdural_hematoma": 0.18,
    "subacute_chronic_subdural_hematoma": 0.10,
    "epidural_hematoma": 0.06,
    "traumatic_subarachnoid_hemorrhage": 0.08,
    "aneurysmal_subarachnoid_hemorrhage": 0.02,
    "brain_contusion": 0.03,
    "acute_ischemic_stroke": 0.15,
    "encephalomalacia_gliosis": 0.06,
    "intra_axial_brain_tumor": 0.07,
    "extra_axial_brain_tumor": 0.05,
    "ventriculomegaly": 0.05,
    "obstructive_hydrocephalus": 0.05,
    "cerebral_edema": 0.04,
    "craniotomy": 0.04,
    "burr_hole": 0.05,
    "resection_cavity": 0.03,
    "nondisplaced_skull_fracture": 0.04,
    "displaced_skull_fracture": 0.03,
    "arachnoid_cyst": 0.02,
}
_COMPANIONS = ("small_vessel_ischemic_disease", "cerebral_atrophy")
MR_FINDINGS = (*MR_PRINCIPAL, "intraventricular_hemorrhage", *_COMPANIONS)
CT_FINDINGS = (
    *CT_PRINCIPAL,
    "intraventricular_hemorrhage",
    "scalp_hemorrhage_hematoma",
    "pneumocephalus",
    "sinusitis",
    "mastoid_effusion",
    "basal_ganglia_calcification",
    *_COMPANIONS,
)

_BLEEDS = {
    "intraparenchymal_hemorrhage",
    "intraventricular_hemorrhage",
    "subdural_hematoma",
    "acute_subdural_hematoma",
    "subacute_chronic_subdural_hematoma",
    "epidural_hematoma",
    "traumatic_subarachnoid_hemorrhage",
    "aneurysmal_subarachnoid_hemorrhage",
}
_PARENTS = {
    **dict.fromkeys(_BLEEDS, ("intracranial_hemorrhage",)),
    "high_grade_glioma": ("glioma", "brain_tumor", "cerebral_edema"),
    "low_grade_glioma": ("glioma", "brain_tumor"),
    "brain_metastasis": ("brain_tumor", "cerebral_edema"),
    "meningioma": ("brain_tumor",),
    "pituitary_tumor": ("brain_tumor",),
    "intra_axial_brain_tumor": ("cerebral_edema",),
    "obstructive_hydrocephalus": ("ventriculomegaly",),
    "tumor_resection_cavity": ("postsurgical_changes",),
    "resection_cavity": ("postsurgical_changes",),
    "craniotomy_craniectomy": ("postsurgical_changes",),
    "craniotomy": ("postsurgical_changes",),
    "burr_hole": ("postsurgical_changes",),
}
_PARENTS_CT = {
    "intracranial_hemorrhage",
    "cerebral_edema",
    "ventriculomegaly",
    "postsurgical_changes",
    "midline_shift",
    "brain_mass_effect",
}
_PARENTS_MR = (_PARENTS_CT - {"midline_shift"}) | {"brain_midline_shift", "brain_tumor", "glioma"}
_LABELS = {"MR": _PARENTS_MR | set(MR_FINDINGS), "CT": _PARENTS_CT | set(CT_FINDINGS)}

_LOBES_MM = {
    "frontal": (30.0, -44.0, 28.0),
    "parietal": (32.0, 32.0, 38.0),
    "temporal": (45.0, 0.0, -16.0),
    "occipital": (26.0, 58.0, 14.0),
}
_DEEP_MM = {"putamen": (26.0, -12.0, 4.0), "thalamus": (13.0, 3.0, 8.0)}
_TERRITORIES_MM = {"mca": (46.0, -2.0, 20.0), "pca": (20.0, 62.0, 10.0), "aca": (12.0, -42.0, 38.0)}


def sample_findings(rng: np.random.Generator, modality: str, age_years: int) -> tuple[Finding, ...]:
    """Draw what one study shows: about a quarter nothing, most one to three findings.

    At most one finding takes up enough space to displace the brain.

    Parameters
    ----------
    modality
        "MR" or "CT".
    """
    if rng.random() < 0.25:
        return ()
    principal = MR_PRINCIPAL if modality == "MR" else CT_PRINCIPAL
    found: list[Finding] = []
    if rng.random() < 0.92:
        weights = np.array(list(principal.values()))
        label = str(rng.choice(list(principal), p=weights / weights.sum()))
        found += _with_followers(rng, label, modality)
    aging = float(np.clip((age_years - 40) / 50, 0.0, 1.0))
    have = {finding.label for finding in found}
    chances = {
        "small_vessel_ischemic_disease": 0.0 if "multiple_sclerosis" in have else 0.12 + 0.40 * aging,
        "cerebral_atrophy": 0.04 + 0.42 * aging,
    }
    if modality == "CT":
        chances |= {"sinusitis": 0.16, "mastoid_effusion": 0.06, "basal_ganglia_calcification": 0.04}
    if have & {"ventriculomegaly", "obstructive_hydrocephalus", "cerebral_edema"}:
        chances["cerebral_atrophy"] = 0.0
    for label, chance in chances.items():
        if rng.random() < chance:
            found.append(make_finding(rng, label, modality))
    if not found:
        found.append(make_finding(rng, "small_vessel_ischemic_disease", modality))
    return tuple(found)


def truth_labels(findings: tuple[Finding, ...], modality: str) -> tuple[str, ...]:
    """Return the labels present, implied ones included, sorted, each once.

    Only labels of this modality's list are returned (MR says `brain_midline_shift`, CT `midline_shift`).
    """
    labels = {label for finding in findings for label in (finding.label, *finding.implied)}
    return tuple(sorted(labels & _LABELS[modality]))


def make_finding(
    rng: np.random.Generator,
    label: str,
    modality: str,
    *,
    laterality: Laterality | None = None,
    **overrides: float,
) -> Finding:
    """Draw one finding of a given label: where, how large, how old, and what it displaces.

    `overrides` fix `size_mm` or any entry of `parameters` instead of drawing it.
    """
    drawn = _draw(rng, label)
    side = laterality or drawn.laterality
    size_mm = float(overrides.pop("size_mm", drawn.size_mm))
    parameters = {**drawn.parameters, **overrides}
    sign = {"left": 1.0, "right": -1.0}.get(side, 0.0)
    x, y, z = (part + float(rng.normal(0, 0.06 * abs(part) + 0.5)) for part in drawn.center_mm)
    center_mm = (round(sign * abs(x), 2), round(y, 2), round(z, 2))
    implied = list(_PARENTS.get(label, ()))
    shift_mm = parameters.get("shift_mm", 0.0)
    if shift_mm >= SHIFT_REPORTED_MM:
        implied.append("brain_midline_shift" if modality == "MR" else "midline_shift")
    if shift_mm >= MASS_EFFECT_MM:
        implied.append("brain_mass_effect")
    implied = [name for name in implied if name in _LABELS[modality]]
    rounded = {key: round(float(value), 3) for key, value in parameters.items()}
    return Finding(label, side, center_mm, round(size_mm, 1), drawn.age, tuple(implied), rounded)


@dataclass(frozen=True, slots=True)
class _Draw:
    center_mm: tuple[float, float, float]
    size_mm: float
    laterality: Laterality
    age: Age
    parameters: dict[str, float]


def _draw(rng: np.random.Generator, label: str) -> _Draw:
    side: Laterality = "left" if rng.random() < 0.5 else "right"
    lobe = _LOBES_MM[str(rng.choice(list(_LOBES_MM)))]
    uniform = rng.uniform
    match label:
        case "acute_ischemic_stroke":
            territory = str(rng.choice(list(_TERRITORIES_MM), p=[0.7, 0.18, 0.12]))
            size = uniform(38, 72)
            shift = uniform(3, 6) if territory == "mca" and size > 64 else 0.0
            return _Draw(_TERRITORIES_MM[territory], size, side, "acute", {"shift_mm": shift})
        case "chronic_ischemic_stroke":
            territory = str(rng.choice(list(_TERRITORIES_MM), p=[0.7, 0.2, 0.1]))
            return _Draw(_TERRITORIES_MM[territory], uniform(35, 65), side, "chronic", {})
        case "encephalomalacia_gliosis":
            return _Draw(lobe, uniform(24, 42), side, "chronic", {})
        case "lacunar_stroke":
            site = _DEEP_MM[str(rng.choice(list(_DEEP_MM)))]
            return _Draw(site, uniform(6, 12), side, "chronic", {"count": float(rng.integers(1, 4))})
        case "intraparenchymal_hemorrhage":
            deep = rng.random() < 0.55
            site = _DEEP_MM[str(rng.choice(list(_DEEP_MM)))] if deep else lobe
            size = uniform(22, 48)
            return _Draw(site, size, side, "acute", {"shift_mm": max(0.0, (size - 28) * 0.35)})
        case "brain_contusion":
            return _Draw((30.0, -62.0, -8.0), uniform(16, 28), side, "acute", {"shift_mm": 0.0})
        case "high_grade_glioma" | "intra_axial_brain_tumor":
            size = uniform(24, 50)
            shift = max(0.0, (size - 24) * 0.4)
            return _Draw(lobe, size, side, "", {"shift_mm": shift, "edema_mm": uniform(8, 18)})
        case "low_grade_glioma":
            size = uniform(26, 48)
            return _Draw(lobe, size, side, "", {"shift_mm": max(0.0, (size - 38) * 0.3)})
        case "brain_metastasis":
            count = float(rng.integers(2, 7))
            both: Laterality = "bilateral" if count > 2 else side
            return _Draw(lobe, uniform(9, 22), both, "", {"count": count, "edema_mm": uniform(5, 12)})
        case "meningioma" | "extra_axial_brain_tumor":
            size = uniform(22, 48)
            shift = max(0.0, (size - 28) * 0.3)
            return _Draw(_on_vault(rng), size, side, "", {"shift_mm": shift, "edema_mm": uniform(0, 8)})
        case "pituitary_tumor":
            return _Draw((0.0, -21.0, -12.0), uniform(18, 30), "midline", "", {})
        case "subdural_hematoma" | "acute_subdural_hematoma" | "subacute_chronic_subdural_hematoma":
            thickness = uniform(7, 17)
            chronic = label.startswith("subacute") or (label == "subdural_hematoma" and rng.random() < 0.5)
            shift = max(0.0, (thickness - 7) * (0.9 if chronic else 1.1))
            age: Age = "chronic" if chronic else "acute"
            return _Draw((60.0, -4.0, 26.0), thickness, side, age, {"shift_mm": shift})
        case "subdural_hygroma_effusions":
            return _Draw((50.0, -36.0, 30.0), uniform(6, 11), side, "", {"shift_mm": 0.0})
        case "epidural_hematoma":
            thickness = uniform(12, 26)
            shift = max(0.0, (thickness - 13) * 0.6)
            return _Draw(_on_vault(rng), thickness, side, "acute", {"shift_mm": shift})
        case "traumatic_subarachnoid_hemorrhage":
            return _Draw((46.0, -8.0, 22.0), uniform(50, 80), side, "acute", {})
        case "aneurysmal_subarachnoid_hemorrhage":
            return _Draw((0.0, -14.0, -12.0), uniform(60, 80), "bilateral", "acute", {})
        case "intraventricular_hemorrhage":
            return _Draw((20.0, 42.0, 8.0), uniform(10, 20), "bilateral", "acute", {"level": uniform(0.3, 0.8)})
        case "ventriculomegaly":
            return _Draw((0.0, 0.0, 14.0), 0.0, "bilateral", "", {"severity": uniform(0.6, 1.0)})
        case "obstructive_hydrocephalus":
            return _Draw((0.0, 12.0, -8.0), 0.0, "bilateral", "", {"severity": uniform(0.9, 1.4)})
        case "cerebral_edema":
            return _Draw((0.0, 0.0, 15.0), 0.0, "bilateral", "acute", {"severity": uniform(0.7, 1.0)})
        case "cerebral_atrophy":
            return _Draw((0.0, 0.0, 20.0), 0.0, "bilateral", "chronic", {"severity": uniform(0.6, 1.0)})
        case "small_vessel_ischemic_disease":
            return _Draw((0.0, 0.0, 24.0), 0.0, "bilateral", "chronic", {"severity": uniform(0.5, 1.0)})
        case "multiple_sclerosis":
            count = float(rng.integers(7, 18))
            return _Draw((0.0, 2.0, 24.0), uniform(6, 12), "bilateral", "", {"count": count, "active": 0.3})
        case "craniotomy_craniectomy" | "craniotomy":
            removed = float(rng.random() < 0.3 and label != "craniotomy")
            return _Draw(_on_vault(rng), uniform(55, 85), side, "", {"removed": removed})
        case "burr_hole":
            return _Draw(_on_vault(rng), uniform(12, 16), side, "", {})
        case "tumor_resection_cavity" | "resection_cavity":
            return _Draw(_LOBES_MM["frontal"] if rng.random() < 0.5 else lobe, uniform(24, 42), side, "", {})
        case "arachnoid_cyst":
            return _Draw((46.0, -26.0, -20.0), uniform(28, 46), side, "", {})
        case "nondisplaced_skull_fracture" | "displaced_skull_fracture":
            depth = uniform(4, 8) if label.startswith("displaced") else 0.0
            return _Draw(_on_vault(rng), uniform(45, 80), side, "acute", {"depth_mm": depth})
        case "scalp_hemorrhage_hematoma":
            return _Draw(_on_vault(rng), uniform(8, 15), side, "acute", {})
        case "pneumocephalus":
            return _Draw((26.0, -70.0, 26.0), uniform(6, 12), "bilateral", "", {})
        case "sinusitis":
            return _Draw((27.0, -58.0, -58.0), 0.0, side, "", {"level": uniform(0.45, 1.0)})
        case "mastoid_effusion":
            return _Draw((52.0, 22.0, -40.0), 0.0, side, "", {})
        case "basal_ganglia_calcification":
            return _Draw((19.0, -12.0, 1.0), uniform(5, 9), "bilateral", "chronic", {})
    raise ValueError(f"no such finding: {label}")


def _on_vault(rng: np.random.Generator) -> tuple[float, float, float]:
    """Return a point of the inner vault, left side, away from the midline and the skull base."""
    azimuth, elevation = np.radians(rng.uniform(-55, 55)), np.radians(rng.uniform(5, 45))
    direction = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    radii = np.array(CAVITY_RADII_MM)
    point = np.array(CAVITY_CENTER_MM) + direction / np.linalg.norm(direction / radii)
    return (float(point[0]), float(point[1]), float(point[2]))


def _with_followers(rng: np.random.Generator, label: str, modality: str) -> list[Finding]:
    """Return a finding and what rides with it: the opened skull of a resection, the scalp of a fracture."""
    first = make_finding(rng, label, modality)
    side = first.laterality
    found = [first]

    def also(follower: str, chance: float, at_first: bool = True, **fixed: float) -> None:
        if rng.random() < chance:
            other = make_finding(rng, follower, modality, laterality=side if at_first else None, **fixed)
            if at_first:
                other = replace(other, center_mm=_toward_vault(first.center_mm))
            found.append(other)

    if label == "intraparenchymal_hemorrhage":
        also("intraventricular_hemorrhage", 0.3, at_first=False)
    elif label == "tumor_resection_cavity":
        also("craniotomy_craniectomy", 1.0, removed=0.0)
    elif label == "resection_cavity":
        also("craniotomy", 1.0)
    elif label == "burr_hole":
        also("subacute_chronic_subdural_hematoma", 0.6, at_first=False)
        also("pneumocephalus", 0.6, at_first=False)
    elif label == "craniotomy":
        also("pneumocephalus", 0.5, at_first=False)
    elif label == "epidural_hematoma":
        also("nondisplaced_skull_fracture", 0.5)
        also("scalp_hemorrhage_hematoma", 0.6)
    elif label in ("nondisplaced_skull_fracture", "displaced_skull_fracture"):
        also("scalp_hemorrhage_hematoma", 0.9)
    elif label in ("traumatic_subarachnoid_hemorrhage", "acute_subdural_hematoma"):
        also("scalp_hemorrhage_hematoma", 0.4, at_first=False)
    elif label in ("pituitary_tumor", "aneurysmal_subarachnoid_hemorrhage"):
        also("obstructive_hydrocephalus", 0.3, at_first=False)
    return found


def _toward_vault(center_mm: tuple[float, float, float]) -> tuple[float, float, float]:
    """Project a point from the centre of the vault onto its inner surface."""
    radii, origin = np.array(CAVITY_RADII_MM), np.array(CAVITY_CENTER_MM)
    offset = np.array(center_mm) - origin
    point = origin + offset / np.linalg.norm(offset / radii)
    return (round(float(point[0]), 2), round(float(point[1]), 2), round(float(point[2]), 2))
