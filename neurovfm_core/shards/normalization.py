"""Intensity statistics of the training split, and the tables that decode and normalise in one gather."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neurovfm_core.errors import UsageError
from neurovfm_core.vocabulary import Modality, Window
from neurovfm_core.volumes import decode_table, windows_of

if TYPE_CHECKING:
    from neurovfm_core.shards.reading import ShardSet

MeanStd = tuple[float, float]

OFFICIAL_NORMALIZATION: Mapping[tuple[Modality, Window | None], MeanStd] = {
    (Modality.MR, None): (0.3141, 0.2623),
    (Modality.CT, Window.BRAIN): (0.4139, 0.4059),
    (Modality.CT, Window.BLOOD): (0.3184, 0.3605),
    (Modality.CT, Window.BONE): (0.2719, 0.1875),
}
"""Mean and standard deviation that the published weights were trained with."""


@dataclass(frozen=True)
class NormalizationStats:
    """How often each stored byte occurs, per modality: every statistic follows, exactly.

    Counts add up, so statistics of parts merge in any order to the same numbers. A modality
    without counts has no statistics of its own.

    Attributes
    ----------
    counts : modality to (256,) int64
        Over all voxels of the tokens that count as foreground.
    fixed
        Means and standard deviations that overrule the counts, for weights trained elsewhere.
    """

    counts: Mapping[Modality, NDArray[np.int64]] = field(default_factory=dict)
    fixed: Mapping[tuple[Modality, Window | None], MeanStd] = field(default_factory=dict)

    @classmethod
    def official(cls) -> "NormalizationStats":
        """Return the constants of the published weights."""
        return cls(fixed=OFFICIAL_NORMALIZATION)

    @classmethod
    def of_tokens(cls, modality: Modality, tokens: NDArray[np.uint8]) -> "NormalizationStats":
        """Count the stored bytes of some tokens."""
        return cls({modality: np.bincount(tokens.ravel(), minlength=256).astype(np.int64)})

    @classmethod
    def of_volumes(
        cls, shards: "ShardSet", volume_ids: Iterable[str], min_foreground_share: float = 0.25
    ) -> "NormalizationStats":
        """Count the foreground tokens of some volumes; give the training split, never more."""
        return cls.merged(
            cls.of_tokens(volume.modality, volume.select(min_foreground_share).tokens)
            for volume in map(shards.get, volume_ids)
        )

    @classmethod
    def merged(cls, parts: Iterable["NormalizationStats"]) -> "NormalizationStats":
        """Add the counts of parts up."""
        total: dict[Modality, NDArray[np.int64]] = {}
        for part in parts:
            for modality, counts in part.counts.items():
                total[modality] = total[modality] + counts if modality in total else counts
        return cls(total)

    def mean_std(self, modality: Modality, window: Window | None) -> MeanStd:
        """Return mean and standard deviation of the decoded intensity in [0, 1].

        Raises
        ------
        UsageError
            No volume of this modality was counted, or all had one intensity.
        """
        if (modality, window) in self.fixed:
            return self.fixed[modality, window]
        if modality not in self.counts or not self.counts[modality].any():
            raise UsageError(
                f"there are no intensity statistics for {modality}",
                hint=f"statistics come from the training split; it needs at least one {modality} volume",
            )
        mean, std = _moments(self.counts[modality], modality, window)
        if std == 0:
            raise UsageError(f"all {modality} foreground decodes to one intensity ({window or 'no window'})")
        return mean, std

    def table(self, modality: Modality, window: Window | None) -> NDArray[np.float32]:
        """Return (256,) float32: stored byte to (decoded - mean) / std.

        Parameters
        ----------
        window
            Of CT; None for MR.
        """
        mean, std = self.mean_std(modality, window)
        return ((decode_table(modality, window).astype(np.float64) - mean) / std).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: the counts, and what a reader wants to see of them."""
        seen = [m for m in Modality if m in self.counts and self.counts[m].any()]
        return {
            "counts": {str(m): [int(n) for n in self.counts[m]] for m in Modality if m in self.counts},
            "fixed": {_key(m, w): list(values) for (m, w), values in self.fixed.items()},
            "mean_std": {_key(m, w): list(_moments(self.counts[m], m, w)) for m in seen for w in windows_of(m)},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NormalizationStats":
        """Return what `to_dict` was called on."""
        counts = {Modality(m): np.array(numbers, np.int64) for m, numbers in values["counts"].items()}
        fixed = {
            (modality, window): (float(pair[0]), float(pair[1]))
            for modality in Modality
            for window in windows_of(modality)
            if (pair := values["fixed"].get(_key(modality, window)))
        }
        return cls(counts, fixed)


def _moments(counts: NDArray[np.int64], modality: Modality, window: Window | None) -> MeanStd:
    decoded = decode_table(modality, window).astype(np.float64)
    weights = counts / counts.sum()
    mean = float(weights @ decoded)
    return mean, float(np.sqrt(weights @ (decoded - mean) ** 2))


def _key(modality: Modality, window: Window | None) -> str:
    return f"{modality}/{window}" if window else str(modality)
