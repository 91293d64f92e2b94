"""Shapes of the networks, readable without torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from neurovfm_core.params import Params


class TransformerConfig(Params):
    """Shape of one transformer over packed tokens."""

    width: int = Field(gt=0)
    """Length of a token's vector, position code included."""
    depth: int = Field(gt=0)
    """Number of blocks."""
    num_heads: int = Field(gt=0)
    """Attention heads; the width is a multiple of it."""
    mlp_ratio: int = Field(default=4, gt=0)
    """Hidden width of the MLP as a multiple of the width."""
    code_width: int = Field(default=30, gt=0, multiple_of=6)
    """Values of the position code: one sine and one cosine per frequency and axis (paper: 30)."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self


class EncoderConfig(TransformerConfig):
    """Shape of an encoder."""

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.width <= self.code_width:
            raise ValueError(f"width {self.width} leaves no room beside a {self.code_width}-d position code")
        return self


class PredictorConfig(TransformerConfig):
    """Shape of the predictor (paper: 768 wide, 12 deep, whatever the encoder)."""

    width: int = Field(default=768, gt=0)
    """Width inside the predictor; a narrower one is about twice as fast per volume."""
    depth: int = Field(default=12, gt=0)
    """Number of blocks."""
    num_heads: int = Field(default=12, gt=0)
    """Attention heads; the width is a multiple of it."""


EncoderSize = Literal["tiny-demo", "tiny", "small", "medium", "base"]

ENCODER_SIZES: dict[EncoderSize, EncoderConfig] = {
    "tiny-demo": EncoderConfig(width=96, depth=4, num_heads=2),
    "tiny": EncoderConfig(width=192, depth=12, num_heads=3),
    "small": EncoderConfig(width=384, depth=12, num_heads=6),
    "medium": EncoderConfig(width=576, depth=12, num_heads=9),
    "base": EncoderConfig(width=768, depth=12, num_heads=12),
}
"""Small, medium and base are the paper's; tiny-demo learns in minutes on two CPU cores."""
