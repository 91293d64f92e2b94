"""Splits: by patient, with a temporal hold-out, decided once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from neurovfm_core.params import Params
from neurovfm_core.randomness import rng_for
from neurovfm_core.vocabulary import Split


class SplitParams(Params):
    """To which split a new patient goes."""

    test_from: str = ""
    """First year of the temporally held-out test set, such as "2024". A patient with any study from
    then on goes to test, with all earlier studies. Empty: no temporal hold-out."""
    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the other patients drawn for test; for sources without dates."""
    val_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the patients that are not in test drawn for validation."""
    seed: int = 0
    """Decides the draws; another seed is another split."""


@dataclass(frozen=True)
class PatientStudy:
    """One study of one patient; `time_bucket` is the true acquisition year, empty if unknown."""

    patient_id: str
    time_bucket: str


def assign_splits(
    studies: Iterable[PatientStudy], frozen: Mapping[str, Split], params: SplitParams
) -> dict[str, Split]:
    """Return the split of every patient; one that has a split keeps it.

    A patient's draw belongs to the patient's id, so it does not depend on who
    else is there, and splits can never cross.
    """
    held_out: dict[str, bool] = {}
    for study in studies:
        late = bool(params.test_from) and study.time_bucket >= params.test_from
        held_out[study.patient_id] = held_out.get(study.patient_id, False) or late
    splits = {}
    for patient_id, late in held_out.items():
        splits[patient_id] = frozen.get(patient_id) or (Split.TEST if late else _draw(patient_id, params))
    return splits


def _draw(patient_id: str, params: SplitParams) -> Split:
    in_test, in_val = rng_for(params.seed, "split", patient_id).random(2)
    if in_test < params.test_share:
        return Split.TEST
    return Split.VAL if in_val < params.val_share else Split.TRAIN
