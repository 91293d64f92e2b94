"""Pretraining: what a run computes, that it can be stopped anywhere, and that a collapse shows."""

import json
import math
import shutil
import signal
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from neurovfm_core.errors import IntegrityError, UsageError
from neurovfm_core.jepa.batches import WINDOW_SHARES, BatchSource
from neurovfm_core.jepa.monitors import effective_rank, feature_std, target_variance
from neurovfm_core.jepa.objective import normalized_targets, token_losses, update_teacher
from neurovfm_core.jepa.schedules import LearningRate, Momentum
from neurovfm_core.jepa.state import TrainingState
from neurovfm_core.jepa.trainer import SPEED, PretrainParams, _training_ids, train
from neurovfm_core.models.checkpoints import load_encoder
from neurovfm_core.models.config import EncoderConfig, PredictorConfig
from neurovfm_core.models.positions import positional_code
from neurovfm_core.randomness import rng_for
from neurovfm_core.shards import NormalizationStats, ShardSet, VolumeTokens, write_shard
from neurovfm_core.vocabulary import Modality, Split, Window
from neurovfm_core.volumes import Prepared, View

TINY = PretrainParams(
    encoder=EncoderConfig(width=48, depth=2, num_heads=3),
    predictor=PredictorConfig(width=36, depth=1, num_heads=2),
    max_crop=(4, 4, 4),
    steps=6,
    batch_volumes=4,
    learning_rate_start=1e-3,
    learning_rate=2e-3,
    momentum_start=0.9,
    precision="fp32",
    device="cpu",
    num_threads=1,
    loader_threads=0,
    log_every=3,
    validate_every=3,
    checkpoint_every=2,
)
NUM_TRAIN, NUM_VAL = 10, 3


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def small_head(key, modality):
    """A textured ellipsoid: brighter inside, with its own shape and noise."""
    rng = rng_for(0, "head", key)
    shape = (20, 16 * int(rng.integers(3, 6)), 16 * int(rng.integers(3, 6)))
    axes = [np.linspace(-1, 1, size) for size in shape]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    top = 255 if modality is Modality.MR else 103
    code = (1 - radius / 2) * top + rng.normal(0, top / 20, shape)
    return Prepared(
        code=code.clip(0, top).astype(np.uint8),
        foreground=radius < 0.95,
        modality=modality,
        spacing_mm=(4.0, 1.0, 1.0),
        view=View.AXIAL,
        affine=np.diag([1.0, 1.0, 4.0, 1.0]),
        qc={},
    )


@pytest.fixture(scope="module")
def folder_of_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    volumes = [
        VolumeTokens.from_prepared(
            small_head(key, Modality.CT if key % 3 == 0 else Modality.MR),
            volume_id=f"ser_{key:02d}_v0",
            study_id=f"stu_{key // 2}",
            patient_id=f"pat_{key // 2}",
            split=Split.TRAIN if key < NUM_TRAIN else Split.VAL,
        )
        for key in range(NUM_TRAIN + NUM_VAL)
    ]
    write_shard(folder, "a", volumes[:7])
    write_shard(folder, "b", volumes[7:])
    return folder


@pytest.fixture(scope="module")
def shards(folder_of_shards):
    return ShardSet(folder_of_shards)


def run(shards, folder, params=TINY, **more):
    stats = shards.normalization()
    train_ids, val_ids = (shards.select_ids(split=split) for split in (Split.TRAIN, Split.VAL))
    return train(shards, train_ids, val_ids, stats, params, folder, **more)


def changed(params=TINY, **changes):
    return PretrainParams(**{**params.model_dump(), **changes})


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    run(shards, folder)
    return folder


def source_of(shards, params=TINY, split=Split.TRAIN, **more):
    return BatchSource(shards, shards.select_ids(split=split), shards.normalization(), params, **more)


def checkpoint(folder, step):
    return folder / "checkpoints" / f"step_{step:09d}"


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in SPEED} for line in lines]


def assert_same_run(folder, other):
    """Bit for bit, except for how long it took."""
    for name in (f"checkpoints/step_{TINY.steps:09d}/tensors.safetensors", "encoder/model.safetensors"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("encoder/card.json", "encoder/config.json", "run.json"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert log_of(folder) == log_of(other)


def stopper(after):
    """A `should_stop` that lets `after` steps happen."""
    asked = iter(range(after + 1))
    return lambda: next(asked) == after


# The course of a run: stopped, killed, damaged


@pytest.mark.parametrize("step", [0, 1, 2, 5])
def test_a_run_stopped_and_resumed_ends_as_one_that_was_not(shards, whole, tmp_path, step):
    stopped = run(shards, tmp_path, should_stop=stopper(step))
    assert (stopped.stopped, stopped.steps) == (True, step)
    assert json.loads((stopped.encoder_folder / "card.json").read_text())["finished"] is False
    resumed = run(shards, tmp_path)
    assert (resumed.stopped, resumed.steps) == (False, TINY.steps)
    assert_same_run(tmp_path, whole)


def test_a_run_stopped_at_every_step_ends_as_one_that_was_not(shards, whole, tmp_path):
    for _ in range(TINY.steps):
        run(shards, tmp_path, should_stop=stopper(1))
    assert_same_run(tmp_path, whole)


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from neurovfm_core.jepa.trainer import PretrainParams, train
from neurovfm_core.shards import ShardSet
from neurovfm_core.vocabulary import Split

shards, params = ShardSet(Path(sys.argv[1])), PretrainParams.model_validate_json(sys.argv[3])
ids = [shards.select_ids(split=split) for split in (Split.TRAIN, Split.VAL)]

def kill(line):
    if line["step"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)

train(shards, *ids, shards.normalization(), params, Path(sys.argv[2]), on_progress=kill)
"""


def test_a_killed_run_goes_on_from_its_last_checkpoint(shards, folder_of_shards, whole, tmp_path):
    """Killed with step 3 logged, and step 2 the newest that was saved."""
    arguments = [str(folder_of_shards), str(tmp_path), TINY.model_dump_json()]
    killed = subprocess.run([sys.executable, "-c", KILLED_RUN, *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert log_of(tmp_path)[-1]["step"] == 3
    assert not (tmp_path / "encoder").exists()
    run(shards, tmp_path)
    assert_same_run(tmp_path, whole)


def test_only_run_record_and_checkpoints_are_needed_to_resume(shards, whole, tmp_path):
    """The log is gone, and a kill while the next checkpoint was being written has left its ruins."""
    run(shards, tmp_path, should_stop=stopper(3))
    shutil.rmtree(tmp_path / "encoder")
    (tmp_path / "log.jsonl").write_text('{"step": 3, "lo')
    half = checkpoint(tmp_path, 4)
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half a checkpoint")
    (half / ".state.json.1.partial").write_bytes(b"{")
    run(shards, tmp_path)
    name = f"checkpoints/step_{TINY.steps:09d}/tensors.safetensors"
    assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert [line["step"] for line in log_of(tmp_path)] == [6, 6]


def test_threads_that_load_change_nothing(shards, whole, tmp_path):
    run(shards, tmp_path, changed(loader_threads=3))
    name = f"checkpoints/step_{TINY.steps:09d}/tensors.safetensors"
    assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_a_finished_run_has_nothing_left_to_do(shards, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "again")
    result = run(shards, tmp_path / "again", on_progress=lambda line: pytest.fail("a step was made"))
    assert result.final_loss == next(line["loss"] for line in reversed(log_of(whole)) if "loss" in line)
    assert_same_run(tmp_path / "again", whole)


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tensors.safetensors", remove),
        ("tensors.safetensors", truncate),
        ("tensors.safetensors", flip_a_bit),
        ("state.json", truncate),
    ],
)
def test_a_damaged_checkpoint_is_an_error_and_no_fresh_start(shards, whole, tmp_path, name, damage):
    folder = shutil.copytree(whole, tmp_path / "run")
    damage(checkpoint(folder, 6) / name)
    with pytest.raises(IntegrityError, match="damaged") as caught:
        run(shards, folder)
    assert "step_000000006" in caught.value.where
    assert checkpoint(folder, 6).is_dir()


def test_a_damaged_checkpoint_can_be_given_up_for_the_one_before(shards, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(checkpoint(folder, 6))
    run(shards, folder)
    assert_same_run(folder, whole)


def test_a_run_without_checkpoints_is_an_error_and_no_fresh_start(shards, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(IntegrityError, match="no checkpoint left"):
        run(shards, folder)
    assert not (folder / "checkpoints").exists()


def test_checkpoints_without_their_run_record_are_an_error_and_no_fresh_start(shards, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "run.json").unlink()
    with pytest.raises(IntegrityError, match=r"run\.json"):
        run(shards, folder)
    assert not checkpoint(folder, 0).exists()


def test_a_run_killed_before_it_was_on_record_starts_again(shards, whole, tmp_path):
    run(shards, tmp_path, should_stop=stopper(0))
    (tmp_path / "run.json").unlink()
    run(shards, tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_damaged_run_record_is_an_error(shards, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    truncate(folder / "run.json")
    with pytest.raises(IntegrityError, match="damaged"):
        run(shards, folder)


def test_the_folder_of_another_run_is_refused_and_left_alone(shards, whole):
    train_ids, val_ids = (shards.select_ids(split=split) for split in (Split.TRAIN, Split.VAL))
    stats = shards.normalization()
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    for ids, validation, statistics, params, name in (
        (train_ids, val_ids, stats, changed(learning_rate=3e-3), "params"),
        (train_ids[:-1], val_ids, stats, TINY, "train_ids"),
        (train_ids, val_ids[:-1], stats, TINY, "val_ids"),
        (train_ids, val_ids, NormalizationStats.official(), TINY, "stats"),
    ):
        with pytest.raises(UsageError, match=rf"differs in {name}\n"):
            train(shards, ids, validation, statistics, params, whole)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_only_the_newest_checkpoints_are_kept(whole):
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step_000000004", "step_000000006"]


def test_what_cannot_be_trained_is_refused_before_anything_is_written(shards, tmp_path):
    stats, ids = shards.normalization(), shards.select_ids(split=Split.TRAIN)
    with pytest.raises(UsageError, match="no training volume"):
        train(shards, [], [], stats, TINY, tmp_path)
    with pytest.raises(UsageError, match="enough foreground"):
        train(shards, ids, [], stats, changed(max_crop=(1, 1, 1)), tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no GPU"):
            train(shards, ids, [], stats, changed(device="cuda"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_gradient_that_is_not_finite_stops_the_run(shards, tmp_path):
    infinite = NormalizationStats(fixed={(Modality.MR, None): (0.5, 1e-40)})
    ids = shards.select_ids(modality=Modality.MR)
    with pytest.raises(IntegrityError, match="gradient is nan at step 0"):
        train(shards, ids, [], infinite, TINY, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000000000"]


# What a step computes


def naive_loss(state, crops):
    """The method volume by volume, without packing: the mean over all targets of the batch."""
    losses = []
    for crop in crops:
        tokens, coords = torch.tensor(crop.table[crop.tokens]), torch.tensor(crop.coords)
        context, target = (torch.tensor(np.flatnonzero(side)) for side in (crop.mask.context, crop.mask.target))
        with torch.no_grad():
            teacher = state.teacher(tokens, coords, [len(coords)])[target]
        mean, variance = teacher.mean(-1, keepdim=True), teacher.var(-1, correction=0, keepdim=True)
        wanted = (teacher - mean) / (variance + 1e-5).sqrt()
        seen = state.student(tokens[context], coords[context], [len(context)])
        # Context first, targets after it: an order of tokens means nothing to the predictor.
        code = positional_code(coords[torch.cat((context, target))], state.predictor.config.code_width)
        features = torch.cat((seen, state.predictor.mask_tokens[0].expand(len(target), -1)))
        x = state.predictor.from_vision_encoder(torch.cat((features, code), dim=-1))
        for block in state.predictor.blocks:
            x = block(x, [len(coords)])
        predicted = state.predictor.to_vision_encoder(state.predictor.norm(x))[len(context) :]
        error = (predicted - wanted).abs()
        losses.append(torch.where(error < 1, error**2 / 2, error - 0.5).mean(-1))
    return torch.cat(losses).mean()


@pytest.fixture(scope="module")
def step_by_step(shards, tmp_path_factory):
    """A run whose every step is logged and kept."""
    folder = tmp_path_factory.mktemp("steps")
    params = changed(steps=3, log_every=1, checkpoint_every=1, keep_checkpoints=9, momentum_start=0.5, momentum_end=0.8)
    torch.set_num_threads(1)
    run(shards, folder, params)
    return folder, params


def test_training_agrees_with_a_naive_loop_over_volumes(shards, step_by_step):
    """Same batches; everything else written again, with torch's plain AdamW and gradient clipping."""
    folder, params = step_by_step
    state, source = TrainingState.fresh(params, torch.device("cpu")), source_of(shards, params)
    weights = {
        f"{part}.{name}": parameter
        for part in ("student", "predictor")
        for name, parameter in getattr(state, part).named_parameters()
    }
    decayed = [w for name, w in weights.items() if name.endswith(".weight") and "norm" not in name]
    others = [w for w in weights.values() if not any(w is one for one in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, foreach=False)
    losses, norms = [], []
    for step in range(params.steps):
        loss = naive_loss(state, [source.crop(*access) for access in source.accesses(step)])
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float((w.grad**2).sum()) for w in weights.values()))
        for w in weights.values():
            w.grad *= min(1.0, 1.0 / norm)
        for group in optimizer.param_groups:
            group["lr"] = 1e-6 + (2e-3 - 1e-6) * (1 + math.cos(math.pi * step / 3)) / 2
        optimizer.step()
        momentum = 0.5 + 0.3 * step / 2
        with torch.no_grad():
            for slow, fast in zip(state.teacher.parameters(), state.student.parameters(), strict=True):
                slow.copy_(momentum * slow + (1 - momentum) * fast)
        losses.append(loss.item())
        norms.append(norm)
    logged = [line for line in log_of(folder) if "loss" in line]
    assert [line["loss"] for line in logged] == pytest.approx(losses, rel=1e-4)
    assert [line["gradient_norm"] for line in logged] == pytest.approx(norms, rel=1e-3)
    found = load_file(checkpoint(folder, params.steps) / "tensors.safetensors")
    for name, parameter in weights.items():
        if name.endswith("qkv.bias"):  # a key's bias has no gradient but rounding, which AdamW blows up
            continue
        assert (found[name] - parameter).abs().max() < 2e-4, name


def test_the_teacher_follows_after_the_optimizer_step(step_by_step):
    folder, params = step_by_step
    momentum = Momentum(0.5, 0.8, params.steps)
    states = [load_file(checkpoint(folder, step) / "tensors.safetensors") for step in range(params.steps + 1)]
    names = [name.removeprefix("teacher.") for name in states[0] if name.startswith("teacher.")]
    assert all(torch.equal(states[0][f"teacher.{name}"], states[0][f"student.{name}"]) for name in names)
    for step, (before, after) in enumerate(pairwise(states)):
        m = momentum.at(step)
        for name in names:
            assert not torch.equal(before[f"student.{name}"], after[f"student.{name}"])
            wanted = m * before[f"teacher.{name}"] + (1 - m) * after[f"student.{name}"]
            torch.testing.assert_close(after[f"teacher.{name}"], wanted, rtol=1e-6, atol=1e-7)


def test_the_encoder_of_a_run_is_its_teacher(step_by_step):
    folder, params = step_by_step
    tensors = load_file(checkpoint(folder, params.steps) / "tensors.safetensors")
    for name, value in load_encoder(folder / "encoder").state_dict().items():
        assert torch.equal(value, tensors[f"teacher.{name}"])


def test_a_gradient_does_not_depend_on_the_passes(shards, whole, tmp_path):
    """Same but for rounding, when every volume goes alone."""
    run(shards, tmp_path, changed(max_tokens_per_pass=1))
    assert len(source_of(shards, changed(max_tokens_per_pass=1)).batch(0).passes) == TINY.batch_volumes
    assert len(source_of(shards).batch(0).passes) == 1
    one, other = (next(line["loss"] for line in log_of(folder)) for folder in (whole, tmp_path))
    assert one == pytest.approx(other, rel=1e-4)


def test_decay_is_for_weight_matrices_alone():
    state = TrainingState.fresh(TINY, torch.device("cpu"))
    decay = {id(p): group["weight_decay"] for group in state.optimizer.param_groups for p in group["params"]}
    networks = {"student": state.student, "predictor": state.predictor}
    for part, network in networks.items():
        for owner, module in network.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                matrix = isinstance(module, nn.Linear) and name == "weight"
                assert decay.pop(id(parameter)) == (0.05 if matrix else 0.0), f"{part}.{owner}.{name}"
    assert not decay, "the teacher is not trained"
    assert not any(parameter.requires_grad for parameter in state.teacher.parameters())


def test_weights_stay_float32_and_losses_agree_in_either_precision(shards, tmp_path):
    results = {}
    for precision in ("fp32", "bf16"):
        params = changed(precision=precision, steps=2, log_every=1)
        results[precision] = run(shards, tmp_path / precision, params)
        tensors = load_file(checkpoint(tmp_path / precision, 2) / "tensors.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.float64}
    assert results["bf16"].final_loss != results["fp32"].final_loss
    assert results["bf16"].final_loss == pytest.approx(results["fp32"].final_loss, rel=0.02)
    assert results["bf16"].val_loss == pytest.approx(results["fp32"].val_loss, rel=0.02)


def test_a_short_run_learns(shards, tmp_path):
    params = changed(steps=60, log_every=10, validate_every=60, checkpoint_every=60, momentum_start=0.99)
    result = run(shards, tmp_path, params)
    losses = [line["loss"] for line in log_of(tmp_path) if "loss" in line]
    assert losses[-1] < 0.9 * losses[0]
    assert result.feature_std > 0.05
    assert result.effective_rank > 2


# Objective and schedules


def test_targets_have_mean_0_and_variance_1():
    targets = normalized_targets(torch.randn(50, 48, generator=torch.Generator().manual_seed(0)) * 7 + 3)
    torch.testing.assert_close(targets.mean(-1), torch.zeros(50), atol=1e-6, rtol=0)
    torch.testing.assert_close(targets.var(-1, correction=0), torch.ones(50), atol=1e-5, rtol=0)


def test_the_loss_is_quadratic_below_one_and_linear_above():
    predicted, wanted = torch.tensor([[0.5, 0.0], [3.0, -1.0]]), torch.zeros(2, 2)
    assert token_losses(predicted, wanted).tolist() == [0.5**2 / 2 / 2, (2.5 + 0.5) / 2]


def test_the_teacher_moves_by_what_momentum_leaves():
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    before = teacher.weight.detach().clone()
    update_teacher(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight, 0.9 * before + 0.1 * student.weight)
    update_teacher(teacher, student, 1.0)
    torch.testing.assert_close(teacher.weight, 0.9 * before + 0.1 * student.weight, rtol=0, atol=1e-7)
    update_teacher(teacher, student, 0.0)
    assert torch.equal(teacher.bias, student.bias)


def test_the_learning_rate_warms_up_in_a_line_and_falls_in_a_cosine():
    rate = LearningRate(1e-4, 4e-4, 1e-6, num_warmup_steps=10, num_steps=110)
    assert [rate.at(0), rate.at(5), rate.at(10)] == pytest.approx([1e-4, 2.5e-4, 4e-4])
    assert rate.at(60) == pytest.approx((4e-4 + 1e-6) / 2)
    assert rate.at(35) == pytest.approx(1e-6 + (4e-4 - 1e-6) * (1 + math.sqrt(0.5)) / 2)
    assert rate.at(110) == rate.at(500) == pytest.approx(1e-6)
    falling = [rate.at(step) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


def test_momentum_rises_in_a_line_from_the_first_step_to_the_last():
    momentum = Momentum(0.994, 1.0, num_steps=101)
    assert [momentum.at(step) for step in (0, 50, 100, 200)] == pytest.approx([0.994, 0.997, 1.0, 1.0])
    assert Momentum(0.5, 0.9, num_steps=1).at(0) == 0.5


# Monitors


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_the_effective_rank_counts_directions():
    assert effective_rank(normal(3000, 1) * normal(1, 32)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.eye(32).repeat(10, 1)) == pytest.approx(32, abs=1e-6)
    assert effective_rank(normal(4000, 32)) == pytest.approx(32, abs=0.2)
    assert effective_rank(normal(3000, 5) @ torch.linalg.qr(normal(32, 5)).Q.T) == pytest.approx(5, abs=0.1)
    assert effective_rank(torch.zeros(10, 4)) == 0


def test_the_effective_rank_agrees_with_the_singular_values():
    features = normal(200, 24) * torch.linspace(0.01, 3, 24)
    share = np.linalg.svd(features.numpy().astype(np.float64), compute_uv=False)
    share /= share.sum()
    assert effective_rank(features) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_features_that_are_all_alike_show():
    alike = normal(1, 24).expand(100, -1)
    assert feature_std(alike) == target_variance(normalized_targets(alike)) == 0
    assert effective_rank(alike) == pytest.approx(1, abs=1e-3)
    assert feature_std(3 * normal(5000, 24)) == pytest.approx(3, rel=0.02)
    assert target_variance(normalized_targets(normal(5000, 24))) == pytest.approx(1, rel=0.02)


def test_the_log_says_what_there_is_to_watch(whole):
    training = [line for line in log_of(whole) if "loss" in line]
    validation = [line for line in log_of(whole) if "val_loss" in line]
    assert [line["step"] for line in training] == [line["step"] for line in validation] == [3, 6]
    health = {"feature_std", "effective_rank", "target_variance"}
    for line in training:
        rates = {"learning_rate", "momentum", "gradient_norm", "epoch", "skipped", "context_share", "target_share"}
        assert health | rates <= line.keys()
        assert 0.78 < line["target_share"] < 0.92
        groups = [value for key, value in line.items() if key.startswith(("loss_CT", "loss_MR"))]
        assert min(groups) <= line["loss"] <= max(groups)
    assert {f"val_{key}" for key in health} <= validation[0].keys()
    assert training[-1]["momentum"] == 1.0
    assert training[-1]["epoch"] == TINY.steps * TINY.batch_volumes / NUM_TRAIN


# What a step trains on


def parts_of(batch):
    tensors = ("tokens_N1024", "coords_N3", "volume_N", "tables_V256", "context_C", "target_T", "group_T")
    return [(*(getattr(part, name) for name in tensors), part.lengths.lengths) for part in batch.passes]


def same_batch(one, other):
    pairs = zip(parts_of(one), parts_of(other), strict=True)
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for part, twin in pairs
        for a, b in zip(part, twin, strict=True)
    )


def test_a_batch_belongs_to_seed_and_step(shards):
    """Not to what was asked before, the order of the ids, or the threads that make it."""
    source = source_of(shards)
    forward = [source.batch(step) for step in range(TINY.steps)]
    twin = BatchSource(shards, reversed(source.volume_ids), shards.normalization(), TINY)
    for step in reversed(range(TINY.steps)):
        assert same_batch(forward[step], twin.batch(step))
    ahead = list(source_of(shards, changed(loader_threads=3)).ahead(2))
    assert len(ahead) == TINY.steps - 2
    assert all(map(same_batch, forward[2:], ahead))
    assert not same_batch(forward[0], source_of(shards, changed(seed=43)).batch(0))


@pytest.mark.parametrize("batch_volumes", [1, 4, 7, 25])
def test_every_volume_comes_once_per_epoch(shards, batch_volumes):
    source = source_of(shards, changed(batch_volumes=batch_volumes))
    seen = [access for step in range(40) for access in source.accesses(step)]
    epochs = [seen[first : first + NUM_TRAIN] for first in range(0, len(seen) - NUM_TRAIN + 1, NUM_TRAIN)]
    for number, epoch in enumerate(epochs):
        assert {position for _, position in epoch} == {number}
        assert sorted(volume_id for volume_id, _ in epoch) == list(source.volume_ids)
    assert len({tuple(volume_id for volume_id, _ in epoch) for epoch in epochs}) > len(epochs) / 2


def test_processes_share_a_batch_out(shards):
    alone = source_of(shards)
    pair = [source_of(shards, rank=rank, world=2) for rank in range(2)]
    for step in range(8):
        together = [access for source in pair for access in source.accesses(step)]
        assert sorted(together) == sorted(alone.accesses(step))
    with pytest.raises(UsageError, match="not a multiple of 3"):
        source_of(shards, world=3)


def test_a_batch_is_foreground_in_small_crops_on_two_sides(shards):
    for step in range(5):
        batch = source_of(shards).batch(step)
        (part,) = batch.passes
        assert sorted(torch.cat((part.context_C, part.target_T)).tolist()) == list(range(batch.num_tokens))
        assert (batch.num_volumes, batch.num_skipped) == (TINY.batch_volumes, 0)
        assert part.coords_N3.min() >= 0
        assert (part.coords_N3 < torch.tensor(TINY.max_crop)).all()
        of_context = part.volume_N[part.context_C].bincount(minlength=batch.num_volumes)
        assert tuple(of_context.tolist()) == part.context_lengths.lengths
        decoded = [part.tables_V256[v, row.long()] for v, row in zip(part.volume_N, part.tokens_N1024, strict=True)]
        assert torch.equal(part.decode(), torch.stack(decoded))


def test_a_volume_looks_different_every_epoch(shards):
    source = source_of(shards)
    for volume_id in source.volume_ids:
        views = {source.crop(volume_id, epoch).tokens.tobytes() for epoch in range(12)}
        assert len(views) > 6
        assert np.array_equal(source.crop(volume_id, 3).tokens, source.crop(volume_id, 3).tokens)


def test_volumes_of_one_shape_are_cropped_and_masked_each_in_its_own_way(tmp_path):
    names = {"study_id": "stu_0", "patient_id": "pat_0", "split": Split.TRAIN}
    twins = [
        VolumeTokens.from_prepared(small_head(1, Modality.MR), volume_id=f"ser_{key}", **names) for key in range(8)
    ]
    write_shard(tmp_path, "twins", twins)
    source = source_of(ShardSet(tmp_path))
    crops = [source.crop(volume_id, 0) for volume_id in source.volume_ids]
    assert len({(crop.tokens.tobytes(), crop.mask.context.tobytes()) for crop in crops}) == len(twins)


def test_windows_come_as_often_as_the_paper_says(shards):
    source, stats, number = source_of(shards), shards.normalization(), 1000
    (volume_id, *_) = shards.select_ids(split=Split.TRAIN, modality=Modality.CT)
    tables = [source.crop(volume_id, epoch).table.tobytes() for epoch in range(number)]
    for window in Window:
        share, wanted = tables.count(stats.table(Modality.CT, window).tobytes()) / number, WINDOW_SHARES[window]
        assert abs(share - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / number)


def test_validation_sees_every_volume_once_and_always_alike(shards):
    source = source_of(shards, changed(max_crop=(20, 20, 20), batch_volumes=2), split=Split.VAL)
    first, second = list(source.validation_batches()), list(source.validation_batches())
    assert [batch.num_volumes for batch in first] == [2, 1]
    assert all(map(same_batch, first, second))
    for volume_id in source.volume_ids:  # as stored: not turned
        stored = shards.get(volume_id).select(TINY.min_foreground_share)
        assert np.array_equal(source.crop(volume_id, None).coords, stored.coords)
        assert np.array_equal(source.crop(volume_id, None).tokens, stored.tokens)


def test_an_encoder_that_stands_still_has_one_validation_loss(shards, tmp_path):
    """So a change of it is the encoder's, never another draw of masks."""
    still = {"learning_rate": 0.0, "learning_rate_start": 0.0, "learning_rate_final": 0.0}
    run(shards, tmp_path, changed(**still, steps=4, log_every=1, validate_every=1))
    lines = log_of(tmp_path)
    assert len({line["loss"] for line in lines if "loss" in line}) == 4
    assert len({line["val_loss"] for line in lines if "val_loss" in line}) == 1


def test_a_smaller_share_of_the_studies_is_inside_a_larger_one(shards):
    ids = shards.select_ids(split=Split.TRAIN)
    small, medium, full = (set(_training_ids(shards, ids, changed(data_fraction=share))) for share in (0.3, 0.6, 1.0))
    assert small < medium < full == set(ids)
    for chosen in (small, medium):  # studies whole
        studies = {shards.get(volume_id).study_id for volume_id in chosen}
        assert chosen == {volume_id for volume_id in ids if shards.get(volume_id).study_id in studies}
    only_ct = _training_ids(shards, ids, changed(modality=Modality.CT))
    assert {shards.get(volume_id).modality for volume_id in only_ct} == {Modality.CT}
