"""Every stage, every clause of the contract. A stage is held to all of them by being registered."""

import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.compute as pc
import pytest

from tasks import stage as contract
from tasks.plan import State, plan_chain, plan_stage
from tasks.registry import STAGES
from tasks.stage import Stage
from tasks.verify import damaged_files
from tasks.workspace import FOLDERS, Workspace

every_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
CHANGES = {
    # One setting of each stage that changes what it means: (what site.toml says, what it says then).
    "export": ("", "[export]\nretain_safe_private = false"),
    "convert": ("", "[convert]\nmin_slices = 5"),
    "preprocess": ("", "[preprocess]\nslice_mm = 5.0"),
    "shard": ("volumes_per_shard = 8", "volumes_per_shard = 9"),
    "label": ("", "[label]\nontology_path = '{root}/ontology.toml'"),
    "pretrain": ("steps = 8", "steps = 10"),
    "probe": ("epochs = 3", "epochs = 4"),
    "analyze": ("replicates = 100", "replicates = 200"),
}


def content(workspace: Workspace, stage: str) -> set[tuple[str, str, str, str]]:
    """What a manifest says, without when and by which run it was said."""
    columns = ["item_id", "status", "reason", "sha256"]
    rows = workspace.store.manifest(stage).current(columns=columns).to_pylist()
    return {tuple(row[column] for column in columns) for row in rows}  # type: ignore[misc]


def forget(workspace: Workspace, stage: Stage) -> None:
    """Take a stage's results away, as if it had never run."""
    shutil.rmtree(workspace.root / "manifests" / stage.name)
    shutil.rmtree(workspace.folder(stage.name), ignore_errors=True)


def downstream(stage: Stage) -> set[str]:
    names = {stage.name}
    for later in STAGES:
        if names & set(later.reads):
            names.add(later.name)
    return names


@every_stage
def test_a_second_run_has_nothing_to_do(stage: Stage, finished: Workspace, run_one) -> None:
    plan = plan_stage(stage, finished)
    assert plan.todo.num_rows == 0, plan.why
    assert plan.state is State.FRESH, plan.notes
    version = finished.store.manifest(stage.name).pin()
    assert run_one(stage, finished).planned == 0
    assert finished.store.manifest(stage.name).pin() == version


@every_stage
def test_every_candidate_ends_as_a_row(stage: Stage, finished: Workspace) -> None:
    plan = plan_stage(stage, finished)
    candidates = stage.plan(finished, plan.upstream, plan.params).table["item_id"].to_pylist()
    table = finished.store.manifest(stage.name).current()
    assert set(table["source_id"].to_pylist()) == set(candidates)
    assert set(table["status"].to_pylist()) <= {"ok", "excluded", "failed"}
    unexplained = table.filter(pc.and_(pc.not_equal(table["status"], "ok"), pc.equal(table["reason"], "")))
    assert unexplained.num_rows == 0


@every_stage
def test_redone_work_has_the_same_bytes_with_any_number_of_workers(stage: Stage, finished: Workspace, run_one) -> None:
    before = content(finished, stage.name)
    forget(finished, stage)
    site = finished.root / "site.toml"
    site.write_text(site.read_text().replace("workers = 2", "workers = 4"))
    again = Workspace.open(finished.root)
    run_one(stage, again)
    assert content(again, stage.name) == before
    assert damaged_files(again, [stage.name], 1.0)[1] == []


@every_stage
def test_a_killed_run_converges(stage: Stage, finished: Workspace, run_one) -> None:
    """kill -9 at a random moment, then run again: the same rows and bytes as an undisturbed run."""
    before = content(finished, stage.name)
    forget(finished, stage)
    command = [sys.executable, "-m", "flows", "run", stage.name, "-w", str(finished.root)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(random.Random(stage.name).uniform(1.5, 5.0))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    result = run_one(stage, Workspace.open(finished.root))
    assert not result.error
    assert content(finished, stage.name) == before
    assert damaged_files(finished, [stage.name], 1.0)[1] == []


@every_stage
def test_a_changed_setting_makes_this_stage_and_those_after_it_stale(stage: Stage, finished: Workspace) -> None:
    before, after = CHANGES[stage.name]
    (finished.root / "ontology.toml").write_text("")
    site = finished.root / "site.toml"
    text = site.read_text()
    assert before in text
    after = after.format(root=finished.root)
    site.write_text(text.replace(before, after) if before else f"{text}\n{after}\n")
    workspace = Workspace.open(finished.root)
    states = {plan.stage: plan.state for plan in plan_chain(STAGES, workspace)}
    stale = {name for name, state in states.items() if state is State.STALE}
    assert stale == downstream(stage)
    assert all(states[name] is State.FRESH for name in set(states) - stale)


@every_stage
def test_a_flipped_byte_upstream_is_refused_by_name(stage: Stage, finished: Workspace, run_one) -> None:
    if not stage.reads or stage.name == "analyze":
        pytest.skip("reads rows, not files, of other stages" if stage.reads else "reads no manifest")
    upstream = stage.reads[-1]
    kinds = {"label": " and kind = 'report'", "convert": " and kind = 'series'"}
    where = "status = 'ok'" + kinds.get(stage.name, "")
    rows = finished.store.manifest(upstream).current(where=where).to_pylist()
    rows = [row for row in rows if row["outputs"]]
    victim = finished.root / rows[0]["outputs"][0]
    path = next(p for p in sorted(victim.rglob("*")) if p.is_file()) if victim.is_dir() else victim
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    forget(finished, stage)
    result = run_one(stage, finished)
    failed = finished.store.manifest(stage.name).current(where="status = 'failed'").to_pylist()
    assert failed, result.counts
    assert {row["reason"] for row in failed} == {"checksum"}
    assert any(Path(rows[0]["outputs"][0]).name in row["detail"] for row in failed)


@every_stage
def test_empty_in_empty_out(stage: Stage, finished: Workspace, run_one) -> None:
    if not stage.reads:
        pytest.skip("an empty source is a usage error, tested with the command line")
    for name in STAGES:
        shutil.rmtree(finished.root / "manifests" / name.name, ignore_errors=True)
    result = run_one(stage, finished)
    assert result.planned == 0
    assert not result.error
    assert not finished.store.manifest(stage.name).exists


@every_stage
def test_a_surprise_in_one_unit_costs_that_unit(stage: Stage, finished: Workspace, monkeypatch) -> None:
    """Whatever an item does, it ends as its own row, without the words of the exception."""
    monkeypatch.setattr(contract, "import_module", exploding(stage))
    plan = plan_stage(stage, finished)
    first = stage.plan(finished, plan.upstream, plan.params).table.slice(0, 1).to_pylist()[0]
    unit = contract.Unit(first["item_id"], first["input_fingerprint"], first)
    place = contract.Place(finished.root, finished.folder(stage.name) / "nowhere")
    outcome = contract.work_one(contract.Job(stage.name, unit, plan.params, place, plan.params_fingerprint, "run"))
    assert [row["status"] for row in outcome] == ["failed"]
    assert outcome[0]["item_id"] == first["item_id"]
    assert outcome[0]["reason"] == "unexpected"
    assert "ZeroDivisionError" in outcome[0]["detail"]
    assert "secret" not in outcome[0]["detail"]


def exploding(stage: Stage):
    def explode(*args: object) -> None:
        raise ZeroDivisionError("secret content of a file")

    return lambda name: SimpleNamespace(STAGE=replace(stage, execute=explode))


def test_no_planted_identifier_reaches_any_output(finished: Workspace, hospital: Path) -> None:
    planted = json.loads((hospital / "truth" / "identifiers.json").read_text())
    # One patient's shifted date may be another's true one; that dates are shifted is tested where it is done.
    dates = re.compile(r"(19|20)\d{6}")
    words = {word for values in planted.values() for word in values if len(word) >= 5 and not dates.fullmatch(word)}
    needles = [word.encode() for word in sorted(words)]
    for folder in [*FOLDERS.values(), "reports", "manifests", "runs"]:
        for path in (finished.root / folder).rglob("*"):
            named = [word for word in words if word in path.name]
            assert not named, f"{len(named)} identifiers in a file name"
            if path.is_file():
                raw = path.read_bytes()
                raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
                found = [needle for needle in needles if needle in raw]
                assert not found, f"{len(found)} identifiers in {path.relative_to(finished.root)}"
