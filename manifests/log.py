"""The commit log of one Delta table, read without the library.

The library accepts an empty last commit without a word (what a power cut can
leave behind), and a restored backup may carry other commits under the same
numbers. So the log's own files are looked at before a table is trusted.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from manifests.errors import DamagedManifest, UnknownVersion

PROVENANCE_KEY = "neurovfm"
SCHEMA_KEY = "neurovfm_schema_version"
COUNTS_KEY = "neurovfm_counts"

_COMMIT_NAME = re.compile(r"(\d{20})\.json")


@dataclass(frozen=True, slots=True)
class Commit:
    """One published version."""

    version: int
    timestamp: datetime
    num_rows: int
    provenance: dict[str, Any]


@dataclass(frozen=True)
class CommitLog:
    """The JSON commits under ``<table>/_delta_log``."""

    table: Path

    @property
    def folder(self) -> Path:
        return self.table / "_delta_log"

    def versions(self) -> list[int]:
        """Return the numbers of all commits, oldest first."""
        if not self.folder.is_dir():
            return []
        names = (_COMMIT_NAME.fullmatch(file.name) for file in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def head(self) -> int | None:
        """Return the newest version, None if nothing was ever committed."""
        return max(self.versions(), default=None)

    def path(self, version: int) -> Path:
        return self.folder / f"{version:020d}.json"

    def sha256(self, version: int) -> str:
        """Return the digest of a commit file: what a pin remembers."""
        return hashlib.sha256(self._bytes(version)).hexdigest()

    def actions(self, version: int) -> list[dict[str, Any]]:
        """Return a commit's actions; raise `DamagedManifest` if it is empty or not JSON."""
        text = self._bytes(version)
        try:
            actions = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            actions = []
        if not actions or not all(isinstance(action, dict) for action in actions):
            raise DamagedManifest(
                f"commit {version} is empty or cut off, as a power cut leaves it",
                where=str(self.path(version)),
                hint=f"move this file away: version {version - 1} is whole, and the next run redoes the rest"
                if version
                else "move the manifest folder away and run the stage again",
            )
        return actions

    def info(self, version: int) -> dict[str, Any]:
        """Return the ``commitInfo`` action, with our metadata beside the library's."""
        return next((action["commitInfo"] for action in self.actions(version) if "commitInfo" in action), {})

    def commit(self, version: int) -> Commit | None:
        """Return a commit with its provenance, None if it is housekeeping (creation, compaction)."""
        info = self.info(version)
        if PROVENANCE_KEY not in info:
            return None
        return Commit(
            version=version,
            timestamp=datetime.fromtimestamp(info["timestamp"] / 1000, UTC),
            num_rows=json.loads(info[COUNTS_KEY])["rows"],
            provenance=json.loads(info[PROVENANCE_KEY]),
        )

    def added_after(self, version: int, head: int) -> list[str]:
        """Return the names of files that brought new rows in ``(version, head]``.

        A compaction only rewrites rows that are already there: it marks its
        files ``dataChange: false``. The difference of two file lists would
        take it for news and read everything again.
        """
        return [
            action["add"]["path"]
            for number in range(version + 1, head + 1)
            for action in self.actions(number)
            if "add" in action and action["add"]["dataChange"]
        ]

    def _bytes(self, version: int) -> bytes:
        try:
            return self.path(version).read_bytes()
        except FileNotFoundError:
            raise UnknownVersion(
                f"there is no version {version}",
                where=self.table.name,
                hint=f"the newest is {self.head()}",
            ) from None
