"""What a probe is told, and what the states of a label mean to it. Readable without torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from neurovfm_core.params import Params
from neurovfm_core.vocabulary import LabelState

Meaning = Literal["present", "absent", "missing"]


class ProbeParams(Params):
    """How a probe is trained and what the states of a label mean to it."""

    pooling: Literal["classify_then_aggregate", "avgpool"] = "classify_then_aggregate"
    """How token votes become a study's logit (paper: classify, then aggregate by attention)."""
    hidden: Annotated[int, Field(ge=1)] = 512
    """Width of the attention score."""
    mlp: tuple[int, ...] = (384,)
    """Widths of the hidden layers that turn a token into its votes."""
    epochs: Annotated[int, Field(ge=1)] = 50
    """Most passes over the training studies."""
    patience: Annotated[int, Field(ge=1)] = 10
    """Epochs without a better validation loss before training stops."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Peak of the schedule: linear warm-up over a tenth of the steps, then a half cosine to zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW decay, on weight matrices only."""
    batch_studies: Annotated[int, Field(ge=1)] = 4
    """Studies per step."""
    pos_weight_cap: Annotated[float, Field(ge=1)] = 100.0
    """Upper bound of negatives / positives as the weight of a positive; uncapped it reaches thousands."""
    uncertain_as: Meaning = "missing"
    """What a hedged mention means for training and evaluation."""
    historical_as: Meaning = "absent"
    """What a finding of the past means; the label asks about this study."""
    not_mentioned_as: Literal["absent", "missing"] = "absent"
    """What a report's silence means; radiologists seldom list what is not there."""
    min_train_positives: Annotated[int, Field(ge=1)] = 2
    """Labels with fewer positives, or fewer negatives, among the training studies get no head."""
    max_tokens_per_study: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a training or validation study that the probe sees; all of them if not set."""
    seed: int = 0
    """Initial weights and the order of studies."""

    def meaning(self, state: LabelState) -> float:
        """Return 1 for present, 0 for absent, NaN for missing."""
        word = {
            LabelState.PRESENT: "present",
            LabelState.ABSENT: "absent",
            LabelState.UNCERTAIN: self.uncertain_as,
            LabelState.HISTORICAL: self.historical_as,
            LabelState.NOT_MENTIONED: self.not_mentioned_as,
        }[state]
        return {"present": 1.0, "absent": 0.0, "missing": math.nan}[word]


def label_matrix(
    states: Sequence[Mapping[str, LabelState]], labels: Sequence[str], params: ProbeParams
) -> NDArray[np.float32]:
    """Turn label states into targets.

    Returns
    -------
    (n, C) float32
        1 present, 0 absent, NaN missing. A label that a study's mapping lacks is NaN.
    """
    return np.array(
        [[params.meaning(study[label]) if label in study else math.nan for label in labels] for study in states],
        np.float32,
    ).reshape(len(states), len(labels))
