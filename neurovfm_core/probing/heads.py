"""A trained head: apply it, explain it, save it, load it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from neurovfm_core.errors import UsageError
from neurovfm_core.files import written_whole
from neurovfm_core.models.pooling import ClassifyThenAggregate, HeadShape, MeanThenClassify
from neurovfm_core.probing.features import Bag
from neurovfm_core.probing.settings import ProbeParams

Head = ClassifyThenAggregate | MeanThenClassify
HEADS: dict[str, type[ClassifyThenAggregate] | type[MeanThenClassify]] = {
    "classify_then_aggregate": ClassifyThenAggregate,
    "avgpool": MeanThenClassify,
}


@dataclass(frozen=True)
class FittedProbe:
    """A trained head and how it came to be. `labels` names the columns of every output."""

    head: Head
    labels: tuple[str, ...]
    params: ProbeParams
    facts: dict
    """JSON-safe: losses per epoch, best epoch, positives and weights per label, labels without a head."""

    @torch.no_grad()
    def predict(self, bags: Sequence[Bag]) -> NDArray[np.float32]:
        """Return (n, C) float32 logits, one row per study, one column per label of the head."""
        self.head.eval()
        rows = [self.head(torch.from_numpy(bag.features), [len(bag)]) for bag in bags]
        return torch.cat(rows).numpy() if rows else np.zeros((0, len(self.labels)), np.float32)

    @torch.no_grad()
    def evidence(self, bag: Bag) -> NDArray[np.float32]:
        """Return (T, C) float32: what each token adds to each label's bag logit, before scale and bias."""
        if not isinstance(self.head, ClassifyThenAggregate):
            raise UsageError(
                "a head that averages features has no evidence per token",
                hint='[probe] pooling = "classify_then_aggregate"',
            )
        return self.head.evidence(torch.from_numpy(bag.features)).numpy()

    def columns(self, labels: Sequence[str]) -> NDArray[np.intp]:
        """Return where the head's labels stand in a longer list of labels."""
        where = {label: position for position, label in enumerate(labels)}
        return np.array([where[label] for label in self.labels], np.intp)


def save_head(folder: Path, fitted: FittedProbe, card: Mapping[str, object]) -> Path:
    """Write a head in the layout of published ones: `config.json`, `model.safetensors`, and our `card.json`.

    Parameters
    ----------
    card
        JSON-safe facts that only the caller knows (modality, encoder digest, manifest versions). The
        labels, their counts, the settings and the losses are added here.
    """
    config = {
        "which": fitted.params.pooling,
        "params": {
            "hidden_dim": fitted.params.hidden,
            "W_out": len(fitted.labels),
            "mlp_hidden_dims": list(fitted.params.mlp),
        },
    }
    full_card = {
        **card,
        "labels": list(fitted.labels),
        "probe_params": fitted.params.model_dump(mode="json"),
        "facts": fitted.facts,
    }
    tensors = {name: value.contiguous() for name, value in sorted(fitted.head.state_dict().items())}
    with written_whole(folder / "model.safetensors") as path:
        save_file(tensors, path)
    for name, content in (("card.json", full_card), ("config.json", config)):
        with written_whole(folder / name) as path:
            path.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return folder


def load_head(folder: Path) -> FittedProbe:
    """Read what `save_head` wrote.

    Raises
    ------
    UsageError
        If a file is missing, the kind of head is unknown, or tensors are missing, unexpected or misshapen.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        card = json.loads((folder / "card.json").read_text())
        tensors = load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise UsageError("a head needs config.json, card.json and model.safetensors", where=folder.name) from error
    if config["which"] not in HEADS:
        raise UsageError(f"unknown kind of head: {config['which']}", where=folder.name, hint=", ".join(HEADS))
    shape = HeadShape(
        tensors["mlp.mlp.0.weight"].shape[1],
        config["params"]["W_out"],
        config["params"]["hidden_dim"],
        tuple(config["params"]["mlp_hidden_dims"]),
        gated="gating_V.weight" in tensors,
        normed="norm_attn.weight" in tensors,
        scaled="output_scale" in tensors,
    )
    head = HEADS[config["which"]](shape, seed=None)
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise UsageError(f"the tensors do not fit the config: {error}", where=folder.name) from error
    params = ProbeParams.model_validate_json(json.dumps(card["probe_params"]))
    return FittedProbe(head.eval().requires_grad_(False), tuple(card["labels"]), params, card["facts"])
