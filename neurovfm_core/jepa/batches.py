"""What a step trains on, as a pure function of seed and step.

Nothing is counted or carried over: any step's batch can be made at any time, on
any rank, in any thread, which is what makes a resumed run exact.
"""

# Shape suffixes, this file: N packed tokens, V volumes, C context tokens, T target tokens.

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurovfm_core.errors import UsageError
from neurovfm_core.jepa.masking import MIN_TOKENS, Mask, MaskMode, sample_mask
from neurovfm_core.jepa.settings import PretrainParams
from neurovfm_core.models.attention import Packing
from neurovfm_core.randomness import rng_for
from neurovfm_core.shards import NormalizationStats, ShardSet, VolumeTokens, epoch_order, pack_by_budget
from neurovfm_core.vocabulary import Modality, Window

WINDOW_SHARES = {Window.BRAIN: 0.70, Window.BLOOD: 0.15, Window.BONE: 0.15}
"""How often a CT volume is seen through each window (paper)."""

GROUPS = tuple(product(Modality, MaskMode))
"""Whose losses are logged apart."""


@dataclass(frozen=True, slots=True)
class Crop:
    """One volume as one step sees it."""

    tokens: NDArray[np.uint8]  # (N, 1024)
    coords: NDArray[np.integer]  # (N, 3)
    table: NDArray[np.float32]  # (256,), stored byte to normalised value
    modality: Modality
    mask: Mask


@dataclass(frozen=True, slots=True)
class Pass:
    """Crops that go through the networks together, packed."""

    tokens_N1024: Tensor  # uint8
    coords_N3: Tensor  # int32
    volume_N: Tensor  # int32, which volume a token belongs to
    tables_V256: Tensor  # float32
    context_C: Tensor  # int64, rows of the context tokens
    target_T: Tensor  # int64, rows of the target tokens
    group_T: Tensor  # int64, index into GROUPS
    lengths: Packing
    context_lengths: Packing

    def to(self, device: torch.device) -> "Pass":
        """Return the pass with its tensors on `device`."""
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in ((field.name, getattr(self, field.name)) for field in fields(self))
        }
        return Pass(**moved)

    def decode(self) -> Tensor:
        """Return the tokens normalised, (N, 1024) float32: one gather does windows and statistics."""
        # Of five ways to look 6 M bytes up, `embedding` was the fastest that runs on any device.
        index_N1024 = self.tokens_N1024.int() + 256 * self.volume_N[:, None]
        return torch.nn.functional.embedding(index_N1024, self.tables_V256.view(-1, 1)).squeeze(-1)


@dataclass(frozen=True, slots=True)
class Batch:
    """All of one step, in passes that fit in memory."""

    passes: tuple[Pass, ...]
    num_volumes: int
    num_skipped: int  # volumes without enough foreground to be masked
    num_tokens: int
    num_context: int

    @property
    def num_targets(self) -> int:
        return self.num_tokens - self.num_context


class BatchSource:
    """Batches of one set of volumes.

    Every volume comes once per epoch, in an order that belongs to the epoch; a
    batch may hold the end of one epoch and the start of the next.

    Parameters
    ----------
    volume_ids
        The set; its order does not matter.
    rank, world
        This process takes every `world`-th volume of each batch.
    """

    def __init__(
        self,
        shards: ShardSet,
        volume_ids: Iterable[str],
        stats: NormalizationStats,
        params: PretrainParams,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if params.batch_volumes % world:
            raise UsageError(f"batch_volumes {params.batch_volumes} is not a multiple of {world} processes")
        self.shards, self.params, self.rank, self.world = shards, params, rank, world
        self.volume_ids = tuple(sorted(volume_ids))
        self._table = cache(stats.table)
        # Four epochs: a batch spans two at most, unless there are fewer volumes than a batch has.
        self._order = lru_cache(maxsize=4)(lambda epoch: epoch_order(params.seed, epoch, self.volume_ids))

    def accesses(self, step: int) -> list[tuple[str, int]]:
        """Return the volumes of a step, each with the epoch it is seen in."""
        size = self.params.batch_volumes
        positions = range(step * size + self.rank, (step + 1) * size, self.world)
        pairs = (divmod(position, len(self.volume_ids)) for position in positions)
        return [(self._order(epoch)[index], epoch) for epoch, index in pairs]

    def batch(self, step: int) -> Batch:
        """Return the batch of a training step."""
        accesses = self.accesses(step)
        self.shards.prefetch([volume_id for volume_id, _ in accesses])
        return self._packed([self.crop(volume_id, epoch) for volume_id, epoch in accesses])

    def validation_batches(self) -> Iterator[Batch]:
        """Yield every volume once, without flips, always with the same crop, window and mask."""
        size = self.params.batch_volumes
        for first in range(0, len(self.volume_ids), size):
            ids = self.volume_ids[first : first + size]
            yield self._packed([self.crop(volume_id, None) for volume_id in ids])

    def ahead(self, first_step: int) -> Generator[Batch, None, None]:
        """Yield the batches from `first_step` on, prepared in threads while earlier ones are used."""
        threads = self.params.loader_threads
        if not threads:
            for step in range(first_step, self.params.steps):
                yield self.batch(step)
            return
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="batches") as pool:
            try:
                for step in range(first_step, self.params.steps):
                    waiting.append(pool.submit(self.batch, step))
                    if len(waiting) > threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def crop(self, volume_id: str, epoch: int | None) -> Crop | None:
        """Return one volume as it is seen in one epoch (None: in validation).

        None if fewer than `MIN_TOKENS` tokens hold enough foreground.
        """
        rng = rng_for(self.params.seed, "crop", volume_id, "validation" if epoch is None else epoch)
        volume = self.shards.get(volume_id).select(self.params.min_foreground_share)
        if len(volume.coords) < MIN_TOKENS:
            return None
        volume = _cut(volume, self.params.max_crop, rng)
        if epoch is not None:
            volume = _turned(volume, rng)
        if len(volume.coords) < MIN_TOKENS:
            return None
        window = None
        if volume.modality is Modality.CT:
            window = list(Window)[rng.choice(3, p=[WINDOW_SHARES[window] for window in Window])]
        table = self._table(volume.modality, window)
        mask = sample_mask(volume.coords, volume.modality, rng, self.params.masking)
        return Crop(volume.tokens, volume.coords, table, volume.modality, mask)

    def _packed(self, crops: Sequence[Crop | None]) -> Batch:
        kept = [crop for crop in crops if crop is not None]
        lengths = [len(crop.coords) for crop in kept]
        budget = max(self.params.max_tokens_per_pass, *lengths, 0)
        return Batch(
            passes=tuple(_pack([kept[i] for i in group]) for group in pack_by_budget(lengths, budget)),
            num_volumes=len(kept),
            num_skipped=len(crops) - len(kept),
            num_tokens=sum(lengths),
            num_context=sum(int(crop.mask.context.sum()) for crop in kept),
        )


def _cut(volume: VolumeTokens, max_crop: tuple[int, int, int], rng: np.random.Generator) -> VolumeTokens:
    """Crop to at most `max_crop` tokens per axis, so that a random foreground token is inside."""
    grid, size = np.array(volume.grid), np.minimum(volume.grid, max_crop)
    inside = volume.coords[rng.integers(len(volume.coords))]
    start = np.clip(inside - rng.integers(size), 0, grid - size)
    if (size == grid).all():
        return volume
    (a, b, c), (d, e, f) = start.tolist(), size.tolist()
    return volume.crop((a, b, c), (d, e, f))


def _turned(volume: VolumeTokens, rng: np.random.Generator) -> VolumeTokens:
    """Flip each axis and swap the in-plane axes, each with probability one half."""
    *flips, swap = rng.random(4) < 0.5
    for axis in np.flatnonzero(flips):
        volume = volume.flip(int(axis))
    return volume.swap_in_plane() if swap else volume


def _pack(crops: Sequence[Crop]) -> Pass:
    lengths = [len(crop.coords) for crop in crops]
    context_N = np.concatenate([crop.mask.context for crop in crops])
    groups_V = [GROUPS.index((crop.modality, crop.mask.mode)) for crop in crops]
    return Pass(
        tokens_N1024=torch.from_numpy(np.concatenate([crop.tokens for crop in crops])),
        coords_N3=torch.from_numpy(np.concatenate([crop.coords for crop in crops]).astype(np.int32)),
        volume_N=torch.from_numpy(np.repeat(np.arange(len(crops), dtype=np.int32), lengths)),
        tables_V256=torch.from_numpy(np.stack([crop.table for crop in crops])),
        context_C=torch.from_numpy(np.flatnonzero(context_N)),
        target_T=torch.from_numpy(np.flatnonzero(~context_N)),
        group_T=torch.from_numpy(np.repeat(groups_V, [int(crop.mask.target.sum()) for crop in crops])),
        lengths=Packing.of(lengths),
        context_lengths=Packing.of([int(crop.mask.context.sum()) for crop in crops]),
    )
