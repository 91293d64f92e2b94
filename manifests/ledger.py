"""Our own record of runs: one small JSON file each, whatever becomes of Prefect or of Delta's log."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from manifests.durable import write_whole
from manifests.errors import ManifestError
from manifests.processes import certainly_dead, this_process

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class RunLedger:
    """The runs of a workspace, in one folder.

    A run is written by its own process alone. A record has ``run_id``,
    ``state`` (``running`` until updated), ``started_at`` (ISO, UTC) and
    ``process``, and whatever else it was given.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def start(self, record: dict[str, Any]) -> None:
        """Record that a run began; `record` has its ``run_id``.

        Raises
        ------
        ManifestError
            The run id is absent, taken, or no plain file name.
        """
        path = self._path(record.get("run_id", ""))
        if path.exists():
            raise ManifestError(f"there already is a run {record['run_id']}", where=str(self.folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        defaults = {"state": "running", "started_at": datetime.now(UTC).isoformat()}
        self._write(path, defaults | record | {"process": this_process()})

    def update(self, run_id: str, **fields: Any) -> None:
        """Set fields of a run's record."""
        path = self._path(run_id)
        self._write(path, self._read(path) | fields)

    def get(self, run_id: str) -> dict[str, Any]:
        """Return a run's record; a run whose process died while running is ``interrupted``."""
        record = self._read(self._path(run_id))
        if record["state"] == "running" and certainly_dead(record["process"]):
            record["state"] = "interrupted"
        return record

    def list(self, limit: int | None = None, stage: str | None = None) -> list[dict[str, Any]]:
        """Return the records, newest first, of all stages or of one."""
        if not self.folder.is_dir():
            return []
        records = [self.get(path.stem) for path in self.folder.glob("*.json")]
        if stage is not None:
            records = [record for record in records if record.get("stage") == stage]
        records.sort(key=lambda record: (record["started_at"], record["run_id"]), reverse=True)
        return records[:limit]

    def _path(self, run_id: str) -> Path:
        if not _SAFE_NAME.fullmatch(run_id):
            raise ManifestError(f"{run_id!r} cannot be a run id", hint="use letters, digits, '_' and '-'")
        return self.folder / f"{run_id}.json"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ManifestError(f"there is no run {path.stem}", where=str(self.folder)) from None
        except ValueError as error:
            raise ManifestError(
                f"the record of run {path.stem} is not JSON: {error}",
                where=str(path),
                hint="move the file away; the manifests' own history has the run's versions",
            ) from error

    @staticmethod
    def _write(path: Path, record: dict[str, Any]) -> None:
        write_whole(path, json.dumps(record, indent=2, sort_keys=True).encode())
