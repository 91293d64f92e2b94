"""Compare files with manifests: what is damaged, and what nobody refers to any more."""

import logging
from typing import Any

from manifests import collect, plan_gc
from neurovfm_core.deid import folder_sha256
from neurovfm_core.errors import IntegrityError
from neurovfm_core.files import sha256_of
from neurovfm_core.randomness import rng_for
from neurovfm_core.shards import verify_shard
from neurovfm_core.shards.writing import FORMAT_PAGE
from tasks.registry import stages_named
from tasks.stage import Stage
from tasks.workspace import FOLDERS, REPORTS_FOLDER, Workspace

logger = logging.getLogger(__name__)


def damaged_files(workspace: Workspace, stages: list[str], sample: float) -> tuple[int, list[dict[str, str]]]:
    """Read the files of a share of items again.

    Returns
    -------
    How many items were read, and one row per damaged one: stage, item_id, output, problem.
    """
    checked, damaged = 0, []
    rng = rng_for(0, "verify")
    for stage in stages_named(stages):
        table = workspace.store.manifest(stage.name).current(
            columns=["item_id", "outputs", "sha256"], where="status = 'ok'"
        )
        seen: set[str] = set()
        for row in table.sort_by("item_id").to_pylist():
            if rng.random() > sample or not row["outputs"]:
                continue
            checked += 1
            problem = _problem(workspace, stage, row, seen)
            if problem:
                output = row["outputs"][0]
                damaged.append({"stage": stage.name, "item_id": row["item_id"], "output": output, "problem": problem})
    return checked, damaged


def _problem(workspace: Workspace, stage: Stage, row: dict[str, Any], seen: set[str]) -> str:
    paths = [workspace.root / output for output in row["outputs"]]
    missing = [path for path in paths if not path.exists()]
    if missing:
        return "missing"
    if stage.name == "export":
        found = folder_sha256(paths[0]) if paths[0].is_dir() else sha256_of(paths[0])
        return "" if found == row["sha256"] else "checksum differs"
    if stage.name == "shard":
        # Many volumes share a shard; it is read once.
        if row["outputs"][0] in seen:
            return ""
        seen.add(row["outputs"][0])
        try:
            verify_shard(paths[0])
        except IntegrityError as error:
            return error.what
        return ""
    return "" if sha256_of(*paths[: stage.hashed_outputs]) == row["sha256"] else "checksum differs"


def collect_garbage(workspace: Workspace, *, delete: bool) -> list[dict[str, Any]]:
    """Return files below the bulk folders that no current row names; delete them if asked."""
    folders = [*FOLDERS.values(), REPORTS_FOLDER]
    # The format's description lies beside the shards for whoever finds them without this code.
    files = [file for file in plan_gc(workspace.store, workspace.root, folders) if file.path.name != FORMAT_PAGE]
    rows = [
        {"path": file.path.relative_to(workspace.root).as_posix(), "bytes": file.bytes, "why": file.why}
        for file in files
    ]
    if delete:
        collect(files)
        logger.info("garbage collected files=%d", len(files))
    return rows
