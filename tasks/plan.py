"""What would run, and why: decided from manifests, never from file times or a result cache."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests import ManifestError, Pin, classify
from neurovfm_core.errors import UsageError
from neurovfm_core.params import Params
from tasks.provenance import code_fingerprint
from tasks.stage import (
    RETRY_REASONS,
    Candidates,
    Selection,
    Stage,
    Upstream,
    params_fingerprint,
)
from tasks.workspace import Workspace


class State(StrEnum):
    """How a stage stands to its inputs, settings and code."""

    NEVER = "never"
    """It has not run yet."""
    STALE = "stale"
    """Settings or meaning changed, here or upstream: done work must be redone."""
    BEHIND = "behind"
    """There are new or changed inputs."""
    SUSPECT = "suspect"
    """The code moved but its semantic version did not: look, then `accept` or recompute."""
    FRESH = "fresh"
    """Nothing to do."""


@dataclass(frozen=True)
class StagePlan:
    """What one stage would do now."""

    stage: str
    state: State
    todo: pa.Table
    why: Mapping[str, int]
    fresh: int
    quarantined: int
    gone: tuple[str, ...]
    payloads: Mapping[str, Any]
    upstream: Upstream
    params: Params
    params_fingerprint: str
    notes: tuple[str, ...] = ()
    after: Mapping[str, str] = field(default_factory=dict)
    """Upstream stages that would change its inputs first, and how: `stale` or `behind`."""

    @property
    def num_due(self) -> int:
        return self.todo.num_rows + len(self.gone)


def plan_stage(
    stage: Stage, workspace: Workspace, selection: Selection | None = None, *, asked: bool = True
) -> StagePlan:
    """Compare what a stage could work on with what its manifest says is done.

    Parameters
    ----------
    asked
        Whether the user named this stage. One that waits for data
        (training) starts on new data only when asked.

    Raises
    ------
    UsageError
        If the selection names something that does not exist.
    """
    selection = selection or Selection()
    params: Params = getattr(workspace.site, stage.name)
    upstream = Upstream(workspace.store, {name: workspace.store.manifest(name).pin() for name in stage.reads})
    candidates = stage.plan(workspace, upstream, params)
    manifest = workspace.store.manifest(stage.name)
    known = params_fingerprint(stage, params)
    narrow = _narrow(selection, stage, workspace, candidates)
    work = classify(
        candidates.table,
        manifest,
        params_fingerprint=known,
        semantic_version=stage.semantic_version,
        retry_reasons=RETRY_REASONS,
        force=selection.force,
        **narrow,
    )
    todo, why = work.todo, dict(work.why_counts)
    notes = list(_notes(stage, workspace, work.quarantined))
    state = _state(manifest.exists, why, bool(work.gone) and stage.retires)
    if stage.waits_for_data and not asked and set(why) == {"input_changed"} and _only_grew(stage, workspace):
        notes.append(f"inputs only grew; `neurovfm run {stage.name}` takes the new data in")
        todo, why = todo.slice(0, 0), {}
    if state is State.FRESH and _is_suspect(stage, workspace):
        state = State.SUSPECT
    if selection.limit is not None:
        todo = todo.slice(0, selection.limit)
    whole = not (selection.only or selection.limit is not None)
    return StagePlan(
        stage=stage.name,
        state=state,
        todo=todo,
        why=why,
        fresh=work.fresh,
        quarantined=work.quarantined,
        gone=tuple(work.gone) if whole and stage.retires else (),
        payloads=candidates.payloads,
        upstream=upstream,
        params=params,
        params_fingerprint=known,
        notes=tuple(notes),
    )


def plan_chain(stages: Sequence[Stage], workspace: Workspace, *, asked: bool = False) -> list[StagePlan]:
    """Plan stages in order, and say which of them only wait for one before them."""
    plans: dict[str, StagePlan] = {}
    for stage in stages:
        plan = plan_stage(stage, workspace, asked=asked)
        after = {
            name: "stale" if plans[name].state is State.STALE or "stale" in plans[name].after.values() else "behind"
            for name in stage.reads
            if name in plans and (plans[name].num_due or plans[name].after)
        }
        if stage.waits_for_data and not asked and plan.state is not State.NEVER:
            # New data alone do not start it; stale inputs do.
            after = {name: how for name, how in after.items() if how == "stale"}
        if after and plan.state in (State.FRESH, State.BEHIND, State.SUSPECT):
            state = State.STALE if "stale" in after.values() else State.BEHIND
            plan = replace(plan, state=state, after=after)
        elif after:
            plan = replace(plan, after=after)
        plans[stage.name] = plan
    return list(plans.values())


def content_fingerprint(*tables: pa.Table) -> str:
    """Return the sha256 of tables' rows, whatever their order or commit history."""
    digest = hashlib.sha256()
    for table in tables:
        names = sorted(table.column_names)
        ordered = table.select(names).sort_by([(name, "ascending") for name in names if _sortable(table, name)])
        for row in ordered.to_pylist():
            digest.update(repr(sorted(row.items())).encode())
        digest.update(b"|")
    return digest.hexdigest()


def _sortable(table: pa.Table, name: str) -> bool:
    return not pa.types.is_nested(table.schema.field(name).type)


def _state(exists: bool, why: Mapping[str, int], gone: bool) -> State:
    if not exists:
        return State.NEVER
    if {"params_changed", "code_changed", "forced"} & set(why):
        return State.STALE
    return State.BEHIND if why or gone else State.FRESH


def _narrow(selection: Selection, stage: Stage, workspace: Workspace, candidates: Candidates) -> dict[str, Any]:
    """Turn `--only` words into the arguments of `classify`."""
    narrow: dict[str, Any] = {}
    ids = []
    for word in selection.only:
        if word == "new":
            narrow["only_new"] = True
        elif word == "failed" or word.startswith("failed:"):
            narrow["only_failed"] = True
            narrow["failed_reason"] = word.partition(":")[2] or None
        else:
            ids.append(word)
    if ids:
        narrow["only_ids"] = frozenset(_source_of(word, stage, workspace, candidates) for word in ids)
    return narrow


def _source_of(item_id: str, stage: Stage, workspace: Workspace, candidates: Candidates) -> str:
    """Return the unit that an id names: itself, or the series that a volume came from."""
    if pc.any(pc.equal(candidates.table["item_id"], item_id), min_count=0).as_py():
        return item_id
    rows = workspace.store.manifest(stage.name).current(columns=["item_id", "source_id"], ordered=False)
    sources = rows.filter(pc.equal(rows["item_id"], item_id))["source_id"].to_pylist()
    if not sources:
        raise UsageError(
            f"{stage.name} has no item {item_id}",
            hint=f"neurovfm show {stage.name} lists item ids; other words are new, failed, failed:REASON",
        )
    return sources[0]


def _notes(stage: Stage, workspace: Workspace, quarantined: int):
    if quarantined:
        yield f"{quarantined} failed before and are left alone; `neurovfm run {stage.name} --only failed` tries them"
    commit = _last_commit(stage, workspace)
    if commit is None:
        return
    before, now = commit.get("params", {}), getattr(workspace.site, stage.name).model_dump(mode="json")
    for key, old, new in _differences(before, now):
        yield f"{stage.name}.{key}: {old} → {new}"
    if commit.get("semantic_version") != stage.semantic_version:
        yield f"its meaning changed: version {commit.get('semantic_version')} → {stage.semantic_version}"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""):
    for key in sorted(set(before) | set(now)):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new


def _last_commit(stage: Stage, workspace: Workspace) -> dict[str, Any] | None:
    return workspace.store.manifest(stage.name).provenance()


def _is_suspect(stage: Stage, workspace: Workspace) -> bool:
    commit = _last_commit(stage, workspace)
    if commit is None:
        return False
    now = code_fingerprint(stage.module)
    accepted = {
        record.get("code_fingerprint")
        for record in workspace.ledger.list(stage=stage.name)
        if record.get("kind") == "accept"
    }
    return now != commit.get("code_fingerprint") and now not in accepted


def _only_grew(stage: Stage, workspace: Workspace) -> bool:
    """Whether every upstream row that the last run used is still there, with the same bytes."""
    commit = _last_commit(stage, workspace)
    if commit is None:
        return False
    for name in stage.reads:
        if name not in commit.get("inputs", {}):
            continue
        manifest = workspace.store.manifest(name)
        pin = Pin.from_dict(commit["inputs"][name])
        try:
            manifest.check(pin)
        except ManifestError:  # the version is gone, or the table was rewound
            return False
        columns, where = ["item_id", "sha256"], "status = 'ok'"
        then = manifest.current(at=pin, columns=columns, where=where)
        now = manifest.current(columns=columns, where=where)
        if not pc.all(pc.is_in(_keys(then), _keys(now)), min_count=0).as_py():
            return False
    return True


def _keys(table: pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(table["item_id"], table["sha256"], ":").combine_chunks()
