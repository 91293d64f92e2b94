"""Attention within each sequence of a packed batch, by the fastest kernel at hand."""

# Shape suffixes, this file: N packed tokens, L tokens of one sequence, H heads, K head width.

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from neurovfm_core.errors import UsageError

BACKEND_VARIABLE = "NEUROVFM_ATTENTION"
"""Environment variable that names a back-end instead of the automatic choice."""


@dataclass(frozen=True)
class Packing:
    """How packed tokens fall into sequences; made once per batch, used by every block."""

    lengths: tuple[int, ...]
    _boundaries: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, lengths: "Sequence[int] | Tensor | Packing") -> "Packing":
        """Accept tokens per sequence in any form; sequences without tokens are dropped."""
        if isinstance(lengths, Packing):
            return lengths
        counts = lengths.tolist() if isinstance(lengths, Tensor) else lengths
        return cls(tuple(int(count) for count in counts if count))

    def boundaries(self, device: torch.device) -> Tensor:
        """Return cumulative lengths with a leading 0, int32, on `device`."""
        if device not in self._boundaries:
            ends = torch.tensor((0, *self.lengths)).cumsum(0)
            self._boundaries[device] = ends.to(device, torch.int32)
        return self._boundaries[device]


def attend(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, lengths: Sequence[int] | Tensor | Packing) -> Tensor:
    """Softmax attention within each sequence; tokens of two sequences never meet.

    Parameters
    ----------
    q_NHK, k_NHK, v_NHK : (N, H, K) float
        Queries, keys and values of all sequences, one after the other.
    lengths
        Tokens per sequence; they add up to N.

    Returns
    -------
    (N, H, K), dtype of the queries
        ``softmax(q k^T / sqrt(K)) v`` of each sequence.

    Raises
    ------
    UsageError
        The environment or `use_backend` names a back-end that cannot run here.
    """
    packing = Packing.of(lengths)
    if sum(packing.lengths) != len(q_NHK):
        raise ValueError(f"lengths add up to {sum(packing.lengths)}, there are {len(q_NHK)} tokens")
    if not packing.lengths:
        return q_NHK
    return _BACKENDS[_chosen(q_NHK.device.type, q_NHK.dtype)](q_NHK, k_NHK, v_NHK, packing)


def use_backend(name: str | None) -> None:
    """Make every later `attend` use this back-end; None returns to the automatic choice."""
    if name is None:
        os.environ.pop(BACKEND_VARIABLE, None)
    else:
        os.environ[BACKEND_VARIABLE] = name
    _chosen.cache_clear()


def available_backends(device_type: str, dtype: torch.dtype) -> tuple[str, ...]:
    """Return the back-ends that can run tensors of this kind here, fastest first."""
    # The two fused kernels have neither a CPU form nor a 32-bit one.
    fused = device_type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    fused = fused and torch.cuda.get_device_capability() >= (8, 0)
    names = []
    if fused and importlib.util.find_spec("flash_attn_2_cuda"):
        names.append("flash-attn")
    if fused and importlib.util.find_spec("torch.nn.attention.varlen"):
        names.append("varlen")
    return (*names, "sdpa")


@cache
def _chosen(device_type: str, dtype: torch.dtype) -> str:
    available = available_backends(device_type, dtype)
    wanted = os.environ.get(BACKEND_VARIABLE, available[0])
    if wanted not in available:
        raise UsageError(
            f"attention back-end {wanted!r} cannot run {dtype} on {device_type}",
            where=f"environment variable {BACKEND_VARIABLE}",
            hint=f"available here: {', '.join(available)}",
        )
    return wanted


def _flash_attn(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, packing: Packing) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    ends, longest = packing.boundaries(q_NHK.device), max(packing.lengths)
    return flash_attn_varlen_func(q_NHK, k_NHK, v_NHK, ends, ends, longest, longest)


def _varlen(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, packing: Packing) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = packing.boundaries(q_NHK.device), max(packing.lengths)
    # Positional arguments up to max_k are what torch 2.11 to 2.13 have in common.
    out = varlen_attn(q_NHK, k_NHK, v_NHK, ends, ends, longest, longest)
    return out if isinstance(out, Tensor) else out[0]


def _sdpa(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, packing: Packing) -> Tensor:
    # On CPUs a loop over sequences beats padding and block-diagonal masks. `split` rather than
    # slices: its backward joins the pieces once instead of adding V mostly empty tensors.
    outs_LHK = [
        scaled_dot_product_attention(*(x_LHK.transpose(0, 1)[None] for x_LHK in pieces))[0].transpose(0, 1)
        for pieces in zip(*(x_NHK.split(packing.lengths) for x_NHK in (q_NHK, k_NHK, v_NHK)), strict=True)
    ]
    return torch.cat(outs_LHK)


_BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Packing], Tensor]] = {
    "flash-attn": _flash_attn,
    "varlen": _varlen,
    "sdpa": _sdpa,
}
