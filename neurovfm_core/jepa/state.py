"""Everything a resumed run needs, and its files.

A run's folder holds `run.json` (what is being trained, on what), and one folder per
kept checkpoint: `tensors.safetensors`, then `state.json`, which carries the checksum
of the tensors and whose presence makes the checkpoint complete.
"""

import json
import shutil
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neurovfm_core.errors import IntegrityError, UsageError
from neurovfm_core.files import sha256_of, written_whole
from neurovfm_core.jepa.batches import GROUPS
from neurovfm_core.jepa.settings import PretrainParams
from neurovfm_core.models.checkpoints import load_strictly
from neurovfm_core.models.encoder import Encoder
from neurovfm_core.models.predictor import Predictor

RESUME_HINT = "remove the run's folder to start again from the beginning"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class TrainingState:
    """Networks, optimizer and counters of a run after `step` steps."""

    student: Encoder
    teacher: Encoder
    predictor: Predictor
    optimizer: torch.optim.AdamW
    losses: Tensor  # (GROUPS, 2) float64: sum of token losses and their number since the last log line
    counts: dict[str, int] = field(default_factory=dict)  # likewise since the last log line
    step: int = 0
    latest: dict[str, float] = field(default_factory=dict)  # newest value of every logged number

    @classmethod
    def fresh(cls, params: PretrainParams, device: torch.device) -> Self:
        """Return the state before the first step: the teacher is a copy of the student."""
        student = Encoder(params.encoder_config, seed=params.seed).to(device)
        predictor = Predictor(params.encoder_config.width, params.predictor, seed=params.seed).to(device)
        return cls._around(student, deepcopy(student), predictor, params)

    @classmethod
    def _around(cls, student: Encoder, teacher: Encoder, predictor: Predictor, params: PretrainParams) -> Self:
        teacher.requires_grad_(False)
        device = next(student.parameters()).device
        optimizer = torch.optim.AdamW(_parameter_groups([student, predictor], params.weight_decay), lr=0.0, fused=True)
        losses = torch.zeros(len(GROUPS), 2, dtype=torch.float64, device=device)
        return cls(student, teacher, predictor, optimizer, losses)

    def save(self, folder: Path, keep: int) -> None:
        """Write a checkpoint, then remove all but the newest `keep`."""
        checkpoint = _checkpoint_folder(folder, self.step)
        tensors = {"losses": self.losses}
        for part in ("student", "teacher", "predictor"):
            network: nn.Module = getattr(self, part)
            tensors |= {f"{part}.{name}": value.detach() for name, value in network.state_dict().items()}
        for name, parameter in self._trained():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{key}.{name}": moments[key] for key in _MOMENTS if key in moments}
        with written_whole(checkpoint / "tensors.safetensors") as path:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
            tensors_sha256 = sha256_of(path)
        record = {"step": self.step, "counts": self.counts, "latest": self.latest}
        write_json(checkpoint / "state.json", {**record, "tensors_sha256": tensors_sha256})
        for old in _complete_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)

    @classmethod
    def resumed(cls, folder: Path, params: PretrainParams, device: torch.device) -> Self:
        """Read the newest checkpoint of a run.

        Raises
        ------
        IntegrityError
            There is none, or it is damaged. Never a silent start from scratch.
        """
        complete = _complete_checkpoints(folder)
        if not complete:
            raise IntegrityError("the run has no checkpoint left", where=str(folder), hint=RESUME_HINT)
        checkpoint = complete[-1]
        try:
            record = json.loads((checkpoint / "state.json").read_text())
            damaged = sha256_of(checkpoint / "tensors.safetensors") != record["tensors_sha256"]
        except (OSError, ValueError, KeyError):
            damaged = True
        if damaged:
            hint = f"remove this checkpoint to go on from the one before; {RESUME_HINT}"
            raise IntegrityError("the checkpoint is damaged", where=str(checkpoint), hint=hint)
        tensors = load_file(checkpoint / "tensors.safetensors")
        fresh = cls.fresh(params, torch.device("cpu"))
        for part in ("student", "teacher", "predictor"):
            weights = _under(tensors, f"{part}.")
            load_strictly(getattr(fresh, part), weights, where=str(checkpoint))
        state = cls._around(fresh.student.to(device), fresh.teacher.to(device), fresh.predictor.to(device), params)
        state.losses.copy_(tensors["losses"])
        moments = {key: _under(tensors, f"optimizer.{key}.") for key in _MOMENTS}
        for name, parameter in state._trained():
            if name in moments["step"]:
                copies = {key: moments[key][name].to(device, copy=True) for key in _MOMENTS}
                state.optimizer.state[parameter] = copies
        state.step, state.counts, state.latest = record["step"], record["counts"], record["latest"]
        return state

    def _trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        for part in ("student", "predictor"):
            for name, parameter in getattr(self, part).named_parameters():
                yield f"{part}.{name}", parameter


def open_run(folder: Path, identity: dict[str, Any], params: PretrainParams, device: torch.device) -> TrainingState:
    """Start a run in an empty folder, or go on with the one that is there.

    Raises
    ------
    UsageError
        The folder holds a run with other settings or other data.
    IntegrityError
        Its record or its newest checkpoint is missing or damaged.
    """
    record = folder / "run.json"
    if not record.is_file():
        # Alone, a checkpoint of step 0 is what a kill before the record leaves behind.
        if set(_complete_checkpoints(folder)) - {_checkpoint_folder(folder, 0)}:
            raise IntegrityError(
                "there are checkpoints, but no run.json that says of which run", where=str(folder), hint=RESUME_HINT
            )
        state = TrainingState.fresh(params, device)
        # The checkpoint comes first: a run that is on record can always be resumed.
        state.save(folder, params.keep_checkpoints)
        write_json(record, identity)
        return state
    try:
        known = json.loads(record.read_text())
    except ValueError:
        raise IntegrityError("the run's record is damaged", where=str(record), hint=RESUME_HINT) from None
    if known != identity:
        changed = sorted(key for key in known.keys() | identity.keys() if known.get(key) != identity.get(key))
        raise UsageError(
            f"the folder holds a run that differs in {', '.join(changed)}",
            where=str(record),
            hint="train in another folder, or with the settings of this run",
        )
    return TrainingState.resumed(folder, params, device)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _parameter_groups(networks: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    named = [pair for network in networks for pair in network.named_parameters()]
    decayed = [p for name, p in named if p.ndim > 1 and "mask_tokens" not in name]
    others = [p for name, p in named if p.ndim <= 1 or "mask_tokens" in name]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _checkpoint_folder(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step_{step:09d}"


def _complete_checkpoints(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("checkpoints/step_*/state.json"))


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
