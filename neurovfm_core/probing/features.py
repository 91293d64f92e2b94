"""What a probe sees of a study: the tokens of a frozen encoder, or a baseline's stand-in for them."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.models.encoder import Encoder, EncoderConfig
from neurovfm_core.randomness import rng_for
from neurovfm_core.shards import NormalizationStats, ShardSet, VolumeTokens
from neurovfm_core.vocabulary import Modality
from neurovfm_core.volumes import windows_of

logger = logging.getLogger(__name__)

HISTOGRAM_BINS = {Modality.MR: 64, Modality.CT: 128}
"""MR bytes in groups of four; CT joint codes one by one, of which every window's histogram is a sum."""


@dataclass(frozen=True, slots=True)
class Bag:
    """All that a probe sees of one study: one row per token (or per volume, for a baseline).

    `features` (T, F) float32, `coords` (T, 3) int32 token coordinates on the volume's grid,
    `volume_index` (T,) int32 into `volume_ids`, `window_index` (T,) uint8 into `windows_of(modality)`.
    `num_tokens_seen` counts what the encoder saw, before any cap on the rows kept.
    """

    study_id: str
    features: NDArray[np.float32]
    coords: NDArray[np.int32]
    volume_index: NDArray[np.int32]
    window_index: NDArray[np.uint8]
    volume_ids: tuple[str, ...]
    num_tokens_seen: int

    def __len__(self) -> int:
        return len(self.features)

    def subset(self, rows: NDArray[np.intp]) -> "Bag":
        """Return the same study with these rows only."""
        return Bag(
            self.study_id,
            self.features[rows],
            self.coords[rows],
            self.volume_index[rows],
            self.window_index[rows],
            self.volume_ids,
            self.num_tokens_seen,
        )


@torch.no_grad()
def encode_study(
    encoder: Encoder,
    shards: ShardSet,
    study_id: str,
    volume_ids: Sequence[str],
    stats: NormalizationStats,
    *,
    min_foreground_share: float = 0.25,
    max_tokens: int | None = None,
    seed: int = 0,
) -> Bag:
    """Run the frozen encoder over every whole volume of a study, CT once through each window.

    Parameters
    ----------
    volume_ids
        The study's volumes, all of one modality.
    min_foreground_share
        Tokens with a smaller share of patient voxels are not shown to the encoder.
    max_tokens
        Rows kept for the study, drawn without replacement by (seed, study): a bound on the probe's cost.
        The encoder sees the whole study all the same. None keeps all.

    Raises
    ------
    Excluded
        EMPTY_FOREGROUND, if no volume has a token left.
    """
    encoder.eval()
    device = next(encoder.parameters()).device
    parts: list[tuple[NDArray[np.float32], VolumeTokens, int, int]] = []
    for index, volume_id in enumerate(volume_ids):
        volume = shards.get(volume_id).select(min_foreground_share)
        if not len(volume.tokens):
            continue
        coords = torch.from_numpy(np.ascontiguousarray(volume.coords)).to(device)
        for window_index, window in enumerate(windows_of(volume.modality)):
            table = stats.table(volume.modality, window)
            tokens = torch.from_numpy(table[volume.tokens]).to(device)
            encoded = encoder(tokens, coords, [len(tokens)]).float().cpu().numpy()
            parts.append((encoded, volume, index, window_index))
    if not parts:
        raise Excluded(Reason.EMPTY_FOREGROUND, "no volume of the study has a foreground token", where=study_id)
    bag = Bag(
        study_id,
        np.concatenate([encoded for encoded, *_ in parts]),
        np.concatenate([volume.coords for _, volume, *_ in parts]).astype(np.int32),
        np.concatenate([np.full(len(encoded), index, np.int32) for encoded, _, index, _ in parts]),
        np.concatenate([np.full(len(encoded), window, np.uint8) for encoded, _, _, window in parts]),
        tuple(volume_ids),
        sum(len(encoded) for encoded, *_ in parts),
    )
    return cap_tokens(bag, max_tokens, seed)


def cap_tokens(bag: Bag, max_tokens: int | None, seed: int) -> Bag:
    """Keep at most `max_tokens` rows, drawn by (seed, study) and left in their order."""
    if max_tokens is None or len(bag) <= max_tokens:
        return bag
    rows = rng_for(seed, "tokens of a bag", bag.study_id).choice(len(bag), max_tokens, replace=False)
    return bag.subset(np.sort(rows))


def histogram_bag(
    shards: ShardSet, study_id: str, volume_ids: Sequence[str], *, min_foreground_share: float = 0.25
) -> Bag:
    """Return one row per volume: the histogram of its stored bytes over its foreground tokens.

    The baseline that knows intensities but no anatomy. Rows are square roots of shares, so that the
    Euclidean distance between two rows is the Hellinger distance between two histograms.

    Raises
    ------
    Excluded
        EMPTY_FOREGROUND, if no volume has a token.
    """
    rows, index = [], []
    num_tokens = 0
    for position, volume_id in enumerate(volume_ids):
        volume = shards.get(volume_id).select(min_foreground_share)
        if not len(volume.tokens):
            continue
        counts = np.bincount(volume.tokens.reshape(-1), minlength=256)
        bins = HISTOGRAM_BINS[volume.modality]
        binned = counts.reshape(64, 4).sum(1) if bins == 64 else counts[:bins]
        rows.append(np.sqrt(binned / counts.sum()).astype(np.float32))
        index.append(position)
        num_tokens += len(volume.tokens)
    if not rows:
        raise Excluded(Reason.EMPTY_FOREGROUND, "no volume of the study has a foreground token", where=study_id)
    return Bag(
        study_id,
        np.stack(rows),
        np.zeros((len(rows), 3), np.int32),
        np.array(index, np.int32),
        np.zeros(len(rows), np.uint8),
        tuple(volume_ids),
        num_tokens,
    )


def random_encoder(config: EncoderConfig, seed: int) -> Encoder:
    """Return an encoder that was never trained: what architecture and position code give by themselves."""
    return Encoder(config, seed=seed).eval().requires_grad_(False)


def normalization_of(encoder_folder: Path) -> NormalizationStats:
    """Return the statistics that an encoder was trained with: its card has them, published weights have constants."""
    card = encoder_folder / "card.json"
    if not card.exists():
        return NormalizationStats.official()
    return NormalizationStats.from_dict(json.loads(card.read_text(encoding="utf-8"))["normalization"])
