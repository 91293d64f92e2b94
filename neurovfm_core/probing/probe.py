"""Train a study-level probe on a frozen encoder."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from neurovfm_core.errors import Excluded, Reason, UsageError
from neurovfm_core.models.pooling import HeadShape, fold_standardization
from neurovfm_core.probing.features import Bag, cap_tokens
from neurovfm_core.probing.heads import HEADS, FittedProbe, Head
from neurovfm_core.probing.settings import ProbeParams
from neurovfm_core.randomness import rng_for
from neurovfm_core.vocabulary import Split

logger = logging.getLogger(__name__)

CONSTANT_FEATURE_STD = 1e-6


def train_probe(
    bags: Sequence[Bag],
    targets: NDArray[np.float32],
    split: Sequence[Split],
    params: ProbeParams,
    *,
    labels: Sequence[str],
) -> FittedProbe:
    """Train one head for all labels by class-weighted cross-entropy on whole studies.

    Weights, standardisation and the choice of labels come from the training studies; when to stop is
    decided by the loss of the validation studies; test studies are never looked at.

    Parameters
    ----------
    targets : (n, C) float32
        From `label_matrix`. NaN entries carry no loss.
    split
        One per study. Test studies may be passed; they are ignored.
    labels
        Names of the C columns.

    Raises
    ------
    Excluded
        TOO_FEW_LABELS, if no label has enough positives and negatives to train on.
    UsageError
        If there is no validation study: without one there is no honest moment to stop.
    """
    train = [i for i, part in enumerate(split) if part == Split.TRAIN]
    val = [i for i, part in enumerate(split) if part == Split.VAL]
    if not val:
        raise UsageError("the probe needs validation studies to decide when to stop", hint="enlarge the val split")
    chosen = choose_labels(targets, train, val, labels, params)
    mean_F, std_F = feature_moments([bags[i] for i in train])
    studies = {
        i: (
            (torch.from_numpy(cap_tokens(bags[i], params.max_tokens_per_study, params.seed).features) - mean_F) / std_F,
            torch.from_numpy(np.float32(targets[i, chosen.columns])),
        )
        for i in train + val
    }
    shape = HeadShape(len(mean_F), len(chosen.columns), params.hidden, params.mlp)
    head = HEADS[params.pooling](shape, seed=params.seed)
    history = fit(head, studies, train, val, torch.tensor(chosen.pos_weight), params)
    fold_standardization(head, mean_F, std_F)
    best = min(history, key=lambda epoch: epoch["val_loss"])
    logger.info(
        "probe trained labels=%d train=%d val=%d epochs=%d best_epoch=%d val_loss=%.4f",
        *(len(chosen.columns), len(train), len(val), len(history), best["epoch"], best["val_loss"]),
    )
    facts = {
        "history": history,
        "best_epoch": best["epoch"],
        "best_val_loss": best["val_loss"],
        "num_train": len(train),
        "num_val": len(val),
        "labels": chosen.with_head,
        "labels_without_head": chosen.without_head,
    }
    names = tuple(labels[c] for c in chosen.columns)
    return FittedProbe(head.eval().requires_grad_(False), names, params, facts)


@dataclass(frozen=True, slots=True)
class LabelChoice:
    """Which labels get a head, by the training studies, and how much a positive of each weighs."""

    columns: list[int]
    pos_weight: list[float]
    with_head: list[dict]
    without_head: list[dict]


def choose_labels(
    targets: NDArray[np.float32],
    train: Sequence[int],
    val: Sequence[int],
    labels: Sequence[str],
    params: ProbeParams,
) -> LabelChoice:
    """Keep the labels with enough positives and negatives among the training studies."""
    choice = LabelChoice([], [], [], [])
    for c, label in enumerate(labels):
        positives, negatives = (int((targets[train, c] == value).sum()) for value in (1, 0))
        row = {
            "label": label,
            "train_positives": positives,
            "train_negatives": negatives,
            "val_positives": int((targets[val, c] == 1).sum()),
        }
        if min(positives, negatives) < params.min_train_positives:
            choice.without_head.append(row)
            continue
        weight = min(negatives / positives, params.pos_weight_cap)
        choice.columns.append(c)
        choice.pos_weight.append(weight)
        choice.with_head.append({**row, "pos_weight": weight})
    if not choice.columns:
        raise Excluded(
            Reason.TOO_FEW_LABELS,
            f"no label has {params.min_train_positives} positives and negatives in {len(train)} training studies",
            hint="[probe] min_train_positives, or more studies",
        )
    return choice


def fit(
    head: Head,
    studies: dict[int, tuple[Tensor, Tensor]],
    train: Sequence[int],
    val: Sequence[int],
    pos_weight_C: Tensor,
    params: ProbeParams,
) -> list[dict]:
    """Train `head` in place and leave it as it was at its best validation loss.

    Parameters
    ----------
    studies
        Standardised features (T, F) and targets (C,) of every training and validation study.

    Returns
    -------
    list of dict
        epoch, train_loss, val_loss of every epoch run.
    """

    def loss_of(chosen: Sequence[int]) -> Tensor:
        packed_TF = torch.cat([studies[i][0] for i in chosen])
        wanted_BC = torch.stack([studies[i][1] for i in chosen])
        return masked_bce(head(packed_TF, [len(studies[i][0]) for i in chosen]), wanted_BC, pos_weight_C)

    optimizer = adamw(head, params)
    steps_per_epoch = math.ceil(len(train) / params.batch_studies)
    history: list[dict] = []
    best_epoch, best_loss, best_state = -1, math.inf, {}
    for epoch in range(params.epochs):
        order = rng_for(params.seed, "order of studies", epoch).permutation(train)
        train_loss = 0.0
        for step, batch in enumerate(np.array_split(order, steps_per_epoch)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(epoch * steps_per_epoch + step, steps_per_epoch, params)
            loss = loss_of(batch.tolist())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            train_loss += loss.item() * len(batch) / len(train)
        with torch.no_grad():
            val_loss = loss_of(val).item()
        history.append({"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss})
        if val_loss < best_loss:
            best_epoch, best_loss = epoch, val_loss
            best_state = {name: value.clone() for name, value in head.state_dict().items()}
        elif epoch - best_epoch >= params.patience:
            break
    if not best_state:
        raise UsageError("the probe diverged in its first epoch", hint="[probe] learning_rate")
    head.load_state_dict(best_state)
    return history


def masked_bce(logits_BC: Tensor, targets_BC: Tensor, pos_weight_C: Tensor) -> Tensor:
    """Return the class-weighted cross-entropy, averaged over the entries that have a target.

    Parameters
    ----------
    targets_BC : (B, C) float32
        NaN where there is no target; such an entry has no loss and no gradient.
    """
    known = ~targets_BC.isnan()
    # The unknown are replaced before, not multiplied by zero after: 0 x NaN is NaN, in the gradient too.
    filled = torch.where(known, targets_BC, torch.zeros_like(targets_BC))
    loss = F.binary_cross_entropy_with_logits(logits_BC, filled, pos_weight=pos_weight_C, reduction="none")
    return (loss * known).sum() / known.sum().clamp(min=1)


def feature_moments(bags: Sequence[Bag]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every feature over all tokens, (F,) float32 each.

    A feature that never changes gets standard deviation 1.
    """
    count = sum(len(bag) for bag in bags)
    mean = sum(bag.features.sum(0, dtype=np.float64) for bag in bags) / count
    variance = sum(np.square(bag.features - mean).sum(0, dtype=np.float64) for bag in bags) / count
    std = np.sqrt(variance)
    std[std < CONSTANT_FEATURE_STD] = 1.0
    return torch.from_numpy(np.float32(mean)), torch.from_numpy(np.float32(std))


def adamw(head: Head, params: ProbeParams) -> torch.optim.AdamW:
    """Return the optimizer; biases, scales and other vectors do not decay."""
    matrices = [p for p in head.parameters() if p.ndim > 1]
    vectors = [p for p in head.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": params.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=params.learning_rate)


def learning_rate_at(step: int, steps_per_epoch: int, params: ProbeParams) -> float:
    """Linear warm-up over the first tenth of all steps, then half a cosine to zero."""
    total = steps_per_epoch * params.epochs
    warm_up = max(1, total // 10)
    if step < warm_up:
        return params.learning_rate * (step + 1) / warm_up
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))
