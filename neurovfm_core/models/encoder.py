"""The encoder: a vision transformer over the packed tokens of whole volumes.

Parameter names are those of the published weights, so that either side loads the other's.
"""

# Shape suffixes, this file: N packed tokens, D width, H heads, K head width, C position code.

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from neurovfm_core.models.attention import Packing, attend
from neurovfm_core.models.config import ENCODER_SIZES, EncoderConfig, TransformerConfig
from neurovfm_core.models.positions import positional_code
from neurovfm_core.randomness import rng_for
from neurovfm_core.vocabulary import VOXELS_PER_TOKEN

__all__ = ["ENCODER_SIZES", "Block", "Encoder", "EncoderConfig", "initialize"]

NORM_EPS = 1e-6


class SelfAttention(nn.Module):
    """Multi-head attention of every token to its own volume."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x_ND: Tensor, packing: Packing) -> Tensor:
        qkv_N3HK = self.qkv(x_ND).unflatten(-1, (3, self.num_heads, -1))
        q_NHK, k_NHK, v_NHK = qkv_N3HK.unbind(1)
        return self.proj(attend(q_NHK, k_NHK, v_NHK, packing).flatten(1))


class Mlp(nn.Module):
    """Two linear maps around a GELU."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x_ND: Tensor) -> Tensor:
        # The tanh form is what the published weights were trained with.
        return self.fc2(gelu(self.fc1(x_ND), approximate="tanh"))


class Block(nn.Module):
    """Pre-norm transformer block; the residual stream stays float32 under autocast."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mixer = SelfAttention(config.width, config.num_heads)
        self.norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = Mlp(config.width, config.mlp_ratio)

    def forward(self, x_ND: Tensor, packing: Packing) -> Tensor:
        x_ND = x_ND + self.mixer(self.norm1(x_ND), packing)
        return x_ND + self.mlp(self.norm2(x_ND))


class TokenEmbedding(nn.Module):
    """Linear map of a patch's voxels to all of the width but the position code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(VOXELS_PER_TOKEN, width)

    def forward(self, tokens_N1024: Tensor) -> Tensor:
        return self.proj(tokens_N1024)


class Encoder(nn.Module):
    """Map tokens and their coordinates to features, volume by volume.

    Parameters
    ----------
    config
        Width, depth, heads.
    seed
        Key of the random start weights. None leaves them as torch made them,
        for a loader that overwrites them all.
    """

    def __init__(self, config: EncoderConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.token_embed = TokenEmbedding(config.width - config.code_width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        if seed is not None:
            initialize(self, seed, "encoder")

    def forward(self, tokens_N1024: Tensor, coords_N3: Tensor, lengths: Sequence[int] | Tensor | Packing) -> Tensor:
        """Encode a packed batch.

        Parameters
        ----------
        tokens_N1024 : (N, 1024) float, normalised
            Voxels of each token, row-major over (4, 16, 16).
        coords_N3 : (N, 3) integer
            Grid coordinates (d, h, w) within the volume or crop.
        lengths
            Tokens per volume; they add up to N.

        Returns
        -------
        (N, D) float32
            Output of the final norm.
        """
        packing = Packing.of(lengths)
        code_NC = positional_code(coords_N3, self.config.code_width)
        x_ND = torch.cat((self.token_embed(tokens_N1024).float(), code_NC), dim=-1)
        for block in self.blocks:
            x_ND = block(x_ND, packing)
        return self.norm(x_ND)


def initialize(module: nn.Module, seed: int, key: str) -> None:
    """Draw start weights from the stream of (seed, key), in order of the parameters.

    Linear weights are normal with standard deviation 0.02 and biases zero; what
    feeds the residual stream in block i (from 1) is divided by sqrt(2 i), so that
    its variance does not grow with depth. Norms start as the identity.
    """
    generator = torch.Generator().manual_seed(int(rng_for(seed, "weights", key).integers(2**62)))
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear):
                part.weight.normal_(std=0.02, generator=generator)
                if part.bias is not None:
                    part.bias.zero_()
        blocks = [part for part in module.modules() if isinstance(part, Block)]
        for i, block in enumerate(blocks, start=1):
            block.mixer.proj.weight.div_(math.sqrt(2 * i))
            block.mlp.fc2.weight.div_(math.sqrt(2 * i))
