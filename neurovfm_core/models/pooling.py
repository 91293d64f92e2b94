"""Heads that turn the tokens of one study into one logit per label.

Shape suffixes, this file: T packed tokens, B bags (studies), F feature width, H hidden width, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from neurovfm_core.models.encoder import initialize

LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Everything that decides the tensors of a head."""

    width: int
    num_labels: int
    hidden: int = 512
    mlp: tuple[int, ...] = (384,)
    gated: bool = True
    normed: bool = False
    scaled: bool = True
    shared_votes: bool = False
    """One token logit for all labels, which then differ by attention, scale and bias alone."""


class TokenMLP(nn.Module):
    """Linear layers with exact GELU between; its keys are `mlp.0`, `mlp.2`, ... as in published heads."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(self, x_TF: Tensor) -> Tensor:
        return self.mlp(x_TF)


class ClassifyThenAggregate(nn.Module):
    """Every token votes for every label; attention, softmaxed over the bag per label, weighs the votes.

    Parameter names are those of published diagnostic heads, so that their weights load.

    Parameters
    ----------
    shape
        Widths and options; `normed` adds one LayerNorm before attention and one before the votes.
    seed
        Key of the start weights. None leaves them as torch made them, for a loader that overwrites them.

    References
    ----------
    Paper, "Study-level attentive probing"; the score is the gated attention of Ilse et al. 2018.
    """

    def __init__(self, shape: HeadShape, *, seed: int | None = 0) -> None:
        super().__init__()
        self.shape = shape
        self.attention_V = nn.Linear(shape.width, shape.hidden)
        self.gating_V = nn.Linear(shape.width, shape.hidden) if shape.gated else None
        self.W = nn.Linear(shape.hidden, shape.num_labels)
        self.mlp = TokenMLP((shape.width, *shape.mlp, 1 if shape.shared_votes else shape.num_labels))
        if shape.normed:
            self.norm_attn = nn.LayerNorm(shape.width, eps=LAYER_NORM_EPS)
            self.norm_mlp = nn.LayerNorm(shape.width, eps=LAYER_NORM_EPS)
        if shape.scaled:
            self.output_scale = nn.Parameter(torch.ones(shape.num_labels))
            self.output_bias = nn.Parameter(torch.zeros(shape.num_labels))
        if seed is not None:
            initialize(self, seed, "head")

    def votes(self, x_TF: Tensor) -> tuple[Tensor, Tensor]:
        """Return attention scores before the softmax and token logits, both (T, C)."""
        for_attention_TF = self.norm_attn(x_TF) if self.shape.normed else x_TF
        for_votes_TF = self.norm_mlp(x_TF) if self.shape.normed else x_TF
        hidden_TH = torch.tanh(self.attention_V(for_attention_TF))
        if self.gating_V is not None:
            hidden_TH = hidden_TH * torch.sigmoid(self.gating_V(for_attention_TF))
        logits_TC = self.mlp(for_votes_TF)
        return self.W(hidden_TH), logits_TC.expand(-1, self.shape.num_labels)

    def evidence(self, x_TF: Tensor) -> Tensor:
        """Return what each token of one bag adds to each label's logit.

        Parameters
        ----------
        x_TF : (T, F) float32
            All tokens of one study.

        Returns
        -------
        (T, C) float32
            Attention times token logit. Its sum over tokens is the bag logit before output scale and bias.
        """
        scores_TC, logits_TC = self.votes(x_TF)
        return scores_TC.softmax(0) * logits_TC

    def forward(self, x_TF: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return one logit per bag and label.

        Parameters
        ----------
        x_TF : (T, F) float32
            Tokens of all bags, one bag after the other.
        lengths
            Tokens per bag; their sum is T.

        Returns
        -------
        (B, C) float32
        """
        scores_TC, logits_TC = self.votes(x_TF)
        # A loop over bags, never over labels: at 74 labels the backward pass is 100 times cheaper.
        pooled_BC = torch.stack(
            [
                (scores.softmax(0) * logits).sum(0)
                for scores, logits in zip(scores_TC.split(list(lengths)), logits_TC.split(list(lengths)), strict=True)
            ]
        )
        return self.rescale(pooled_BC)

    def rescale(self, pooled_BC: Tensor) -> Tensor:
        """Apply the learned output scale and bias, if the head has them."""
        return pooled_BC * self.output_scale + self.output_bias if self.shape.scaled else pooled_BC


class MeanThenClassify(nn.Module):
    """The mean token of a bag, then an MLP: the baseline without attention."""

    def __init__(self, shape: HeadShape, *, seed: int | None = 0) -> None:
        super().__init__()
        self.shape = shape
        self.mlp = TokenMLP((shape.width, *shape.mlp, shape.num_labels))
        if seed is not None:
            initialize(self, seed, "head")

    def forward(self, x_TF: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return (B, C) logits of the packed bags."""
        return self.mlp(torch.stack([x.mean(0) for x in x_TF.split(list(lengths))]))


def fold_standardization(head: ClassifyThenAggregate | MeanThenClassify, mean_F: Tensor, std_F: Tensor) -> None:
    """Move (x - mean) / std, which the head was trained behind, into its first layers.

    Afterwards the head takes raw features, so a saved head needs nothing beside its own tensors.
    Exact because the standardisation and the layers after it are affine; a mean over tokens commutes with it.
    """
    if head.shape.normed:
        raise ValueError("LayerNorm stands between the features and the first layers: nothing to fold into")
    layers = [head.mlp.mlp[0]]
    if isinstance(head, ClassifyThenAggregate):
        layers += [head.attention_V] + ([head.gating_V] if head.gating_V is not None else [])
    with torch.no_grad():
        for layer in layers:
            assert isinstance(layer, nn.Linear)
            weight = layer.weight.double() / std_F.double()
            layer.bias.copy_(layer.bias.double() - weight @ mean_F.double())
            layer.weight.copy_(weight)
