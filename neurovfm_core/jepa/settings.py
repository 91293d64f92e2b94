"""Settings of a pretraining run, readable without torch. The defaults are the paper's run."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from neurovfm_core.jepa.masking import MaskingParams
from neurovfm_core.models.config import ENCODER_SIZES, EncoderConfig, EncoderSize, PredictorConfig
from neurovfm_core.params import Params
from neurovfm_core.vocabulary import Modality

Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0)]
Momentum01 = Annotated[float, Field(ge=0, le=1)]


class PretrainParams(Params):
    """One pretraining run."""

    size: EncoderSize = "base"
    """Encoder preset: tiny-demo, tiny, small, medium or base."""
    encoder: EncoderConfig | None = None
    """An encoder of your own shape; it takes the place of `size`."""
    predictor: PredictorConfig = PredictorConfig()
    """Shape of the predictor. It is two thirds of the cost of a step at the paper's 768 x 12."""

    modality: Modality | None = None
    """Train on this modality alone; unset trains on both."""
    data_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training studies to use. A smaller share is a subset of a larger one."""
    min_foreground_share: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """A token with less foreground than this share of its voxels is not used."""
    max_crop: tuple[Count, Count, Count] = (20, 20, 20)
    """Largest crop, in tokens (d, h, w); a larger volume is cropped at random (paper: 20 per axis)."""
    masking: MaskingParams = MaskingParams()
    """How crops are split into context and target."""

    steps: Count = 510_000
    """Optimizer steps (paper: 510,000)."""
    batch_volumes: Count = 768
    """Volumes per step (paper: 768)."""
    max_tokens_per_pass: Count = 65_536
    """A step is computed in passes of at most this many tokens, to fit in memory. A single larger
    volume still goes alone. The gradient is the whole batch's, however it is divided."""
    learning_rate: Rate = 3.75e-4
    """Peak learning rate of AdamW."""
    learning_rate_start: Rate = 1e-4
    """Learning rate of the first step; it rises linearly to the peak."""
    learning_rate_final: Rate = 1e-6
    """Learning rate that the cosine ends at."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.10
    """Share of the steps spent on warm-up (paper: 10 %)."""
    weight_decay: Rate = 0.05
    """Decay of weight matrices; biases, norms and the mask vector have none."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the whole gradient."""
    momentum_start: Momentum01 = 0.994
    """Share of itself that the teacher keeps at the first step (paper: 0.994)."""
    momentum_end: Momentum01 = 1.0
    """The same at the last step (paper: 1.0)."""

    seed: int = 42
    """Decides start weights, order, crops, flips, windows and masks."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the networks; weights are float32 in either. On CPUs fp32 is the faster one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU if there is one."""
    num_threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of the arithmetic; 0 leaves it to torch. Bits may differ between numbers of threads."""
    loader_threads: Annotated[int, Field(ge=0)] = 4
    """Threads that prepare later batches meanwhile; 0 prepares each when it is needed."""

    log_every: Count = 50
    """Steps between lines of log.jsonl."""
    validate_every: Count = 2_000
    """Steps between validations; the last step is always validated."""
    validation_volumes: Count = 1_000
    """At most this many validation volumes, the same ones with the same masks every time."""
    checkpoint_every: Count = 1_000
    """Steps between checkpoints. A stopped run writes one before it returns."""
    keep_checkpoints: Count = 2
    """Newest checkpoints to keep."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.momentum_end < self.momentum_start:
            raise ValueError(f"momentum_end {self.momentum_end} is below momentum_start {self.momentum_start}")
        if self.learning_rate < max(self.learning_rate_start, self.learning_rate_final):
            raise ValueError("learning_rate is the peak: neither learning_rate_start nor _final may exceed it")
        return self

    @property
    def encoder_config(self) -> EncoderConfig:
        """The shape to build: `encoder` if it is given, else the preset."""
        return self.encoder or ENCODER_SIZES[self.size]
