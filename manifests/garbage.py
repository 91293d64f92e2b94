"""Files in the bulk folders that nothing refers to any more."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from manifests import sql
from manifests.errors import ManifestError
from manifests.store import ManifestStore, Pin

logger = logging.getLogger(__name__)

MIN_AGE_S = 24 * 3600
_BATCH_FILES = 50_000
_FILES = pa.schema([("path", pa.string()), ("bytes", pa.int64()), ("modified_ns", pa.int64())])


@dataclass(frozen=True, slots=True)
class GarbageFile:
    """A file that may go: ``why`` is ``unreferenced`` or ``partial``."""

    path: Path
    bytes: int
    why: str
    modified_ns: int


def plan_gc(
    store: ManifestStore,
    workspace: Path,
    folders: Sequence[str],
    keep: Sequence[Pin] = (),
    *,
    min_age_s: float = MIN_AGE_S,
) -> list[GarbageFile]:
    """List the files below the bulk folders that no live row refers to. Deletes nothing.

    Live are the current rows of every stage, and those of the versions in
    `keep`. A row may refer to a file or to a folder with all it holds. Files
    younger than `min_age_s` are left alone: a run that is still going has
    written them and will commit their rows.

    Parameters
    ----------
    folders
        Names relative to the workspace, such as ``nifti``.

    Raises
    ------
    ManifestError
        A folder lies outside the workspace.
    DamagedManifest, UnknownVersion
        A manifest or a pin cannot be trusted; then nothing can be called garbage.
    """
    root = Path(workspace)
    with sql.connected() as connection:
        connection.execute("CREATE TEMP TABLE referenced (path VARCHAR)")
        for outputs in _live_outputs(store, keep):
            connection.register("outputs", outputs)
            connection.execute("INSERT INTO referenced SELECT DISTINCT rtrim(path, '/') FROM outputs")
        connection.execute("CREATE TEMP TABLE files (path VARCHAR, bytes BIGINT, modified_ns BIGINT)")
        for batch in _batches(root, folders, time.time_ns() - int(min_age_s * 1e9)):
            connection.register("batch", batch)
            connection.execute("INSERT INTO files SELECT * FROM batch")
        # A file is alive if its own path, or that of a folder above it, is referred to.
        garbage = connection.sql(
            """
            WITH ways AS (
                SELECT path, unnest(list_transform(
                    range(1, len(string_split(path, '/')) + 1),
                    lambda depth: array_to_string(string_split(path, '/')[1:depth], '/'))) AS way
                FROM files WHERE NOT ends_with(path, '.partial')
            ),
            alive AS (SELECT DISTINCT ways.path FROM ways SEMI JOIN referenced ON way = referenced.path)
            SELECT path, bytes, modified_ns FROM files ANTI JOIN alive USING (path) ORDER BY path
            """
        ).fetchall()
    return [
        GarbageFile(
            path=root / path,
            bytes=size,
            why="partial" if path.endswith(".partial") else "unreferenced",
            modified_ns=modified_ns,
        )
        for path, size, modified_ns in garbage
    ]


def collect(plan: Sequence[GarbageFile]) -> tuple[int, int]:
    """Delete what was planned, unless it was written again since; return how many files and bytes went."""
    num_files = num_bytes = 0
    for file in plan:
        try:
            if file.path.lstat().st_mtime_ns != file.modified_ns:
                continue
            file.path.unlink()
        except FileNotFoundError:
            continue
        num_files += 1
        num_bytes += file.bytes
    logger.info("garbage collected files=%d bytes=%d", num_files, num_bytes)
    return num_files, num_bytes


def _live_outputs(store: ManifestStore, keep: Sequence[Pin]) -> Iterator[pa.Table]:
    for stage in store.stages():
        manifest = store.manifest(stage)
        for pin in (None, *(pin for pin in keep if pin.stage == stage)):
            rows = manifest.current(pin, columns=["outputs"], where="len(outputs) > 0", ordered=False)
            yield pa.table({"path": rows["outputs"].combine_chunks().flatten()})
    for pin in keep:
        store.manifest(pin.stage).check(pin)


def _batches(root: Path, folders: Sequence[str], newest_ns: int) -> Iterator[pa.Table]:
    found: list[dict[str, object]] = []
    for folder in folders:
        # Not resolved: a bulk folder may be a link to a larger disk.
        if Path(folder).is_absolute() or ".." in Path(folder).parts or not Path(folder).parts:
            raise ManifestError(f"{folder!r} is not the name of a folder inside the workspace")
        for parent, _, names in os.walk(root / folder):
            for name in names:
                path = Path(parent, name)
                facts = path.lstat()
                if facts.st_mtime_ns < newest_ns:
                    found.append(
                        {
                            "path": path.relative_to(root).as_posix(),
                            "bytes": facts.st_size,
                            "modified_ns": facts.st_mtime_ns,
                        }
                    )
            if len(found) >= _BATCH_FILES:
                yield pa.Table.from_pylist(found, _FILES)
                found = []
    yield pa.Table.from_pylist(found, _FILES)
