"""AUROC of one class and its analytic interval: placements, DeLong, jackknife, BCa."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri

from neurovfm_core.errors import UsageError

Interval = tuple[float, float]


def auroc(scores: NDArray[np.floating], labels: NDArray[np.floating]) -> float:
    """Return the probability that a positive scores above a negative, ties counted half.

    Parameters
    ----------
    scores : (n,)
        Higher means more likely positive. No NaN where the label is known.
    labels : (n,)
        1 positive, 0 negative, NaN missing (left out).

    Returns
    -------
    float in [0, 1]
        NaN if there is no positive or no negative.
    """
    positive, negative = split_scores(scores, labels)
    if not len(positive) or not len(negative):
        return math.nan
    return float(placements(positive, negative)[0].mean())


def split_scores(
    scores: NDArray[np.floating], labels: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the scores of the positives and of the negatives; refuse NaN scores and other labels."""
    labels = np.asarray(labels, np.float64)
    scores = np.asarray(scores, np.float64)
    known = ~np.isnan(labels)
    if not np.isin(labels[known], (0, 1)).all():
        raise UsageError("a label is neither 0, 1 nor NaN")
    if np.isnan(scores[known]).any():
        raise UsageError("a score is NaN where the label is known", hint="a head has diverged, or a column is wrong")
    return scores[labels == 1], scores[labels == 0]


def placements(
    positive: NDArray[np.float64], negative: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return per positive the share of negatives below it, and per negative that of positives above.

    Ties count half. The mean of either is the AUROC.
    """

    def share_below(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
        ordered = np.sort(others)
        twice = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
        return twice / (2 * len(others))

    return share_below(positive, negative), 1 - share_below(negative, positive)


def delong_variance(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Return the variance of the AUROC (DeLong et al. 1988); NaN with fewer than two of a kind."""
    if len(positive) < 2 or len(negative) < 2:
        return math.nan
    of_positive, of_negative = placements(positive, negative)
    return float(of_positive.var(ddof=1) / len(positive) + of_negative.var(ddof=1) / len(negative))


def logit_delong_interval(
    positive: NDArray[np.float64], negative: NDArray[np.float64], level: float = 0.95
) -> Interval:
    """Return the DeLong interval on the logit scale, which stays inside (0, 1).

    NaN where it does not exist: fewer than two of a kind, or perfect separation.
    """
    variance = delong_variance(positive, negative)
    area = float(placements(positive, negative)[0].mean()) if len(positive) and len(negative) else math.nan
    if math.isnan(variance) or not 0 < area < 1:
        return math.nan, math.nan
    half = ndtri((1 + level) / 2) * math.sqrt(variance) / (area * (1 - area))
    return float(expit(logit(area) - half)), float(expit(logit(area) + half))


def jackknife(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the AUROC without each positive, then without each negative, in closed form.

    Needs at least two of each.
    """
    m, n = len(positive), len(negative)
    of_positive, of_negative = placements(positive, negative)
    area = of_positive.mean()
    without_positive = (m * area - of_positive) / (m - 1)
    without_negative = (n * area - of_negative) / (n - 1)
    return np.concatenate([without_positive, without_negative])


def bca_interval(
    replicates: NDArray[np.float64], estimate: float, jackknifed: NDArray[np.float64], level: float = 0.95
) -> Interval:
    """Return the bias-corrected and accelerated bootstrap interval (Efron 1987).

    Parameters
    ----------
    replicates : (R,)
        Bootstrap values of the statistic; NaN ones are left out.
    jackknifed : (n,)
        The statistic without each study.

    Returns
    -------
    low, high
        NaN if the replicates do not surround the estimate, as under perfect separation.
    """
    values = replicates[~np.isnan(replicates)]
    centred = jackknifed.mean() - jackknifed
    spread = float((centred**2).sum())
    share_below = ((values < estimate).sum() + (values <= estimate).sum()) / (2 * max(1, len(values)))
    if spread == 0 or not 0 < share_below < 1:
        return math.nan, math.nan
    acceleration = float((centred**3).sum()) / (6 * spread**1.5)
    bias = ndtri(share_below)
    shifted = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(values, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return float(low), float(high)
