"""The stage contract, written once: plan, execute, publish.

A stage module says what there is to do (`plan`), how one unit of it is done
(`execute`) and what a paper should say of it (`METHODS`). Which units are due
is in `plan`, groups, workers and commits are in `run`.
"""

import errno
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from manifests import ManifestStore, Pin
from neurovfm_core.errors import Excluded, IntegrityError, PipelineError, Reason, Transient
from neurovfm_core.files import sha256_of
from neurovfm_core.params import Params, canonical_json, fingerprint
from tasks.workspace import Workspace

logger = logging.getLogger(__name__)

RETRY_REASONS = frozenset({Reason.DISK_FULL.value, Reason.SOURCE_UNAVAILABLE.value})
"""Failures of the moment: the next run tries them again. All others wait for `--only failed`."""

Row = dict[str, Any]
"""One manifest row on its way there."""


class Stopped(Exception):
    """The user or the scheduler asked a long unit to stop; what it needs to go on is on disk."""


@dataclass(frozen=True)
class Upstream:
    """The manifests a stage reads, pinned when it was planned."""

    store: ManifestStore
    pins: Mapping[str, Pin | None]

    def current(
        self, stage: str, columns: Sequence[str] | None = None, where: str | None = "status = 'ok'"
    ) -> pa.Table:
        """Return the newest row per item, as of the pinned version."""
        manifest = self.store.manifest(stage)
        return manifest.current(
            at=self.pins[stage], columns=list(columns) if columns else None, where=where, ordered=False
        )


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
ExecuteUnit = Callable[[Unit, Any, Place], list[Row]]


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
    def group(self, name: str, work: Callable[[], int]) -> None: ...


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
    notes: tuple[str, ...] = ()
    """What the plan had to say; shown when there was nothing to do."""

    @property
    def exit_code(self) -> int:
        """0 ok, 1 failed items beyond tolerance, 130 stopped."""
        if self.stopped:
            return 130
        return 1 if self.error else 0


def params_fingerprint(stage: Stage, params: Params) -> str:
    """Return what makes rows of this stage stale when it changes: meaning and settings."""
    return fingerprint(stage.name, stage.semantic_version, canonical_json(params.model_dump(mode="json")))


@dataclass(frozen=True)
class Job:
    stage: str
    unit: Unit
    params: Params
    place: Place
    params_fingerprint: str
    run_id: str


def work_one(job: Job) -> list[Row]:
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
        return unfinished(job, status, reason, detail, seconds=time.monotonic() - clock, attempts=attempts)


def unfinished(
    job: Job, status: str, reason: Reason, detail: str, *, seconds: float = 0.0, attempts: int = 1
) -> list[Row]:
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
    job: Job,
    facts: Mapping[str, Any],
    status: str = "ok",
    reason: str = "",
    detail: str = "",
    *,
    seconds: float,
    attempts: int = 1,
) -> Row:
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
