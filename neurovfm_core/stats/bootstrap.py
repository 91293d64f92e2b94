"""Bootstrap of AUROC: exact, all classes and encoders on the same resamples.

A replicate draws how often every study (or every patient) counts. With these counts an AUROC is a
weighted sum over pairs; only the negatives between neighbouring positive scores matter, so one sparse
product per class and block of replicates gives them all. Counts are integers, hence exact.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from neurovfm_core.errors import UsageError
from neurovfm_core.stats.auroc import (
    auroc,
    bca_interval,
    jackknife,
    logit_delong_interval,
    split_scores,
)

BLOCK = 64
"""Replicates drawn from one random stream. Part of the format: another value gives other resamples."""

MIN_POSITIVES_SHOWN = 5
MIN_POSITIVES_TRUSTED = 30
"""Below it the percentile interval covers 70 to 90 % instead of 95 %, so the class is flagged."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its percentile interval and, where they exist, two others. NaN means undefined.

    `num_undefined` counts replicates without a value; they are left out of the interval.
    """

    value: float
    low: float
    high: float
    num_undefined: int
    bca_low: float = math.nan
    bca_high: float = math.nan
    delong_low: float = math.nan
    delong_high: float = math.nan


@dataclass(frozen=True, slots=True)
class Difference:
    """One encoder minus another, on the same resamples. `p_value` is two-sided, from the replicates."""

    value: float
    low: float
    high: float
    p_value: float
    num_undefined: int


@dataclass(frozen=True, slots=True)
class ClassCount:
    """What stands behind a class: a suppressed one is in no average and shows no estimate."""

    name: str
    num_positives: int
    num_negatives: int
    suppressed: bool
    flagged: bool


@dataclass(frozen=True, slots=True)
class BootstrapResult:
    """AUROC per encoder and class, macro averages and paired differences.

    `per_class[encoder][c]` belongs to `classes[c]`; `differences[a, b]` is a minus b.
    """

    classes: tuple[ClassCount, ...]
    per_class: dict[str, tuple[Estimate, ...]]
    macro: dict[str, Estimate]
    differences: dict[tuple[str, str], Difference]
    class_differences: dict[tuple[str, str], tuple[Difference, ...]]
    replicates: int
    seed: int
    level: float
    unit: str
    min_positives: int
    num_studies: int
    num_units: int

    def to_dict(self) -> dict:
        """Return plain JSON values: NaN becomes null, suppressed classes carry no estimate."""
        classes = []
        for c, count in enumerate(self.classes):
            row: dict = asdict(count)
            if not count.suppressed:
                row["auroc"] = {name: plain(estimates[c]) for name, estimates in self.per_class.items()}
                row["differences"] = [
                    {"encoder": a, "minus": b, **plain(differences[c])}
                    for (a, b), differences in self.class_differences.items()
                ]
            classes.append(row)
        return {
            "replicates": self.replicates,
            "seed": self.seed,
            "level": self.level,
            "unit": self.unit,
            "interval": "percentile",
            "min_positives": self.min_positives,
            "flag_below": MIN_POSITIVES_TRUSTED,
            "num_studies": self.num_studies,
            "num_units": self.num_units,
            "macro": {name: plain(estimate) for name, estimate in self.macro.items()},
            "macro_classes": sum(not count.suppressed for count in self.classes),
            "differences": [
                {"encoder": a, "minus": b, **plain(difference)} for (a, b), difference in self.differences.items()
            ],
            "classes": classes,
        }


def plain(estimate: Estimate | Difference) -> dict[str, float | int | None]:
    """Return the fields as JSON values, NaN as None."""
    return {name: None if math.isnan(value) else value for name, value in asdict(estimate).items()}


def bootstrap_auroc(
    scores: Mapping[str, NDArray[np.floating]],
    labels: NDArray[np.floating],
    clusters: Sequence[str] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    replicates: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    min_positives: int = MIN_POSITIVES_SHOWN,
    threads: int = 1,
) -> BootstrapResult:
    """Estimate AUROC of every encoder and class with intervals from one set of resamples.

    Parameters
    ----------
    scores
        Encoder name to (n, C) scores of the same n studies and C classes.
    labels : (n, C)
        1, 0, or NaN for missing.
    clusters
        One patient id per study resamples patients; None resamples studies.
    min_positives
        Classes with fewer positives, or fewer negatives, are suppressed: no estimate, not in the macro
        average. Lower it only for demonstration data.
    threads
        Blocks of replicates computed at once. The result does not depend on it.

    Notes
    -----
    The macro average is taken inside each replicate, over the classes that are defined there. The
    intervals after DeLong and BCa are per study and so are left out (NaN) when patients are resampled.

    Raises
    ------
    UsageError
        If shapes disagree, a score is NaN where the label is known, or a setting is out of range.
    """
    labels = np.asarray(labels, np.float64)
    values = {name: np.asarray(matrix, np.float64) for name, matrix in scores.items()}
    names = list(class_names) if class_names is not None else [f"class_{c}" for c in range(labels.shape[1])]
    if not values or any(matrix.shape != labels.shape for matrix in values.values()):
        raise UsageError(f"every encoder needs scores of shape {labels.shape}, that of the labels")
    if len(names) != labels.shape[1] or (clusters is not None and len(clusters) != len(labels)):
        raise UsageError("names must count as many as classes, clusters as many as studies")
    if replicates < 1 or not 0 < level < 1:
        raise UsageError(f"cannot make {replicates} replicates at level {level}")

    areas = auroc_replicates(values, labels, clusters, replicates=replicates, seed=seed, threads=threads)
    num_positives, num_negatives = (labels == 1).sum(0), (labels == 0).sum(0)
    classes = tuple(
        ClassCount(
            name,
            int(positives),
            int(negatives),
            suppressed=bool(min(positives, negatives) < max(1, min_positives)),
            flagged=bool(min(positives, negatives) < MIN_POSITIVES_TRUSTED),
        )
        for name, positives, negatives in zip(names, num_positives, num_negatives, strict=True)
    )
    shown = np.array([not count.suppressed for count in classes], bool)
    points = {
        name: np.array([auroc(matrix[:, c], labels[:, c]) for c in range(len(classes))])
        for name, matrix in values.items()
    }
    pairs = list(combinations(values, 2))
    return BootstrapResult(
        classes,
        {
            name: tuple(
                _class_estimate(points[name][c], areas[name][:, c], matrix[:, c], labels[:, c], level, clusters is None)
                for c in range(len(classes))
            )
            for name, matrix in values.items()
        },
        {
            name: _estimate(float(_mean(points[name][None, shown])[0]), _mean(areas[name][:, shown]), level)
            for name in values
        },
        {
            (a, b): _difference(
                float(_mean((points[a] - points[b])[None, shown])[0]),
                _mean((areas[a] - areas[b])[:, shown]),
                level,
            )
            for a, b in pairs
        },
        {
            (a, b): tuple(
                _difference(float(points[a][c] - points[b][c]), areas[a][:, c] - areas[b][:, c], level)
                for c in range(len(classes))
            )
            for a, b in pairs
        },
        replicates,
        seed,
        level,
        "study" if clusters is None else "patient",
        min_positives,
        len(labels),
        len(labels) if clusters is None else len(set(clusters)),
    )


def auroc_replicates(
    scores: Mapping[str, NDArray[np.floating]],
    labels: NDArray[np.floating],
    clusters: Sequence[str] | None = None,
    *,
    replicates: int,
    seed: int,
    threads: int = 1,
) -> dict[str, NDArray[np.float64]]:
    """Return (R, C) AUROC per encoder; NaN where a replicate has no positive or no negative."""
    units, largest_total = _units(len(labels), clusters)
    # A bin never exceeds the total count, so int16 is exact below 2^15 and halves the traffic.
    dtype = np.int16 if largest_total <= np.iinfo(np.int16).max else np.int32
    plans = {
        name: [_Plan.of(matrix[:, c], labels[:, c], dtype) for c in range(labels.shape[1])]
        for name, matrix in scores.items()
    }
    result = {name: np.full((replicates, labels.shape[1]), np.nan) for name in scores}

    def fill(block: "_Block") -> None:
        counts_NR = block.counts(units, dtype)
        for name, per_class in plans.items():
            for c, plan in enumerate(per_class):
                if plan is not None:
                    result[name][block.start : block.start + block.size, c] = plan.areas(counts_NR)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, _blocks(replicates, seed)))
    return result


def resample_counts(
    num_studies: int, clusters: Sequence[str] | None, *, replicates: int, seed: int
) -> NDArray[np.int32]:
    """Return (R, n) how often each study counts in each replicate: the resamples of every function here."""
    units, _ = _units(num_studies, clusters)
    return np.concatenate([block.counts(units, np.int32) for block in _blocks(replicates, seed)], axis=1).T


def _units(num_studies: int, clusters: Sequence[str] | None) -> tuple[NDArray[np.intp], int]:
    """Return the unit that each study belongs to, and the largest sum of counts a replicate can have."""
    if clusters is None:
        return np.arange(num_studies), num_studies
    names, units, sizes = np.unique(np.asarray(clusters, str), return_inverse=True, return_counts=True)
    return units, len(names) * int(sizes.max(initial=0))


@dataclass(frozen=True, slots=True)
class _Block:
    """Some replicates and the random stream that is theirs, whichever thread draws them."""

    start: int
    size: int
    stream: np.random.SeedSequence

    def counts(self, units: NDArray[np.intp], dtype: type[np.signedinteger]) -> NDArray:
        """Return (n, size) how often each study counts, contiguous in replicates."""
        num_units = int(units.max(initial=-1)) + 1
        drawn = np.random.default_rng(self.stream).integers(0, num_units, (self.size, num_units))
        counts = np.stack([np.bincount(row, minlength=num_units) for row in drawn], axis=1).astype(dtype)
        return np.ascontiguousarray(counts[units])


def _blocks(replicates: int, seed: int) -> list[_Block]:
    starts = range(0, replicates, BLOCK)
    streams = np.random.SeedSequence(seed).spawn(len(starts))
    return [
        _Block(start, min(BLOCK, replicates - start), stream) for start, stream in zip(starts, streams, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the studies of one class stand among its K distinct positive scores."""

    negatives: csr_array  # (K + 1, n): row k has the negatives from positive score k - 1 up to below k
    positives: csr_array  # (K, n): row k has the positives with score k
    tied_rows: NDArray[np.intp]  # positive scores that some negative equals
    tied: csr_array  # (len(tied_rows), n): those negatives

    @classmethod
    def of(
        cls, scores: NDArray[np.floating], labels: NDArray[np.floating], dtype: type[np.signedinteger]
    ) -> "_Plan | None":
        positive, negative = split_scores(scores, labels)
        if not len(positive) or not len(negative):
            return None
        is_positive, is_negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
        levels, level_of_positive = np.unique(positive, return_inverse=True)
        row = np.searchsorted(levels, negative, "left")
        equal = levels[np.minimum(row, len(levels) - 1)] == negative
        tied_rows, tied_row = np.unique(row[equal], return_inverse=True)

        def ones(rows: NDArray[np.intp], columns: NDArray[np.intp], height: int) -> csr_array:
            return csr_array((np.ones(len(rows), dtype), (rows, columns)), (height, len(scores)))

        return cls(
            ones(row + equal, is_negative, len(levels) + 1),
            ones(level_of_positive, is_positive, len(levels)),
            tied_rows,
            ones(tied_row, is_negative[equal], len(tied_rows)),
        )

    def areas(self, counts_NR: NDArray) -> NDArray[np.float64]:
        """Return the AUROC of every replicate in the block."""
        positives_KR = self.positives @ counts_NR
        below_KR = (self.negatives @ counts_NR).cumsum(0, dtype=np.int32)
        wins_R = np.einsum("kr,kr->r", positives_KR, below_KR[:-1], dtype=np.float64)
        wins_R += 0.5 * np.einsum("kr,kr->r", positives_KR[self.tied_rows], self.tied @ counts_NR, dtype=np.float64)
        pairs_R = positives_KR.sum(0, dtype=np.float64) * below_KR[-1]
        return np.divide(wins_R, pairs_R, out=np.full(len(wins_R), np.nan), where=pairs_R > 0)


def _mean(areas_RC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over the classes defined in each replicate; NaN if none is."""
    defined = ~np.isnan(areas_RC)
    total = np.where(defined, areas_RC, 0.0).sum(1)
    return np.divide(total, defined.sum(1), out=np.full(len(total), np.nan), where=defined.any(1))


def _percentiles(values: NDArray[np.float64], level: float) -> tuple[float, float, int]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan, len(values)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high), len(values) - len(defined)


def _estimate(value: float, replicates: NDArray[np.float64], level: float) -> Estimate:
    return Estimate(value, *_percentiles(replicates, level))


def _class_estimate(
    value: float,
    replicates: NDArray[np.float64],
    scores: NDArray[np.floating],
    labels: NDArray[np.floating],
    level: float,
    studies_resampled: bool,
) -> Estimate:
    low, high, num_undefined = _percentiles(replicates, level)
    positive, negative = split_scores(scores, labels)
    if not studies_resampled or min(len(positive), len(negative)) < 2:
        return Estimate(value, low, high, num_undefined)
    bca = bca_interval(replicates, value, jackknife(positive, negative), level)
    return Estimate(value, low, high, num_undefined, *bca, *logit_delong_interval(positive, negative, level))


def _difference(value: float, replicates: NDArray[np.float64], level: float) -> Difference:
    low, high, num_undefined = _percentiles(replicates, level)
    defined = replicates[~np.isnan(replicates)]
    if not len(defined):
        return Difference(value, low, high, math.nan, num_undefined)
    # Add-one, so that a finite number of replicates never claims p = 0.
    tail = (1 + min((defined <= 0).sum(), (defined >= 0).sum())) / (len(defined) + 1)
    return Difference(value, low, high, float(min(1.0, 2 * tail)), num_undefined)
