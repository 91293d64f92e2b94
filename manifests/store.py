"""Manifests: append-only facts, one Delta table per stage, newest row per item.

A row never changes; a re-run appends. Versions are Delta versions, and a `Pin`
names one by its number and by the digest of its commit file, because a table
restored from a backup has the same numbers but another history.
"""

import json
import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Schema
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from manifests import sql
from manifests.differences import ManifestDiff, compare
from manifests.durable import sync
from manifests.errors import DamagedManifest, ManifestError, UnknownVersion
from manifests.log import COUNTS_KEY, PROVENANCE_KEY, SCHEMA_KEY, Commit, CommitLog
from manifests.rows import conform
from manifests.schemas import SCHEMA_VERSION, STAGE_SCHEMAS

logger = logging.getLogger(__name__)

# By default Delta deletes commits after 30 days, and with them provenance and every pin.
_CONFIGURATION = {
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
    "delta.enableChangeDataFeed": "true",
}
_NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
_CHECKPOINT_EVERY = 100
_MAX_FILES = 200
_SMALL_FILE_BYTES = 32 * 2**20
_MAX_CONFLICTS = 100


@dataclass(frozen=True, slots=True)
class Pin:
    """One version of one manifest, recognisable for ever."""

    stage: str
    version: int
    commit_sha256: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Pin":
        return cls(fields["stage"], int(fields["version"]), fields["commit_sha256"])


@dataclass(frozen=True)
class ManifestStore:
    """All manifests of a workspace, below one folder."""

    root: Path

    def manifest(self, stage: str) -> "Manifest":
        if stage not in STAGE_SCHEMAS:
            raise ManifestError(f"there is no stage called {stage}", hint=f"stages are {', '.join(STAGE_SCHEMAS)}")
        return Manifest(stage, Path(self.root) / stage)

    def stages(self) -> list[str]:
        """Return the stages that have a manifest, in the order of the chain."""
        return [stage for stage in STAGE_SCHEMAS if self.manifest(stage).exists]


@dataclass(frozen=True)
class Manifest:
    """The versioned table of one stage. It holds no state: every call looks at the disk."""

    stage: str
    folder: Path

    @property
    def schema(self) -> pa.Schema:
        return STAGE_SCHEMAS[self.stage]

    @property
    def log(self) -> CommitLog:
        return CommitLog(self.folder)

    @property
    def exists(self) -> bool:
        return self.log.head() is not None

    def pin(self, version: int | None = None) -> Pin | None:
        """Return the pin of a version, by default the newest; None if nothing was ever committed."""
        head = self._checked_head()
        if head is None and version is None:
            return None
        wanted = head if version is None else version
        assert wanted is not None
        return Pin(self.stage, wanted, self.log.sha256(wanted))

    def check(self, pin: Pin) -> None:
        """Refuse a pin whose version is absent or has another history than it had when pinned.

        Raises
        ------
        UnknownVersion
            The manifest does not have that version.
        DamagedManifest
            It has, but with another commit: the manifest was rewound or made anew.
        """
        if pin.stage != self.stage:
            raise ManifestError(f"a pin of {pin.stage} does not belong to {self.stage}")
        if self.log.sha256(pin.version) != pin.commit_sha256:
            raise DamagedManifest(
                f"{self.stage} was rewound: version {pin.version} is not the one that was pinned",
                where=str(self.log.path(pin.version)),
                hint="the table was restored or recreated; run the stages after it again",
            )

    def current(
        self,
        at: Pin | int | None = None,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        *,
        include_retired: bool = False,
        ordered: bool = True,
    ) -> pa.Table:
        """Return the newest row of every item as of a version.

        Parameters
        ----------
        at
            A version, by default the newest.
        columns
            Names, by default all.
        where
            SQL condition on any column, applied to the newest rows: an item
            whose newest row does not satisfy it is absent.
        include_retired
            Also return items that are no longer there (superseded, upstream gone).
        ordered
            Sort by item. Without it the order is any, and 5 M rows come 4 s sooner.
        """
        conditions = ([] if include_retired else [sql.LIVE]) + ([f"({where})"] if where else [])
        schema = self.schema if columns is None else _chosen(self.schema, columns)
        names = ", ".join(sql.quoted(name) for name in schema.names)
        kept = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        order = "ORDER BY item_id" if ordered else ""
        with self.newest(at) as connection:
            return sql.fetch(connection, f"SELECT {names} FROM newest {kept} {order}", schema)

    def changed_since(self, pin: Pin | None, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows appended after a version, in the order they came; cost is in the new rows only."""
        head = self._checked_head()
        after = -1
        if pin is not None:
            self.check(pin)
            after = pin.version
        files = [] if head is None else self.log.added_after(after, head)
        schema = self.schema if columns is None else _chosen(self.schema, columns)
        names = ", ".join(sql.quoted(name) for name in schema.names)
        with self._reading() as connection:
            sql.define_rows(connection, "rows", [self.folder / name for name in files], self.schema)
            return sql.fetch(connection, f"SELECT {names} FROM rows ORDER BY commit_seq, item_id", schema)

    def counts(self, at: Pin | int | None = None) -> dict[tuple[str, str], int]:
        """Return how many items of the current view have each (status, reason)."""
        query = f"SELECT status, reason, count(*) FROM newest WHERE {sql.LIVE} GROUP BY ALL ORDER BY ALL"
        with self.newest(at) as connection:
            return {(status, reason): count for status, reason, count in connection.sql(query).fetchall()}

    def history(self) -> list[Commit]:
        """Return the published versions, oldest first, without housekeeping such as compactions."""
        self._checked_head()
        commits = (self.log.commit(version) for version in self.log.versions())
        return [commit for commit in commits if commit is not None]

    def provenance(self, version: int | None = None) -> dict[str, Any] | None:
        """Return the provenance of a version, by default the newest; None if nothing was ever published.

        Housekeeping has none of its own: the published version before it speaks for it.
        """
        head = self._checked_head()
        if head is None and version is None:
            return None
        start = head if version is None else version
        assert start is not None
        published = (self.log.commit(number) for number in range(start, -1, -1))
        return next((commit.provenance for commit in published if commit is not None), None)

    def diff(self, a: Pin | int, b: Pin | int, *, limit: int | None = None) -> ManifestDiff:
        """Return what changed from `a` to `b`, item by item; `limit` cuts the lists, not the summary."""
        with self._reading() as connection:
            for name, at in (("a", a), ("b", b)):
                sql.define_rows(connection, f"{name}_rows", self._files(at), self.schema)
                sql.define_newest(connection, f"{name}_newest", f"{name}_rows")
                connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {name}_newest WHERE {sql.LIVE}")
            return compare(connection, limit)

    @contextmanager
    def newest(self, at: Pin | int | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a database in which the view ``newest`` has the newest row of every item."""
        with self._reading() as connection:
            sql.define_rows(connection, "rows", self._files(at), self.schema)
            sql.define_newest(connection, "newest", "rows")
            yield connection

    def append(self, rows: list[dict] | pa.Table, provenance: dict[str, Any]) -> Pin:
        """Commit rows and their provenance as one new version, durable when this returns.

        Any number of processes may append at once: each gets a version of its
        own. The rows are on disk before the commit names them.

        Raises
        ------
        DamagedManifest
            The rows break the schema, or the manifest's last commit is damaged.
        """
        table = conform(rows, self.schema, self.stage)
        metadata = self._metadata(table, provenance)
        for conflicts in range(_MAX_CONFLICTS):
            try:
                pin, num_files = self._commit(table, metadata)
            except CommitFailedError:
                logger.debug("commit conflict, trying again stage=%s conflicts=%d", self.stage, conflicts + 1)
                time.sleep(random.uniform(0, 0.01 * (conflicts + 1)))
                continue
            if num_files > _MAX_FILES:
                self.compact()
            return pin
        raise ManifestError(f"{_MAX_CONFLICTS} other commits came first", where=self.stage, hint="run the stage again")

    def restate(self, version: int, provenance: dict[str, Any]) -> Pin:
        """Roll back: append what version `version` said, as a new version. Nothing is deleted.

        All rows of a source come back together, so that they still look like
        the one run that made them. Items that came later become superseded.
        Bulk files are not touched: they may be newer than the rows.
        """
        now = datetime.now(UTC)
        with self._reading() as connection:
            for name, at in (("past", version), ("present", None)):
                sql.define_rows(connection, f"{name}_rows", self._files(at), self.schema)
                sql.define_newest(connection, name, f"{name}_rows")
            connection.execute(
                """
                CREATE TEMP TABLE touched AS
                SELECT unnest([present.source_id, past.source_id]) AS source_id
                FROM present FULL JOIN past USING (item_id)
                WHERE present.commit_seq IS DISTINCT FROM past.commit_seq
                """
            )
            restated = sql.fetch(connection, "SELECT * FROM past SEMI JOIN touched USING (source_id)", self.schema)
            retired = sql.fetch(
                connection,
                f"""
                SELECT * REPLACE (
                    'excluded' AS status, 'superseded' AS reason, $1 AS detail, [] AS outputs,
                    0 AS bytes, NULL AS sha256, coalesce($2, run_id) AS run_id, $3 AS finished_at)
                FROM present ANTI JOIN past USING (item_id) WHERE {sql.LIVE}
                """,
                self.schema,
                (f"rolled back to version {version}", provenance.get("run_id"), now),
            )
        return self.append(pa.concat_tables([restated, retired]), provenance)

    def compact(self, *, max_files: int | None = None) -> bool:
        """Merge small files into one if there are more than `max_files` (200); return whether it did.

        Old versions and `changed_since` stay exact: rows keep their
        ``commit_seq``, the merged files stay on disk, and the commit says that
        it changes no data. Files above 32 MiB are left as they are, so the cost
        does not grow with the manifest.
        """
        delta = self._open()
        if delta is None or len(delta.file_uris()) <= (_MAX_FILES if max_files is None else max_files):
            return False
        files = [self.folder / Path(uri).name for uri in sorted(delta.file_uris())]
        small = [file for file in files if file.stat().st_size < _SMALL_FILE_BYTES]
        if len(small) < 2:
            return False
        merged = self._new_file(delta.version() + 1)
        num_rows = 0
        with pq.ParquetWriter(merged, _stored(self.schema), compression="zstd") as writer:
            for file in small:
                with self._reading() as connection:
                    sql.define_rows(connection, "rows", [file], self.schema)
                    rows = sql.fetch(connection, "SELECT * FROM rows ORDER BY item_id", self.schema)
                writer.write_table(rows.cast(_stored(self.schema)))
                num_rows += rows.num_rows
        now_ms = _now_ms()
        removed = [RemoveAction(file.name, data_change=False, deletion_timestamp=now_ms) for file in small]
        try:
            self._transact(delta, [_added(merged, num_rows, data_change=False), *removed], {})
        except CommitFailedError:
            # Another process committed meanwhile; the next append tries again.
            merged.unlink()
            return False
        logger.info("manifest compacted stage=%s files=%d rows=%d", self.stage, len(small), num_rows)
        return True

    def _commit(self, table: pa.Table, metadata: dict[str, str]) -> tuple[Pin, int]:
        """Return the new version and the number of data files it has."""
        delta = self._open() or self._create()
        delta = self._evolved(delta)
        # The version the rows will have is written into them, so the library must not
        # quietly move the commit to a later one when somebody else was faster.
        version = delta.version() + 1
        actions: list[AddAction | RemoveAction] = []
        if table.num_rows:
            sequence = pa.repeat(pa.scalar(version, pa.int64()), table.num_rows)
            position = self.schema.get_field_index("commit_seq")
            numbered = table.set_column(position, self.schema.field(position), sequence)
            file = self._new_file(version)
            pq.write_table(numbered.cast(_stored(self.schema)), file, compression="zstd")
            actions.append(_added(file, table.num_rows, data_change=True))
        try:
            self._transact(delta, actions, metadata)
        except CommitFailedError:
            if actions:
                file.unlink()
            raise
        return Pin(self.stage, version, self.log.sha256(version)), len(delta.file_uris()) + len(actions)

    def _transact(self, delta: DeltaTable, actions: list[AddAction | RemoveAction], metadata: dict[str, str]) -> None:
        """Commit actions as the version after `delta`'s, durable on return, or raise `CommitFailedError`."""
        version = delta.version() + 1
        for action in actions:
            if isinstance(action, AddAction):
                sync(self.folder / action.path)
        sync(self.folder)
        delta.create_write_transaction(
            actions,
            mode="append",
            schema=Schema.from_arrow(_stored(self.schema)),
            commit_properties=CommitProperties(custom_metadata=metadata, max_commit_retries=0),
            post_commithook_properties=_NO_HOOKS,
        )
        sync(self.log.path(version))
        sync(self.log.folder)
        if version % _CHECKPOINT_EVERY == 0:
            DeltaTable(self.folder, version=version).create_checkpoint()
            for file in (*self.log.folder.glob(f"{version:020d}.checkpoint*"), self.log.folder):
                sync(file)

    def _create(self) -> DeltaTable:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            DeltaTable.create(
                self.folder,
                Schema.from_arrow(_stored(self.schema)),
                mode="ignore",
                name=self.stage,
                configuration=_CONFIGURATION,
                post_commithook_properties=_NO_HOOKS,
            )
        except DeltaError:
            if not self.exists:  # otherwise another process was faster, which is as good
                raise
        for path in (self.log.path(0), self.log.folder, self.folder, self.folder.parent):
            sync(path)
        return DeltaTable(self.folder)

    def _evolved(self, delta: DeltaTable) -> DeltaTable:
        present = {field.name for field in delta.schema().fields}
        missing = [field for field in Schema.from_arrow(_stored(self.schema)).fields if field.name not in present]
        if not missing:
            return delta
        delta.alter.add_columns(missing, post_commithook_properties=_NO_HOOKS)
        logger.info("columns added stage=%s columns=%s", self.stage, [field.name for field in missing])
        evolved = DeltaTable(self.folder)
        sync(self.log.path(evolved.version()))
        sync(self.log.folder)
        return evolved

    def _open(self, version: int | None = None) -> DeltaTable | None:
        head = self._checked_head()
        if head is None:
            return None
        if version is not None and not self.log.path(version).exists():
            raise UnknownVersion(f"there is no version {version}", where=self.stage, hint=f"the newest is {head}")
        try:
            return DeltaTable(self.folder, version=version)
        except DeltaError as error:
            raise DamagedManifest(
                f"the manifest cannot be opened: {error}",
                where=str(self.log.folder),
                hint="move the checkpoint files and _last_checkpoint away: the commits say the same",
            ) from error

    def _checked_head(self) -> int | None:
        """Return the newest version; refuse a damaged last commit or one of newer code."""
        head = self.log.head()
        if head is None:
            return None
        written_by = int(self.log.info(head).get(SCHEMA_KEY, 0))
        if written_by > SCHEMA_VERSION[self.stage]:
            raise ManifestError(
                f"{self.stage} was written by newer code (schema {written_by}, "
                f"this code knows {SCHEMA_VERSION[self.stage]})",
                where=str(self.folder),
                hint="update the neurovfm-pipeline package",
            )
        return head

    def _files(self, at: Pin | int | None) -> list[Path]:
        if isinstance(at, Pin):
            self.check(at)
            at = at.version
        delta = self._open(at)
        if delta is None:
            if at is not None:
                raise UnknownVersion(f"there is no version {at}", where=self.stage)
            return []
        return [self.folder / Path(uri).name for uri in sorted(delta.file_uris())]

    @contextmanager
    def _reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            with sql.connected() as connection:
                yield connection
        except duckdb.IOException as error:
            raise DamagedManifest(
                f"a file of the manifest cannot be read: {error}",
                where=str(self.folder),
                hint="restore it from a backup, or roll back to an earlier version",
            ) from error

    def _new_file(self, version: int) -> Path:
        return self.folder / f"{version:020d}-{uuid.uuid4().hex}.parquet"

    def _metadata(self, table: pa.Table, provenance: dict[str, Any]) -> dict[str, str]:
        try:
            text = json.dumps(provenance, sort_keys=True, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ManifestError(f"provenance is not plain JSON: {error}", where=self.stage) from error
        counts = {"rows": table.num_rows, **Counter(table["status"].to_pylist())}
        return {
            PROVENANCE_KEY: text,
            SCHEMA_KEY: str(SCHEMA_VERSION[self.stage]),
            COUNTS_KEY: json.dumps(counts, sort_keys=True),
        }


def _stored(schema: pa.Schema) -> pa.Schema:
    """Return the schema without our column descriptions: they live in the code, not in every file."""
    return pa.schema([field.remove_metadata() for field in schema])


def _chosen(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    unknown = [name for name in columns if name not in schema.names]
    if unknown:
        raise ManifestError(f"there is no column {unknown[0]}", hint=f"columns are {', '.join(schema.names)}")
    return pa.schema([schema.field(name) for name in columns])


def _added(file: Path, num_rows: int, *, data_change: bool) -> AddAction:
    stats = json.dumps({"numRecords": num_rows})
    return AddAction(file.name, file.stat().st_size, {}, _now_ms(), data_change, stats)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
