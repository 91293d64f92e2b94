"""Masks: which foreground tokens of a crop the student sees, and which it must predict."""

# Shape suffixes, this file: N foreground tokens of one crop, B blocks.

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from neurovfm_core.params import Params, Share
from neurovfm_core.vocabulary import Modality

MIN_TOKENS = 2
"""Fewer tokens cannot be split into context and target."""


class MaskMode(StrEnum):
    """How blocks become a mask; the two are drawn equally often."""

    TARGET_BLOCKS = "target_blocks"
    """Several large blocks are the targets, what they leave is context."""
    CONTEXT_BLOCK = "context_block"
    """One small block is the context, everything else is target."""


class MaskingParams(Params):
    """How a crop's foreground tokens are split into context and target."""

    context_share_mr: Share = 0.25
    """Share of the crop's foreground kept as context, MR (paper: 25 %)."""
    context_share_ct: Share = 0.20
    """Share of the crop's foreground kept as context, CT (paper: 20 %)."""
    context_dropout: Share = 0.20
    """Share of the context dropped again; the model must predict it too (paper: 20 %)."""
    num_target_blocks: int = Field(default=3, ge=1)
    """Blocks whose union is the target when the targets are blocks."""
    largest_aspect: float = Field(default=3.0, ge=1)
    """Blocks are at most this many times longer along one in-plane axis than along the other."""


@dataclass(frozen=True, slots=True)
class Mask:
    """The two sides of one crop; every foreground token is on exactly one."""

    context: NDArray[np.bool_]  # (N,)
    target: NDArray[np.bool_]  # (N,)
    mode: MaskMode


def sample_mask(
    coords: NDArray[np.integer], modality: Modality, rng: np.random.Generator, params: MaskingParams
) -> Mask:
    """Split the foreground tokens of one crop into context and target.

    Blocks span all slices, are centred on foreground tokens and have a random
    aspect in plane. They grow together until they hold exactly the wanted share
    of the *foreground*, so the shares hold for any shape of head and no draw has
    to be rejected; tokens on the rim are taken at random.

    Parameters
    ----------
    coords : (N, 3) integer
        Grid coordinates (d, h, w) of the foreground tokens, N >= 2.
    modality
        Decides the share of context.
    rng
        The stream of this volume at this step.

    Returns
    -------
    Mask
        The context holds at most the modality's share, less the dropout, and at
        least one token; the target is the rest.

    References
    ----------
    Paper, Methods, masking; blocks as deep as the crop as in the official code.
    """
    num_tokens = len(coords)
    if num_tokens < MIN_TOKENS:
        raise ValueError(f"a mask needs {MIN_TOKENS} foreground tokens, there are {num_tokens}")
    mode = (MaskMode.TARGET_BLOCKS, MaskMode.CONTEXT_BLOCK)[rng.integers(2)]
    num_blocks = params.num_target_blocks if mode is MaskMode.TARGET_BLOCKS else 1
    in_plane_N2 = coords[:, 1:].astype(np.float32)
    centres_B2 = in_plane_N2[rng.integers(num_tokens, size=num_blocks)]
    stretch_B = np.exp(rng.uniform(-0.5, 0.5, num_blocks) * np.log(params.largest_aspect)).astype(np.float32)
    offsets_BN2 = np.abs(in_plane_N2 - centres_B2[:, None])
    # A token is inside all blocks grown beyond this factor.
    growth_BN = np.maximum(offsets_BN2[..., 0] * stretch_B[:, None], offsets_BN2[..., 1] / stretch_B[:, None])
    # The sum is float64, so that no two tokens tie.
    growth_N = growth_BN.min(axis=0) + rng.uniform(0, 1e-3, num_tokens)
    share = params.context_share_mr if modality is Modality.MR else params.context_share_ct
    num_context = max(1, int(share * num_tokens))
    outside_in = -growth_N if mode is MaskMode.TARGET_BLOCKS else growth_N
    # Sorted, because the order inside a partition differs between processors.
    chosen = np.sort(np.argpartition(outside_in, num_context - 1)[:num_context])
    num_dropped = min(num_context - 1, int(np.ceil(params.context_dropout * num_context)))
    context = np.zeros(num_tokens, bool)
    context[rng.permutation(chosen)[num_dropped:]] = True
    return Mask(context, ~context, mode)
