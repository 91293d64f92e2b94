"""Encoders as folders: config.json, model.safetensors, card.json.

The first two are the published layout, so that weights go both ways. The card says
where the weights come from and carries their checksum.
"""

import hashlib
import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neurovfm_core.errors import IntegrityError, UsageError
from neurovfm_core.files import sha256_of, written_whole
from neurovfm_core.models.config import EncoderConfig
from neurovfm_core.models.encoder import Encoder
from neurovfm_core.params import fingerprint

logger = logging.getLogger(__name__)

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "vision_encoder.pt")
PREFIXES = (
    "encoder.",
    "vision_encoder.",
    "model.teacher.vision_encoder.",
    "model.student.vision_encoder.",
    "model.bb.",
)
"""What training systems put before an encoder's names in their checkpoints."""

_PUBLISHED_SHAPES = {
    "vit_tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vit_huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "vit": {},
}


def save_encoder(folder: Path, encoder: Encoder, *, card: Mapping[str, Any]) -> None:
    """Write an encoder; config.json comes last, so a folder that has one is complete.

    Parameters
    ----------
    folder
        Made if it is missing; an encoder already there is replaced.
    card
        Provenance for card.json: plain JSON values, no identifiers.
    """
    config = encoder.config
    shape = {"embed_dim": config.width, "depth": config.depth, "num_heads": config.num_heads}
    embedding = {"params": {"embed_dim": config.width - config.code_width}}
    params = {**shape, "mlp_ratio": config.mlp_ratio, "embed_layer_cf": embedding}
    (folder / "config.json").unlink(missing_ok=True)
    with written_whole(folder / "model.safetensors") as path:
        save_file(_plain(encoder), path)
        weights_sha256 = sha256_of(path)
    _write_json(folder / "card.json", {**card, "weights_sha256": weights_sha256})
    _write_json(folder / "config.json", {"which": "vit", "params": params})


def load_encoder(folder: Path, *, prefix: str | None = None) -> Encoder:
    """Read an encoder in the published layout, ours or the authors', as float32 on the CPU.

    Parameters
    ----------
    folder
        Holds config.json and one of `WEIGHT_FILES`. Pickled weights are opened
        as tensors only.
    prefix
        What stands before the encoder's names in a training checkpoint; needed
        only if several of `PREFIXES` occur.

    Raises
    ------
    UsageError
        No encoder there, a shape we cannot build, or weights that lack a name,
        have one too many or one of another shape.
    IntegrityError
        The weights are not the ones the card was written for, or cannot be read.
    """
    config = _read_config(folder / "config.json")
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise UsageError("no weights found", where=str(folder), hint=f"one of {', '.join(WEIGHT_FILES)}")
    card_path = folder / "card.json"
    card = json.loads(card_path.read_text()) if card_path.is_file() else {}
    if card.get("weights_sha256", sha256_of(path)) != sha256_of(path):
        raise IntegrityError("the weights differ from the checksum in card.json", where=str(path))
    weights = _without_prefix(_read_weights(path), prefix, path)
    with torch.device("meta"):  # no time or memory for start weights that are replaced at once
        encoder = Encoder(config, seed=None)
    load_strictly(encoder, weights, where=str(path))
    return encoder


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Put weights into a module in float32, refusing any name or shape that does not fit.

    Raises
    ------
    UsageError
        Names what is missing, unexpected or of another shape.
    """
    expected = module.state_dict()
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise UsageError(f"the weights do not fit: {'; '.join(problems[:12])}{more}", where=where)
    # A copy, because memory mapped from a file may be aligned otherwise and then sum otherwise.
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()}
    module.load_state_dict(copies, assign=True)


def encoder_digest(encoder: Encoder) -> str:
    """Return a sha256 of shape and float32 weights: what features depend on, and nothing else."""
    digest = hashlib.sha256(fingerprint(encoder.config.model_dump_json()).encode())
    for name, tensor in sorted(_plain(encoder).items()):
        digest.update(fingerprint(name, tensor.numpy().tobytes()).encode())
    return digest.hexdigest()


def _plain(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in module.state_dict().items()}


def _read_config(path: Path) -> EncoderConfig:
    try:
        config = json.loads(path.read_text())
        which, params = config["which"], dict(config["params"])
        shape = {**_PUBLISHED_SHAPES[which], **params}
        embedding = shape.pop("embed_layer_cf", {})
        width = shape.pop("embed_dim")
        embedded = embedding.get("params", {}).get("embed_dim", width - 30)
        encoder_config = EncoderConfig(
            width=width,
            depth=shape.pop("depth"),
            num_heads=shape.pop("num_heads"),
            mlp_ratio=int(shape.pop("mlp_ratio", 4)),
            code_width=width - embedded,
        )
    except FileNotFoundError:
        raise UsageError("no encoder here: config.json is missing", where=str(path.parent)) from None
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise UsageError(f"not the config of an encoder we can build: {error!r}", where=str(path)) from error
    if embedding.get("which") == "linear":
        raise UsageError("the variant with the code inside the patch embedding is not built", where=str(path))
    if shape:
        # Rates of dropout and choices of kernel do not change what a frozen encoder computes.
        logger.warning("config keys without effect here path=%s keys=%s", path, sorted(shape))
    return encoder_config


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise IntegrityError(f"cannot read the weights: {type(error).__name__}", where=str(path)) from error
    weights = weights.get("state_dict", weights)
    return {name: tensor for name, tensor in weights.items() if isinstance(tensor, Tensor)}


def _without_prefix(weights: dict[str, Tensor], prefix: str | None, path: Path) -> dict[str, Tensor]:
    marker = "token_embed.proj.weight"
    if prefix is None and marker in weights:
        return weights
    found = [known for known in PREFIXES if known + marker in weights] if prefix is None else [prefix]
    if len(found) > 1:
        hint = f"pass prefix=, one of {', '.join(found)}"
        raise UsageError("the checkpoint holds several encoders", where=str(path), hint=hint)
    if not found:
        return weights
    chosen = found[0]
    return {name.removeprefix(chosen): value for name, value in weights.items() if name.startswith(chosen)}


def _write_json(path: Path, value: object) -> None:
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
