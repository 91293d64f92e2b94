"""Words that TOML, Parquet, the CLI and the code share."""

from enum import StrEnum


class Modality(StrEnum):
    """DICOM (0008,0060)."""

    CT = "CT"
    MR = "MR"


class Window(StrEnum):
    """CT display windows. The string is what TOML, Parquet and the CLI say."""

    BRAIN = "brain"
    BLOOD = "blood"
    BONE = "bone"


WIDTH_LEVEL_HU = {Window.BRAIN: (80, 40), Window.BLOOD: (200, 80), Window.BONE: (2800, 600)}
"""Paper, "Series Preprocessing"."""


class Split(StrEnum):
    """To which part of the data a patient belongs, for ever."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class LabelState(StrEnum):
    """What a report says of one diagnosis. Silence is its own state, never 0."""

    PRESENT = "present"
    UNCERTAIN = "uncertain"
    ABSENT = "absent"
    HISTORICAL = "historical"
    NOT_MENTIONED = "not_mentioned"


PATCH_SHAPE = (4, 16, 16)
"""Voxels of one token, (D, H, W)."""
VOXELS_PER_TOKEN = 4 * 16 * 16
