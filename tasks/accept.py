"""Declare a moved code fingerprint harmless; the declaration is kept."""

import secrets
from datetime import UTC, datetime
from typing import Any

from neurovfm_core.errors import UsageError
from tasks.provenance import code_fingerprint
from tasks.stage import Stage
from tasks.workspace import Workspace


def accept_code(stage: Stage, workspace: Workspace, because: str) -> dict[str, Any]:
    """Record that the present code of a stage means what the code of its last run meant.

    Raises
    ------
    UsageError
        If no reason is given.
    """
    if not because.strip():
        raise UsageError("accepting needs a reason", hint='--because "only renamed variables"')
    now = datetime.now(UTC)
    run_id = f"{now:%Y%m%dT%H%M%S}-accept-{secrets.token_hex(2)}"
    record = {
        "run_id": run_id,
        "kind": "accept",
        "stage": stage.name,
        "state": "ok",
        "because": because,
        "code_fingerprint": code_fingerprint(stage.module),
        "semantic_version": stage.semantic_version,
    }
    workspace.ledger.start(record)
    workspace.ledger.update(run_id, state="ok", finished_at=now.isoformat())
    return record
