"""Studies that a cohort of heads must leave out: a chest, a knee, and a phantom nobody ordered."""

from dataclasses import dataclass

import numpy as np

from neurovfm_core.hospital.acquisition import Acquisition
from neurovfm_core.hospital.patients import HospitalParams, Visit, first_visit
from neurovfm_core.randomness import rng_for
from neurovfm_core.vocabulary import Modality

_FIRST_INDEX = 4_500_000  # far from any head study, so that no number is given twice


@dataclass(frozen=True, slots=True)
class OutsideStudy:
    """A study of another body part. One that is not in the warehouse has no report either."""

    visit: Visit
    body_part: str
    description: str
    report: str
    in_warehouse: bool = True
    in_pacs: bool = True


def outside_studies(params: HospitalParams) -> tuple[OutsideStudy, ...]:
    """Return the studies outside any head cohort. They do not depend on how many head studies there are."""
    plans = (
        (Modality.CT, "CHEST", "CT CHEST WITH CONTRAST", "IMPRESSION: No pulmonary embolism.", True, True),
        (Modality.MR, "KNEE", "MR KNEE LEFT", "IMPRESSION: Medial meniscus tear.", True, True),
        (Modality.CT, "PHANTOM", "QA PHANTOM", "", False, True),
        (Modality.CT, "ABDOMEN", "CT ABDOMEN PELVIS", "IMPRESSION: No acute finding.", True, False),
    )
    studies = []
    for at, (modality, body_part, description, report, in_warehouse, in_pacs) in enumerate(plans):
        rng = rng_for(params.seed, "outside", at)
        visit = first_visit(rng, _FIRST_INDEX + at, params, modality, healthy=True)
        studies.append(OutsideStudy(visit, body_part, description, report, in_warehouse, in_pacs))
    return tuple(studies)


def phantom(modality: Modality, rng: np.random.Generator) -> Acquisition:
    """Return a small axial stack of two nested ellipses: enough to look at, too little to learn from."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    outer, inner = x**2 / 0.8 + y**2 / 0.5 < 1, (x - 0.3) ** 2 + y**2 < 0.1
    low, body, core = (-1000, 40, -700) if modality is Modality.CT else (0, 700, 1500)
    slice_ = np.where(inner, core, np.where(outer, body, low))
    pixels = np.clip(slice_ + rng.normal(0, 8, (8, 64, 64)), -1024, 3071).round().astype(np.int16)
    if modality is Modality.MR:
        pixels = np.abs(pixels)
    return Acquisition(
        pixels=pixels,
        image_orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        image_positions=np.array([[-160.0, -160.0, 5.0 * at] for at in range(8)]),
        pixel_spacing=(5.0, 5.0),
        slice_thickness=5.0,
        masks={},
        units="HU" if modality is Modality.CT else "arbitrary",
        padding_value=None,
    )
