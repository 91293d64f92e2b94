"""What people ask of manifests: how things stand, what changed, what became of one study."""

from typing import Any

import pyarrow as pa

from manifests import lineage, mermaid
from neurovfm_core.errors import UsageError
from tasks.registry import STAGES, stage_named
from tasks.workspace import Workspace


def overview(workspace: Workspace) -> list[dict[str, Any]]:
    """Return one row per stage: version, counts by status and by reason, last run."""
    last_runs: dict[str, str] = {}
    for record in workspace.ledger.list():
        if record.get("kind") != "accept":
            last_runs.setdefault(record["stage"], f"{record['state']} {record.get('started_at', '')[:16]}")
    rows = []
    for stage in STAGES:
        manifest = workspace.store.manifest(stage.name)
        counts = manifest.counts() if manifest.exists else {}
        pin = manifest.pin()
        rows.append(
            {
                "stage": stage.name,
                "version": pin.version if pin else "",
                **{
                    status: sum(n for (found, _), n in counts.items() if found == status)
                    for status in ("ok", "excluded", "failed")
                },
                "reasons": {f"{status}: {reason}": n for (status, reason), n in sorted(counts.items()) if reason},
                "last_run": last_runs.get(stage.name, "never"),
            }
        )
    return rows


def rows_of(
    workspace: Workspace, name: str, status: str | None, reason: str | None, limit: int
) -> tuple[list[dict[str, Any]], int]:
    """Return the first rows of a manifest's current view, and how many there are.

    Raises
    ------
    UsageError
        If stage or version do not exist.
    """
    stage, _, version = name.partition("@")
    manifest = workspace.store.manifest(stage_named(stage).name)
    at = _version(version) if version else None
    where = " and ".join(
        f"{column} = '{_plain_word(value)}'" for column, value in (("status", status), ("reason", reason)) if value
    )
    table = manifest.current(at=at, where=where or None).sort_by("item_id")
    return table.slice(0, limit).to_pylist(), table.num_rows


def versions_of(workspace: Workspace, name: str) -> list[dict[str, Any]]:
    """Return a manifest's commits, newest first."""
    manifest = workspace.store.manifest(stage_named(name).name)
    if not manifest.exists:
        return []
    rows = []
    for commit in reversed(manifest.history()):
        facts = commit.provenance
        inputs = {stage: pin["version"] for stage, pin in facts.get("inputs", {}).items()}
        rows.append(
            {
                "version": commit.version,
                "rows": commit.num_rows,
                "finished_at": facts.get("finished_at", "")[:19],
                "run_id": facts.get("run_id", ""),
                "requested_by": facts.get("requested_by", ""),
                "inputs": ", ".join(f"{stage}@{version}" for stage, version in inputs.items()),
                "provenance": facts,
            }
        )
    return rows


def difference(workspace: Workspace, name: str, old: int, new: int | None) -> dict[str, Any]:
    """Return items added, removed and changed between two versions, each with how."""
    manifest = workspace.store.manifest(stage_named(name).name)
    pin = manifest.pin(new)
    if pin is None:
        raise UsageError(f"{name} has no version yet", hint=f"neurovfm run {name}")
    found = manifest.diff(old, pin.version)
    return {
        "added": [{"item_id": row["item_id"], "how": _words(row, "new")} for row in found.added],
        "removed": [{"item_id": row["item_id"], "how": _words(row, "old")} for row in found.removed],
        "changed": [
            {"item_id": row["item_id"], "how": f"{_words(row, 'old')} → {_words(row, 'new')}"} for row in found.changed
        ],
    }


def follow(workspace: Workspace, pseudonym: str) -> list[dict[str, Any]]:
    """Return every row, in chain order, of one study, series, volume or patient.

    Raises
    ------
    UsageError
        If no manifest knows it.
    """
    key = _plain_word(pseudonym)
    rows = []
    for stage in STAGES:
        manifest = workspace.store.manifest(stage.name)
        if not manifest.exists:
            continue
        names = [c for c in ("patient_id", "study_id", "series_id") if c in manifest.schema.names]
        where = " or ".join(f"{column} = '{key}'" for column in ("item_id", "source_id", *names))
        columns = ["item_id", "status", "reason", "detail", "outputs", "run_id", "sha256"]
        table: pa.Table = manifest.current(columns=columns, where=where).sort_by("item_id")
        rows += [{"stage": stage.name, **row} for row in table.to_pylist()]
    if not rows:
        raise UsageError(f"no manifest knows {pseudonym}", hint="neurovfm show export --json lists studies and series")
    return rows


def lineage_of(workspace: Workspace, name: str) -> tuple[str, dict[str, Any]]:
    """Return from which versions a manifest was made: a Mermaid graph and the tree behind it.

    Raises
    ------
    UsageError
        If the stage does not exist or has no version yet.
    """
    pin = workspace.store.manifest(stage_named(name).name).pin()
    if pin is None:
        raise UsageError(f"{name} has no version yet", hint=f"neurovfm run {name}")
    tree = lineage(workspace.store, pin)
    return mermaid(tree), tree


def _words(row: dict[str, Any], which: str) -> str:
    reason = row.get(f"{which}_reason") or ""
    status = row.get(f"{which}_status") or ""
    return f"{status} ({reason})" if reason else status


def _version(text: str) -> int:
    if not text.isdigit():
        raise UsageError(f"{text!r} is not a version number", hint="neurovfm history STAGE lists versions")
    return int(text)


def _plain_word(text: str) -> str:
    """Refuse what is not an id or a reason: these words end up in SQL."""
    if not text.replace("_", "").replace("-", "").isalnum():
        raise UsageError(f"{text!r} is not an id or a word", hint="ids look like stu_abcdefghijklmnop")
    return text
