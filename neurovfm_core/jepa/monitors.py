"""Numbers that show a collapse while the loss still falls."""

# Shape suffixes, this file: N tokens, D width.

import torch
from torch import Tensor

MAX_TOKENS = 4096
"""The effective rank is measured on at most this many tokens: more do not change its third digit."""


def feature_std(features_ND: Tensor) -> float:
    """Return the standard deviation over tokens, averaged over dimensions; 0 is a collapse to a point."""
    return features_ND.detach().float().std(dim=0, correction=0).mean().item()


def target_variance(targets_ND: Tensor) -> float:
    """Return the variance over tokens of the normalised targets, averaged over dimensions.

    Between 0 (the teacher says the same of every token) and 1; a healthy run stays above 0.2.
    """
    return targets_ND.detach().float().var(dim=0, correction=0).mean().item()


def effective_rank(features_ND: Tensor) -> float:
    """Return RankMe: the exponential of the entropy of the normalised singular values.

    Returns
    -------
    float
        From 1 (all features on one line) to min(N, D); 0 if all features are zero.

    References
    ----------
    Garrido et al., "RankMe", ICML 2023.
    """
    features = features_ND.detach()[:MAX_TOKENS].to("cpu", torch.float64)
    # Roots of the Gram matrix's eigenvalues: ten times faster than the singular values themselves.
    singular = torch.linalg.eigvalsh(features.T @ features).clamp(min=0).sqrt()
    if not singular[-1] > 0:
        return 0.0
    share = singular / singular.sum()
    return torch.exp(torch.special.entr(share).sum()).item()
