"""The stage contract, written once: plan, execute, publish.

A stage module says what there is to do (`plan`), how one unit of it is done
(`execute`) and what a paper should say of it (`METHODS`). Everything else is
here: which units are due, worker processes, retries, quarantine, progress,
commits, cancel and resume.
"""

import errno
import logging
import os
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from manifests import SCHEMA_VERSION, Lease, ManifestStore, Pin
from neurovfm_core.errors import Excluded, IntegrityError, PipelineError, Reason, Transient, UsageError
from neurovfm_core.files import sha256_of
from neurovfm_core.params import Params, canonical_json, fingerprint
from tasks.pool import Lost, Pool
from tasks.provenance import code_fingerprint, environment
from tasks.workspace import Workspace

logger = logging.getLogger(__name__)

RETRY_REASONS = frozenset({Reason.DISK_FULL.value, Reason.SOURCE_UNAVAILABLE.value})
"""Failures of the moment: the next run tries them again. All others wait for `--only failed`."""

FIRST_GROUP = 32
MIN_TOLERATED_FAILURES = 20


class Stopped(Exception):
    """The user or the scheduler asked a long unit to stop; what it needs to go on is on disk."""


@dataclass(frozen=True)
class Upstream:
    """The manifests a stage reads, pinned when it was planned."""

    store: ManifestStore
    pins: Mapping[str, Pin | None]

    def current(
        self, stage: str, columns: Sequence[str] | None = None, where: str = "status = 'ok'"
    ) -> pa.Table:
        """Return the newest row per item, as of the pinned version."""
        manifest = self.store.manifest(stage)
        return manifest.current(at=self.pins[stage], columns=list(columns) if columns else None, where=where)


@dataclass(frozen=True)
class Candidates:
    """All a stage could work on: one row per unit.

    `table` has `item_id`, `input_fingerprint` and whatever `execute` needs.
    What a table cannot hold, or a manifest must not (identifiers), goes into
    `payloads` by item id; it lives in memory only.
    """

    table: pa.Table
    payloads: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """What a worker takes: one candidate, or several that share an output (`members`)."""

    item_id: str
    input_fingerprint: str
    columns: Mapping[str, Any]
    payload: Any = None
    members: tuple["Unit", ...] = ()


def _silent(message: str) -> None:
    """Say nothing; a named function, because workers cannot be sent a lambda."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Place:
    """Where a unit is worked on, and how long work says that it lives."""

    root: Path
    folder: Path
    on_progress: Callable[[str], None] = _silent
    should_stop: Callable[[], bool] = _never

    def relative(self, path: Path) -> str:
        """Name a file the way manifests do: below the workspace, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def checked(self, outputs: Sequence[str], sha256: str) -> Path:
        """Return the path of the first of some upstream files whose bytes are the recorded ones.

        Raises
        ------
        IntegrityError
            If a file is gone or the checksum disagrees with the manifest.
        """
        paths = [self.root / output for output in outputs]
        for path, output in zip(paths, outputs, strict=True):
            if not path.is_file():
                raise IntegrityError("a file that a manifest names is missing", where=output, hint=_REDO)
        if sha256_of(*paths) != sha256:
            raise IntegrityError("a file differs from its manifest's checksum", where=outputs[0], hint=_REDO)
        return paths[0]


_REDO = "neurovfm verify names all such files; run the stage that made them with --force and the item id"

PlanUnits = Callable[[Workspace, Upstream, Any], Candidates]
ExecuteUnit = Callable[[Unit, Any, Place], list[dict[str, Any]]]


@dataclass(frozen=True)
class Stage:
    """One stage of the chain. Every stage module ends with its own."""

    name: str
    reads: tuple[str, ...]
    semantic_version: int
    methods: str
    plan: PlanUnits
    execute: ExecuteUnit
    bundle: Callable[[Sequence[Unit], Any], list[Unit]] | None = None
    """Puts due units together that share an output file, such as the volumes of a shard."""
    hashed_outputs: int = 1
    """How many of a row's outputs, from the first on, its sha256 covers."""
    carries: tuple[str, ...] = ()
    """Columns of a unit that every row of it repeats, whatever its status."""
    in_workers: bool = True
    """False for the few long units (training) that use all processors themselves."""
    retires: bool = True
    """Whether a row is retired when its source is gone. Not for export: a PACS may forget, we do not."""
    waits_for_data: bool = False
    """New upstream items alone do not start it: training costs too much to follow every night."""

    @property
    def module(self) -> str:
        return self.plan.__module__


class Selection(Params):
    """Which of a stage's units to run. Empty: whatever is new or changed."""

    only: tuple[str, ...] = ()
    """`new`, `failed`, `failed:REASON`, or item ids."""
    limit: int | None = None
    """At most this many units."""
    force: bool = False
    """Run units that are already done, too."""


class Reporter(Protocol):
    """Who is told how a run goes: the console or Prefect."""

    def started(self, stage: str, planned: int, fresh: int) -> None: ...
    def progress(self, stage: str, progress: "Progress") -> None: ...
    def message(self, stage: str, text: str) -> None: ...
    def finished(self, result: "RunResult") -> None: ...
    def group(self, name: str, work: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Progress:
    done: int
    planned: int
    counts: Mapping[str, int]
    items_per_s: float
    eta_s: float


@dataclass
class RunResult:
    """How one run of one stage ended."""

    stage: str
    run_id: str
    planned: int
    fresh: int
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    bytes_out: int = 0
    seconds: float = 0.0
    pin: Pin | None = None
    stopped: bool = False
    error: str = ""

    @property
    def exit_code(self) -> int:
        """0 ok, 1 failed items beyond tolerance, 130 stopped."""
        if self.stopped:
            return 130
        return 1 if self.error else 0


def run_due(
    stage: Stage,
    workspace: Workspace,
    due: "DueLike",
    *,
    params: Params,
    reporter: Reporter,
    requested_by: str,
    should_stop: Callable[[], bool],
) -> RunResult:
    """Work through what a plan found due, group by group, and publish each group.

    Raises
    ------
    Locked
        If another run of this stage holds the workspace.
    UsageError
        If the disk is too full to begin a group.
    """
    started = datetime.now(UTC)
    run_id = f"{started:%Y%m%dT%H%M%S}-{stage.name}-{secrets.token_hex(2)}"
    result = RunResult(stage.name, run_id, planned=due.todo.num_rows, fresh=due.fresh)
    record = {"run_id": run_id, "stage": stage.name, "requested_by": requested_by, "planned": result.planned}
    workspace.ledger.start(record)
    state = "failed"
    try:
        _work(stage, workspace, due, params, reporter, result, should_stop, started, requested_by)
        state = {0: "ok", 1: "failed", 130: "stopped"}[result.exit_code]
    except BaseException as error:
        result.error = result.error or type(error).__name__
        state = "failed" if isinstance(error, Exception) else "stopped"
        raise
    finally:
        result.seconds = (datetime.now(UTC) - started).total_seconds()
        workspace.ledger.update(
            run_id,
            state=state,
            finished_at=datetime.now(UTC).isoformat(),
            seconds=round(result.seconds, 3),
            counts=dict(result.counts),
            reasons=dict(result.reasons),
            error=result.error,
            version=result.pin.version if result.pin else None,
        )
    reporter.finished(result)
    return result


class DueLike(Protocol):
    """What `run_due` needs of a plan."""

    todo: pa.Table
    fresh: int
    gone: Sequence[str]
    payloads: Mapping[str, Any]
    upstream: Upstream
    params_fingerprint: str


def params_fingerprint(stage: Stage, params: Params) -> str:
    """Return what makes rows of this stage stale when it changes: meaning and settings."""
    return fingerprint(stage.name, stage.semantic_version, canonical_json(params.model_dump(mode="json")))


def _work(
    stage: Stage,
    workspace: Workspace,
    due: DueLike,
    params: Params,
    reporter: Reporter,
    result: RunResult,
    should_stop: Callable[[], bool],
    started: datetime,
    requested_by: str,
) -> None:
    settings = workspace.site.run
    place = Place(workspace.root, workspace.folder(stage.name) / due.params_fingerprint[:8])
    units = [_unit(row, due.payloads) for row in due.todo.to_pylist()]
    if stage.bundle:
        units = stage.bundle(units, params)
    jobs = [_Job(stage.name, unit, params, place, due.params_fingerprint, result.run_id) for unit in units]
    publish = _Publisher(stage, workspace, due, params, result, started, requested_by)
    reporter.started(stage.name, len(jobs), due.fresh)
    clock = _Clock(len(jobs))
    workers = settings.workers or os.cpu_count() or 1
    group_size = FIRST_GROUP if stage.in_workers else 1
    with Pool(
        work_one, workers=workers, timeout_s=settings.item_timeout_s, memory_gb=settings.worker_memory_gb
    ) as pool:
        position = 0
        while position < len(jobs) and not should_stop():
            _require_disk(workspace, settings.min_free_gb)
            group = jobs[position : position + group_size]
            position += len(group)
            rows: list[dict[str, Any]] = []

            def work(group: list[_Job] = group, rows: list[dict[str, Any]] = rows) -> list[dict[str, Any]]:
                results = (
                    _in_pool(pool, group, should_stop)
                    if stage.in_workers
                    else _inline(group, reporter, should_stop)
                )
                for unit_rows in results:
                    rows.extend(unit_rows)
                    clock.tick(unit_rows)
                    reporter.progress(stage.name, clock.progress())
                return rows

            try:
                reporter.group(f"{stage.name} · {len(group)} units", work)
            except Stopped:
                result.stopped = True
            finally:
                publish(rows)  # also when the user cancels: finished items are never thrown away
            if stage.in_workers:
                group_size = clock.units_in(settings.group_seconds)
            if _give_up(result, settings.failure_tolerance):
                return
    result.stopped = result.stopped or (should_stop() and position < len(jobs))
    if due.gone and not result.stopped:
        publish.retire(due.gone)
    logger.info("stage done stage=%s planned=%d counts=%s", stage.name, result.planned, dict(result.counts))


@dataclass(frozen=True)
class _Job:
    stage: str
    unit: Unit
    params: Params
    place: Place
    params_fingerprint: str
    run_id: str


def _unit(row: dict[str, Any], payloads: Mapping[str, Any]) -> Unit:
    item_id = row.pop("item_id")
    row.pop("why")
    return Unit(item_id, row.pop("input_fingerprint"), row, payloads.get(item_id))


def _in_pool(pool: Pool, jobs: list[_Job], should_stop: Callable[[], bool]):
    for index, outcome in pool.run(jobs, should_stop=should_stop):
        if isinstance(outcome, Lost):
            yield _unfinished(jobs[index], "failed", outcome.reason, outcome.detail)
        else:
            yield outcome


def _inline(jobs: list[_Job], reporter: Reporter, should_stop: Callable[[], bool]):
    for job in jobs:
        place = replace(job.place, on_progress=partial(reporter.message, job.stage), should_stop=should_stop)
        yield work_one(replace(job, place=place))


def work_one(job: _Job) -> list[dict[str, Any]]:
    """Do one unit and return its rows; whatever goes wrong with it becomes a row."""
    stage: Stage = import_module(f"tasks.{job.stage}").STAGE
    clock = time.monotonic()
    attempts = 0
    while True:
        attempts += 1
        try:
            facts = stage.execute(job.unit, job.params, job.place)
            seconds = time.monotonic() - clock
            return [_row(job, row, seconds=seconds / max(len(facts), 1), attempts=attempts) for row in facts]
        except Stopped:
            raise
        except Transient as error:
            if attempts < 4:
                time.sleep(random.uniform(0, 2**attempts))
                continue
            outcome = ("failed", error.reason, error.what)
        except Excluded as error:
            outcome = ("excluded", error.reason, error.what)
        except IntegrityError as error:
            outcome = ("failed", Reason.CHECKSUM, f"{error.what}: {error.where}")
        except PipelineError as error:
            outcome = ("failed", Reason.UNEXPECTED, error.what)
        except MemoryError:
            outcome = ("failed", Reason.OUT_OF_MEMORY, "the worker's memory limit was reached")
        except OSError as error:
            reason = Reason.DISK_FULL if error.errno == errno.ENOSPC else Reason.UNREADABLE
            outcome = ("failed", reason, error.strerror or type(error).__name__)
        except Exception as error:
            # The one broad except: an item's surprise costs that item. Only the type and place are
            # kept, since a message may quote the file's content.
            logger.debug("unexpected error item=%s", job.unit.item_id, exc_info=True)
            outcome = ("failed", Reason.UNEXPECTED, _whereabouts(error))
        status, reason, detail = outcome
        return _unfinished(job, status, reason, detail, seconds=time.monotonic() - clock, attempts=attempts)


def _unfinished(
    job: _Job, status: str, reason: Reason, detail: str, *, seconds: float = 0.0, attempts: int = 1
) -> list[dict[str, Any]]:
    """Return the rows of a unit that gave nothing: one, or one per member."""
    members = job.unit.members or (job.unit,)
    return [
        _row(replace(job, unit=member), {}, status, reason, detail, seconds=seconds, attempts=attempts)
        for member in members
    ]


def _whereabouts(error: Exception) -> str:
    trace = error.__traceback__
    place = ""
    while trace:
        code = trace.tb_frame.f_code
        if any(part in code.co_filename for part in ("neurovfm_core", "tasks")):
            place = f" at {Path(code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}{place}; run with --log-level debug for the traceback"


def _row(
    job: _Job,
    facts: Mapping[str, Any],
    status: str = "ok",
    reason: str = "",
    detail: str = "",
    *,
    seconds: float,
    attempts: int = 1,
) -> dict[str, Any]:
    unit = job.unit
    stage: Stage = import_module(f"tasks.{job.stage}").STAGE
    return {
        "item_id": unit.item_id,
        "source_id": unit.item_id,
        "input_fingerprint": unit.input_fingerprint,
        "params_fingerprint": job.params_fingerprint,
        "semantic_version": stage.semantic_version,
        "status": status,
        "reason": str(reason),
        "detail": detail[:500],
        "outputs": [],
        "bytes": 0,
        "sha256": "",
        "attempts": attempts,
        "run_id": job.run_id,
        "finished_at": datetime.now(UTC),
        "seconds": round(seconds, 4),
        **{name: unit.columns.get(name) for name in stage.carries},
        **facts,
    }


@dataclass
class _Publisher:
    """Commits rows of one run to the stage's manifest."""

    stage: Stage
    workspace: Workspace
    due: DueLike
    params: Params
    result: RunResult
    started: datetime
    requested_by: str

    def __call__(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        rows = rows + self._superseded(rows)
        for row in rows:
            self.result.counts[row["status"]] += 1
            self.result.bytes_out += row["bytes"]
            if row["status"] != "ok":
                self.result.reasons[f"{row['status']}: {row['reason']}"] += 1
        manifest = self.workspace.store.manifest(self.stage.name)
        self.result.pin = manifest.append(rows, self._provenance(rows))

    def retire(self, gone: Sequence[str]) -> None:
        """Write a row for items whose source no longer exists, so that readers leave them out."""
        live = self._live(gone)
        self([self._retired(row, Reason.UPSTREAM_GONE) for row in live])

    def _superseded(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A series that gave two volumes and now gives one must not keep its second row alive."""
        sources = {row["source_id"] for row in rows}
        now = {row["item_id"] for row in rows}
        return [
            self._retired(row, Reason.SUPERSEDED)
            for row in self._live(sorted(sources))
            if row["item_id"] not in now
        ]

    def _live(self, sources: Sequence[str]) -> list[dict[str, Any]]:
        manifest = self.workspace.store.manifest(self.stage.name)
        if not manifest.exists:
            return []
        wanted = ", ".join(f"'{source}'" for source in sources)
        columns = ["item_id", "source_id", "input_fingerprint", *self.stage.carries]
        return manifest.current(columns=columns, where=f"source_id in ({wanted})").to_pylist()

    def _retired(self, row: dict[str, Any], reason: Reason) -> dict[str, Any]:
        return {
            **row,
            "params_fingerprint": self.due.params_fingerprint,
            "semantic_version": self.stage.semantic_version,
            "status": "excluded",
            "reason": reason.value,
            "detail": "",
            "outputs": [],
            "bytes": 0,
            "sha256": "",
            "attempts": 1,
            "run_id": self.result.run_id,
            "finished_at": datetime.now(UTC),
            "seconds": 0.0,
        }

    def _provenance(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "stage": self.stage.name,
            "run_id": self.result.run_id,
            "requested_by": self.requested_by,
            "schema_version": SCHEMA_VERSION[self.stage.name],
            "semantic_version": self.stage.semantic_version,
            "inputs": {name: pin.to_dict() for name, pin in self.due.upstream.pins.items() if pin},
            "params": self.params.model_dump(mode="json"),
            "params_fingerprint": self.due.params_fingerprint,
            "code_fingerprint": code_fingerprint(self.stage.module),
            "methods": self.stage.methods.format(**dict(self.params)),
            "environment": environment(),
            "started_at": self.started.isoformat(),
            "finished_at": datetime.now(UTC).isoformat(),
            "counts": dict(Counter(row["status"] for row in rows)),
            "bytes_out": sum(row["bytes"] for row in rows),
        }


class _Clock:
    """Progress of one run, measured in finished units."""

    def __init__(self, planned: int) -> None:
        self._planned, self._done = planned, 0
        self._counts: Counter[str] = Counter()
        self._start = time.monotonic()

    def tick(self, rows: list[dict[str, Any]]) -> None:
        self._done += 1
        self._counts.update(row["status"] for row in rows)

    def progress(self) -> Progress:
        rate = self._done / max(time.monotonic() - self._start, 1e-9)
        return Progress(self._done, self._planned, self._counts, rate, (self._planned - self._done) / rate)

    def units_in(self, seconds: float) -> int:
        return max(FIRST_GROUP, round(self.progress().items_per_s * seconds)) if self._done else FIRST_GROUP


def _require_disk(workspace: Workspace, min_free_gb: float) -> None:
    free = workspace.free_gb()
    if free < min_free_gb:
        raise UsageError(
            f"the disk has {free:.2f} GiB left, less than the {min_free_gb:g} GiB that a run needs",
            where=str(workspace.root),
            hint="neurovfm gc lists what can go; [run] min_free_gb in site.toml sets the limit",
        )


def _give_up(result: RunResult, tolerance: float) -> bool:
    """Stop a run in which too much fails, after what succeeded was committed."""
    failed = result.counts["failed"]
    if result.reasons[f"failed: {Reason.DISK_FULL}"]:
        result.error = "the disk is full; free some space and run again, done items are kept"
    elif failed > max(MIN_TOLERATED_FAILURES, tolerance * result.planned):
        top = ", ".join(f"{reason} ({n})" for reason, n in result.reasons.most_common(3))
        result.error = f"{failed} of {result.planned} items failed, more than is tolerated: {top}"
    elif failed and not result.counts["ok"] and result.counts.total() >= result.planned:
        top = ", ".join(f"{reason} ({n})" for reason, n in result.reasons.most_common(3))
        result.error = f"nothing succeeded: {top}"
    return bool(result.error)


def leased(workspace: Workspace, stage: str, requested_by: str) -> Lease:
    """Return the lease that keeps two runs of one stage apart."""
    path = workspace.lease_path(stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    return Lease(path, {"stage": stage, "requested_by": requested_by})
