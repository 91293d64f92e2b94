"""Vol-JEPA pretraining: from token shards to an encoder."""

# Shape suffixes, this file: N packed tokens, C context tokens, T target tokens, D encoder width,
# G groups of modality and mask mode.

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from neurovfm_core.errors import IntegrityError, UsageError
from neurovfm_core.files import written_whole
from neurovfm_core.jepa.batches import GROUPS, Batch, BatchSource, Pass
from neurovfm_core.jepa.monitors import MAX_TOKENS, effective_rank, feature_std, target_variance
from neurovfm_core.jepa.objective import normalized_targets, token_losses, update_teacher
from neurovfm_core.jepa.schedules import LearningRate, Momentum
from neurovfm_core.jepa.settings import PretrainParams
from neurovfm_core.jepa.state import TrainingState, open_run
from neurovfm_core.models.checkpoints import save_encoder
from neurovfm_core.models.memory import keep_freed_memory
from neurovfm_core.params import canonical_json, fingerprint
from neurovfm_core.shards import NormalizationStats, ShardSet

__all__ = ["PretrainParams", "TrainResult", "train"]

logger = logging.getLogger(__name__)

Line = dict[str, float]

SPEED = ("volumes_per_s", "eta_s")
"""Logged, but no property of the encoder."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run came to. Values are None only if it was stopped before they were first measured."""

    steps: int
    final_loss: float | None  # training loss of the newest log line
    val_loss: float | None  # None also without validation volumes
    feature_std: float | None  # of the exported encoder, on validation volumes if there are any
    effective_rank: float | None
    volumes_per_s: float  # in this call, without validation and checkpoints
    encoder_folder: Path
    log_path: Path
    stopped: bool  # by `should_stop`, before the last step


def train(
    shards: ShardSet,
    train_ids: Sequence[str],
    val_ids: Sequence[str],
    stats: NormalizationStats,
    params: PretrainParams,
    folder: Path,
    *,
    on_progress: Callable[[Mapping[str, float]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Pretrain an encoder, or go on with the run that `folder` holds.

    The student sees the context of each crop; from that the predictor says what the
    teacher, who sees the whole crop, makes of the targets. A resumed run ends with
    the same weights, bit for bit on a CPU, as one that was never interrupted.

    Parameters
    ----------
    train_ids, val_ids
        Volumes to learn from, and volumes only to be judged on.
    stats
        Normalisation statistics of the training split.
    folder
        Receives `run.json`, `log.jsonl`, `checkpoints/` and, at the end or when
        stopped, the teacher as `encoder/`.
    on_progress
        Called with every line of the log.
    should_stop
        Asked before every step; if true the run saves itself and returns.

    Raises
    ------
    UsageError
        No training volumes, no such device, or `folder` holds another run.
    IntegrityError
        The checkpoint to resume from is missing or damaged, or the gradient is no
        longer finite.

    References
    ----------
    Paper, Methods, Vol-JEPA; Assran et al., "I-JEPA", CVPR 2023.
    """
    device = _device(params)
    if device.type == "cpu":
        keep_freed_memory()
    training = BatchSource(shards, _training_ids(shards, train_ids, params), stats, params)
    validation = BatchSource(shards, _validation_ids(shards, val_ids, params), stats, params)
    for source in (training, validation):
        if source.volume_ids and all(source.crop(one, None) is None for one in source.volume_ids):
            raise UsageError("no volume has enough foreground tokens to be masked", hint="lower min_foreground_share")
    identity = {
        "params": params.model_dump(mode="json"),
        "train_ids": fingerprint(*training.volume_ids),
        "val_ids": fingerprint(*validation.volume_ids),
        "stats": fingerprint(canonical_json(stats.to_dict())),
    }
    warmup = int(params.warmup_share * params.steps)
    learning_rate = LearningRate(
        params.learning_rate_start, params.learning_rate, params.learning_rate_final, warmup, params.steps
    )
    momentum = Momentum(params.momentum_start, params.momentum_end, params.steps)

    with _threads(params.num_threads):
        state = open_run(folder, identity, params, device)
        log = _Log(folder / "log.jsonl", state, on_progress)
        first_step, watch = state.step, _Stopwatch()
        logger.info("training starts step=%d steps=%d device=%s", state.step, params.steps, device)
        with closing(training.ahead(state.step)) as batches:
            for batch in batches:
                if should_stop is not None and should_stop():
                    break
                for group in state.optimizer.param_groups:
                    group["lr"] = learning_rate.at(state.step)
                gradient_norm, features_ND = _learn(state, batch, params)
                update_teacher(state.teacher, state.student, momentum.at(state.step))
                state.step += 1

                last = state.step == params.steps
                if last or state.step % params.log_every == 0:
                    rates = {
                        "epoch": state.step * params.batch_volumes / len(training.volume_ids),
                        "learning_rate": learning_rate.at(state.step - 1),
                        "momentum": momentum.at(state.step - 1),
                        "gradient_norm": gradient_norm,
                    }
                    per_step_s = watch.elapsed_s / (state.step - first_step)
                    speed = {
                        "volumes_per_s": params.batch_volumes / per_step_s,
                        "eta_s": (params.steps - state.step) * per_step_s,
                    }
                    log.write(_summary(state) | _health(features_ND) | rates | speed)
                with watch.paused():
                    if validation.volume_ids and (last or state.step % params.validate_every == 0):
                        log.write(_validate(state, validation, params))
                    if last or state.step % params.checkpoint_every == 0:
                        state.save(folder, params.keep_checkpoints)

        stopped = state.step < params.steps
        if stopped:
            state.save(folder, params.keep_checkpoints)
        card = {"network": "teacher", "steps": state.step, "finished": not stopped, **identity}
        measured = {key: value for key, value in state.latest.items() if key not in SPEED}
        card |= {"normalization": stats.to_dict(), "measured": measured}
        save_encoder(folder / "encoder", state.teacher, card=card)
        logger.info("training ends step=%d stopped=%s", state.step, stopped)
    seen = "val_" if "val_loss" in state.latest else ""
    return TrainResult(
        steps=state.step,
        final_loss=state.latest.get("loss"),
        val_loss=state.latest.get("val_loss"),
        feature_std=state.latest.get(f"{seen}feature_std"),
        effective_rank=state.latest.get(f"{seen}effective_rank"),
        volumes_per_s=(state.step - first_step) * params.batch_volumes / watch.elapsed_s,
        encoder_folder=folder / "encoder",
        log_path=log.path,
        stopped=stopped,
    )


def _learn(state: TrainingState, batch: Batch, params: PretrainParams) -> tuple[float, Tensor]:
    """Make one update; return the gradient's norm and teacher features to look at."""
    if not batch.passes:
        raise UsageError(f"no volume of step {state.step} has foreground", hint="lower min_foreground_share")
    for part in batch.passes:
        part, losses_T, features_ND = _losses(state, part, params)
        # Divided by the whole batch's targets: the gradient does not depend on the passes.
        (losses_T.sum() / batch.num_targets).backward()
        _count(state.losses, part, losses_T)
    trained = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    gradient_norm = clip_grad_norm_(trained, params.clip_norm).item()
    if not math.isfinite(gradient_norm):
        hint = "the last checkpoint is sound; a lower learning_rate or precision fp32 may help"
        raise IntegrityError(f"the gradient is {gradient_norm} at step {state.step}", hint=hint)
    state.optimizer.step()
    state.optimizer.zero_grad()
    new = {"tokens": batch.num_tokens, "context": batch.num_context, "skipped": batch.num_skipped}
    state.counts = {key: state.counts.get(key, 0) + value for key, value in new.items()}
    return gradient_norm, features_ND


def _losses(state: TrainingState, part: Pass, params: PretrainParams) -> tuple[Pass, Tensor, Tensor]:
    """Return the pass on the device, the loss of each of its targets, and all teacher features."""
    device = state.losses.device
    part = part.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=params.precision == "bf16"):
        tokens_N1024 = part.decode()
        with torch.no_grad():
            features_ND = state.teacher(tokens_N1024, part.coords_N3, part.lengths)
        context_CD = state.student(tokens_N1024[part.context_C], part.coords_N3[part.context_C], part.context_lengths)
        predicted_TD = state.predictor(context_CD, part.context_C, part.target_T, part.coords_N3, part.lengths)
    return part, token_losses(predicted_TD, normalized_targets(features_ND[part.target_T])), features_ND


@torch.no_grad()
def _validate(state: TrainingState, validation: BatchSource, params: PretrainParams) -> Line:
    """Return the loss on the validation volumes, and the health of the teacher's features."""
    sums_G2 = torch.zeros_like(state.losses)
    features: list[Tensor] = []
    for batch in validation.validation_batches():
        for part in batch.passes:
            part, losses_T, features_ND = _losses(state, part, params)
            _count(sums_G2, part, losses_T)
            if sum(map(len, features)) < MAX_TOKENS:
                features.append(features_ND)
    line = _mean_losses(sums_G2) | _health(torch.cat(features))
    return {f"val_{key}": value for key, value in line.items()}


def _count(sums_G2: Tensor, part: Pass, losses_T: Tensor) -> None:
    values_T = losses_T.detach().double()
    sums_G2.index_add_(0, part.group_T, torch.stack((values_T, torch.ones_like(values_T)), dim=-1))


def _summary(state: TrainingState) -> Line:
    """Return losses and mask shares since the last line, and begin to count anew."""
    tokens, context = state.counts["tokens"], state.counts["context"]
    line = _mean_losses(state.losses)
    line |= {"context_share": context / tokens, "target_share": 1 - context / tokens}
    line |= {"skipped": state.counts["skipped"]}
    state.losses.zero_()
    state.counts = {}
    return line


def _mean_losses(sums_G2: Tensor) -> Line:
    total, number = sums_G2.sum(dim=0).tolist()
    line = {"loss": total / number}
    for (modality, mode), (group_total, group_number) in zip(GROUPS, sums_G2.tolist(), strict=True):
        if group_number:
            line[f"loss_{modality}_{mode}"] = group_total / group_number
    return line


def _health(features_ND: Tensor) -> Line:
    return {
        "feature_std": feature_std(features_ND),
        "effective_rank": effective_rank(features_ND),
        "target_variance": target_variance(normalized_targets(features_ND)),
    }


def _training_ids(shards: ShardSet, volume_ids: Sequence[str], params: PretrainParams) -> tuple[str, ...]:
    """Return the volumes of the modality and of the share of studies that the settings ask for."""
    kept = _of_modality(shards, volume_ids, params)
    if params.data_fraction < 1:
        studies = {volume_id: shards.get(volume_id).study_id for volume_id in kept}
        # In the order of a hash, so that a smaller share is inside every larger one.
        order = sorted(set(studies.values()), key=lambda study: fingerprint(params.seed, study))
        chosen = set(order[: math.ceil(params.data_fraction * len(order))])
        kept = [volume_id for volume_id in kept if studies[volume_id] in chosen]
    if not kept:
        raise UsageError("there is no training volume", hint="check the modality and the splits")
    return tuple(kept)


def _validation_ids(shards: ShardSet, volume_ids: Sequence[str], params: PretrainParams) -> tuple[str, ...]:
    kept = sorted(_of_modality(shards, volume_ids, params), key=lambda one: fingerprint(params.seed, one))
    return tuple(kept[: params.validation_volumes])


def _of_modality(shards: ShardSet, volume_ids: Sequence[str], params: PretrainParams) -> list[str]:
    if params.modality is None:
        return list(volume_ids)
    wanted = set(shards.select_ids(modality=params.modality))
    return [volume_id for volume_id in volume_ids if volume_id in wanted]


def _device(params: PretrainParams) -> torch.device:
    available = torch.cuda.is_available()
    if params.device == "cuda" and not available:
        raise UsageError("device is cuda, but torch sees no GPU here", hint='device = "auto"')
    return torch.device("cuda" if available and params.device != "cpu" else "cpu")


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Stopwatch:
    """Seconds of wall time, pauses left out."""

    def __init__(self) -> None:
        self._started_s = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        before_s = time.perf_counter()
        yield
        self._started_s += time.perf_counter() - before_s


class _Log:
    """`log.jsonl`: one line per `log_every` steps and one per validation."""

    def __init__(
        self, path: Path, state: TrainingState, on_progress: Callable[[Mapping[str, float]], None] | None
    ) -> None:
        self.path, self._state, self._on_progress = path, state, on_progress
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        with written_whole(path) as partial:
            # Steps that are about to be made again are not told twice.
            partial.write_text("".join(line for line in lines if _is_before(line, state.step)))

    def write(self, line: Line) -> None:
        self._state.latest |= line
        line = {"step": self._state.step, **line}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        logger.info("%s", " ".join(f"{key}={value:.6g}" for key, value in line.items()))
        if self._on_progress is not None:
            self._on_progress(line)


def _is_before(line: str, step: int) -> bool:
    # A line without its end was being written when the process was killed.
    return line.endswith("\n") and json.loads(line)["step"] <= step
