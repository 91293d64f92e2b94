"""What is due and why: meaning, code, selection, sources that come and go."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from neurovfm_core.errors import UsageError
from tasks import plan as planning
from tasks.accept import accept_code
from tasks.plan import State, plan_chain, plan_stage
from tasks.provenance import _bare_tree, code_fingerprint
from tasks.registry import STAGES, between, stage_named
from tasks.stage import Selection
from tasks.workspace import Workspace


def test_a_raised_semantic_version_redoes_everything(finished: Workspace) -> None:
    stage = replace(stage_named("convert"), semantic_version=2)
    plan = plan_stage(stage, finished)
    assert plan.state is State.STALE
    assert set(plan.why) == {"code_changed"} or set(plan.why) == {"params_changed"}
    assert any("1 → 2" in note for note in plan.notes)


def test_moved_code_is_suspect_until_accepted(finished: Workspace, monkeypatch) -> None:
    monkeypatch.setattr(planning, "code_fingerprint", lambda module: "moved")
    monkeypatch.setattr("tasks.accept.code_fingerprint", lambda module: "moved")
    plans = plan_chain(STAGES, finished)
    assert {plan.state for plan in plans} == {State.SUSPECT}
    assert sum(plan.num_due for plan in plans) == 0, "suspicion recomputes nothing by itself"
    accept_code(stage_named("shard"), finished, "only renamed variables")
    states = {plan.stage: plan.state for plan in plan_chain(STAGES, finished)}
    assert states.pop("shard") is State.FRESH
    assert set(states.values()) == {State.SUSPECT}
    with pytest.raises(UsageError):
        accept_code(stage_named("label"), finished, "  ")


def test_comments_and_docstrings_do_not_move_the_fingerprint(tmp_path: Path) -> None:
    plain, dressed, other = (tmp_path / name for name in ("a.py", "b.py", "c.py"))
    plain.write_text("def f(x):\n    return x + 1\n")
    dressed.write_text('"""Doc."""\n\ndef f(x):\n    """Say."""\n    return (x + 1)  # why\n')
    other.write_text("def f(x):\n    return x + 2\n")
    assert _bare_tree(plain) == _bare_tree(dressed) != _bare_tree(other)
    assert code_fingerprint("tasks.convert") != code_fingerprint("tasks.preprocess")


def test_a_series_that_is_gone_upstream_is_retired(finished: Workspace, run_one) -> None:
    manifest = finished.store.manifest("convert")
    victim = manifest.current(where="status = 'ok'").to_pylist()[0]
    row = finished.store.manifest("export").current(where=f"item_id = '{victim['source_id']}'").to_pylist()[0]
    row |= {"status": "excluded", "reason": "not_in_cohort", "detail": "withdrawn from the cohort"}
    finished.store.manifest("export").append([row], {})
    for stage in ("convert", "preprocess", "shard"):
        plan = plan_stage(stage_named(stage), finished)
        assert plan.gone and not plan.todo.num_rows
        run_one(stage_named(stage), finished)
        current = finished.store.manifest(stage).current(columns=["item_id"])["item_id"].to_pylist()
        assert victim["item_id"] not in current
        assert plan_stage(stage_named(stage), finished).num_due == 0


def test_only_words_and_limits_narrow_a_run(finished: Workspace, run_one) -> None:
    stage = stage_named("preprocess")
    volume = finished.store.manifest("convert").current(where="status = 'ok'")["item_id"].to_pylist()[0]
    assert plan_stage(stage, finished, Selection(only=(volume,), force=True)).todo.num_rows == 1
    assert plan_stage(stage, finished, Selection(force=True, limit=3)).todo.num_rows == 3
    assert plan_stage(stage, finished, Selection(only=("new",), force=True)).todo.num_rows == 0
    shutil.rmtree(finished.root / "manifests" / "preprocess")
    assert run_one(stage, finished, limit=2).planned == 2
    rest = plan_stage(stage, finished)
    assert rest.why == {"new": rest.todo.num_rows}
    assert not rest.gone


def test_a_volume_names_its_series(finished: Workspace) -> None:
    row = finished.store.manifest("convert").current(where="status = 'ok'").to_pylist()[0]
    plan = plan_stage(stage_named("convert"), finished, Selection(only=(row["item_id"],), force=True))
    assert plan.todo["item_id"].to_pylist() == [row["source_id"]]


def test_a_failed_item_waits_until_it_is_asked_for(finished: Workspace, run_one) -> None:
    stage = stage_named("preprocess")
    row = finished.store.manifest("convert").current(where="status = 'ok'").to_pylist()[0]
    path = finished.root / row["outputs"][0]
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    run_one(stage, finished, only=(row["item_id"],), force=True)
    assert plan_stage(stage, finished).quarantined == 1
    assert plan_stage(stage, finished).todo.num_rows == 0
    path.write_bytes(good)
    result = run_one(stage, finished, only=("failed:checksum",))
    assert result.counts["ok"] == 1
    assert plan_stage(stage, finished).quarantined == 0


def test_a_part_of_the_chain() -> None:
    assert [stage.name for stage in between("shard", "pretrain")] == ["shard", "label", "pretrain"]
