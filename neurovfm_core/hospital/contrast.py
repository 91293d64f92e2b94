"""How each tissue looks to each sequence: signal for MR, Hounsfield units for CT.

MR values are relative (white matter on T1 is 0.72) except ADC, which is in 1e-6 mm^2/s. They are
chosen for the right order of tissues at 1.5 to 3 T, not simulated from relaxation times.
"""

from enum import IntEnum, auto

import numpy as np
from numpy.typing import NDArray


class Tissue(IntEnum):
    """What a voxel of a synthetic head is made of."""

    AIR = 0
    SKIN = auto()
    MUSCLE = auto()
    FAT = auto()
    BONE = auto()
    MARROW = auto()
    CSF = auto()
    GREY = auto()
    WHITE = auto()
    DEEP_GREY = auto()
    DURA = auto()
    ARTERY = auto()
    VENOUS_SINUS = auto()
    CHOROID = auto()
    VITREOUS = auto()
    LENS = auto()
    MUCOSA = auto()
    SINUS_FLUID = auto()
    INFARCT = auto()
    EDEMA = auto()
    GLIOSIS = auto()
    WHITE_LESION = auto()
    BLOOD_ACUTE = auto()
    BLOOD_SUBACUTE = auto()
    BLOOD_CHRONIC = auto()
    TUMOR_ENHANCING = auto()
    TUMOR_SOLID = auto()
    MENINGIOMA = auto()
    NECROSIS = auto()
    CALCIFICATION = auto()


SEQUENCES = ("T1", "T1C", "T2", "FLAIR", "DWI", "ADC", "SWI", "CT")

_VALUES: dict[Tissue, tuple[float, ...]] = {
    #                        T1    T1C    T2  FLAIR   DWI   ADC   SWI     CT
    Tissue.AIR: (0.00, 0.00, 0.00, 0.00, 0.00, 0, 0.00, -1000),
    Tissue.SKIN: (0.55, 0.62, 0.35, 0.45, 0.10, 900, 0.45, 30),
    Tissue.MUSCLE: (0.45, 0.52, 0.25, 0.32, 0.14, 1300, 0.42, 55),
    Tissue.FAT: (1.02, 1.02, 0.72, 0.68, 0.06, 250, 0.62, -88),
    Tissue.BONE: (0.05, 0.05, 0.04, 0.05, 0.01, 60, 0.03, 1250),
    Tissue.MARROW: (0.58, 0.60, 0.38, 0.40, 0.05, 250, 0.28, 620),
    Tissue.CSF: (0.18, 0.18, 1.00, 0.10, 0.11, 3000, 0.62, 6),
    Tissue.GREY: (0.52, 0.53, 0.56, 0.66, 0.42, 820, 0.58, 38),
    Tissue.WHITE: (0.73, 0.75, 0.40, 0.52, 0.36, 730, 0.52, 27),
    Tissue.DEEP_GREY: (0.58, 0.59, 0.46, 0.58, 0.38, 760, 0.45, 37),
    Tissue.DURA: (0.42, 0.78, 0.28, 0.40, 0.18, 800, 0.40, 48),
    Tissue.ARTERY: (0.30, 1.10, 0.08, 0.14, 0.08, 900, 0.70, 44),
    Tissue.VENOUS_SINUS: (0.28, 1.12, 0.14, 0.20, 0.08, 900, 0.16, 52),
    Tissue.CHOROID: (0.45, 1.02, 0.75, 0.62, 0.32, 1500, 0.30, 48),
    Tissue.VITREOUS: (0.19, 0.19, 0.98, 0.22, 0.15, 2800, 0.60, 8),
    Tissue.LENS: (0.42, 0.42, 0.15, 0.30, 0.20, 900, 0.35, 78),
    Tissue.MUCOSA: (0.48, 0.98, 0.82, 0.82, 0.28, 1600, 0.50, 32),
    Tissue.SINUS_FLUID: (0.40, 0.44, 0.96, 0.88, 0.30, 1900, 0.52, 14),
    Tissue.INFARCT: (0.44, 0.45, 0.74, 0.92, 1.00, 380, 0.54, 18),
    Tissue.EDEMA: (0.46, 0.47, 0.82, 0.98, 0.40, 1400, 0.55, 16),
    Tissue.GLIOSIS: (0.43, 0.43, 0.80, 0.96, 0.36, 1350, 0.52, 17),
    Tissue.WHITE_LESION: (0.48, 0.49, 0.76, 0.96, 0.40, 1150, 0.52, 15),
    Tissue.BLOOD_ACUTE: (0.50, 0.52, 0.24, 0.42, 0.26, 500, 0.05, 66),
    Tissue.BLOOD_SUBACUTE: (0.98, 0.98, 0.86, 0.95, 0.50, 850, 0.14, 42),
    Tissue.BLOOD_CHRONIC: (0.40, 0.44, 0.94, 0.78, 0.20, 2100, 0.50, 20),
    Tissue.TUMOR_ENHANCING: (0.44, 1.15, 0.68, 0.80, 0.55, 900, 0.42, 43),
    Tissue.TUMOR_SOLID: (0.42, 0.43, 0.88, 0.96, 0.40, 1450, 0.55, 21),
    Tissue.MENINGIOMA: (0.50, 1.10, 0.60, 0.70, 0.52, 850, 0.45, 54),
    Tissue.NECROSIS: (0.26, 0.28, 0.96, 0.58, 0.20, 2300, 0.52, 13),
    Tissue.CALCIFICATION: (0.36, 0.38, 0.24, 0.32, 0.12, 600, 0.05, 190),
}

_TABLE = np.array([_VALUES[tissue] for tissue in Tissue], dtype=np.float32)
_SOFT_HU_JITTER = 1.0


def tissue_values(sequence: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return what each tissue looks like in one scan: the table with this scan's jitter.

    Returns
    -------
    (len(Tissue),) float32
        Relative signal for MR (ADC: 1e-6 mm^2/s), HU for CT.
    """
    values = _TABLE[:, SEQUENCES.index("CT" if sequence.startswith("CT") else sequence)].copy()
    if sequence.startswith("CT"):
        values[1:] += rng.normal(0, _SOFT_HU_JITTER, len(values) - 1).astype(np.float32)
        values[[Tissue.BONE, Tissue.MARROW]] *= np.float32(rng.normal(1.0, 0.05))
        return values
    return values * rng.normal(1.0, 0.03, len(values)).clip(0.9, 1.1).astype(np.float32)


def blend(
    values: NDArray[np.float32],
    below: NDArray[np.uint8],
    above: NDArray[np.uint8],
    share: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return the image of voxels that are `share` of tissue `above` and the rest of tissue `below`."""
    image = values[below]
    image += share * (values[above] - image)
    return image
