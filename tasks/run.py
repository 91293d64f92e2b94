"""Work through what a plan found due: groups, workers, progress, commits, cancel."""

import logging
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests import SCHEMA_VERSION, Lease
from neurovfm_core.errors import Reason, UsageError
from tasks.plan import StagePlan, plan_stage
from tasks.pool import Lost, Pool
from tasks.provenance import code_fingerprint, environment
from tasks.stage import (
    Job,
    Place,
    Progress,
    Reporter,
    Row,
    RunResult,
    Selection,
    Stage,
    Stopped,
    Unit,
    unfinished,
    work_one,
)
from tasks.workspace import Workspace

logger = logging.getLogger(__name__)

FIRST_GROUP = 32
"""Units of the first group; later ones are cut to `[run] group_seconds` by the rate seen so far."""
MIN_TOLERATED_FAILURES = 20


def run_stage(
    stage: Stage,
    workspace: Workspace,
    selection: Selection,
    *,
    reporter: Reporter,
    requested_by: str,
    asked: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Plan one stage and work through what is due; a stage with nothing due commits nothing.

    Raises
    ------
    Locked
        If another run of this stage is under way on the workspace.
    UsageError
        If settings, selection or disk do not allow a run.
    """
    path = workspace.lease_path(stage.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Lease(path, {"stage": stage.name, "requested_by": requested_by}) as lease:
        due = plan_stage(stage, workspace, selection, asked=asked)
        if not due.num_due:
            result = RunResult(stage.name, run_id="", planned=0, fresh=due.fresh, notes=due.notes)
            reporter.finished(result)
            return result

        def stop() -> bool:
            # A run that was suspended for minutes may wake to find that another took the stage over.
            return lease.lost.is_set() or should_stop()

        return _Run(stage, workspace, due, reporter, requested_by, stop).through()


def run_chain(
    stages: Sequence[Stage],
    workspace: Workspace,
    selection: Selection,
    *,
    reporter: Reporter,
    requested_by: str,
    asked: bool,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[RunResult]:
    """Run stages one after the other; the first that stops or fails ends the chain."""
    results: list[RunResult] = []
    for stage in stages:
        if should_stop():
            break
        result = run_stage(
            stage,
            workspace,
            selection,
            reporter=reporter,
            requested_by=requested_by,
            asked=asked,
            should_stop=should_stop,
        )
        results.append(result)
        if result.exit_code:
            break
    return results


@dataclass
class _Run:
    """One execution of one stage."""

    stage: Stage
    workspace: Workspace
    due: StagePlan
    reporter: Reporter
    requested_by: str
    should_stop: Callable[[], bool]
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    result: RunResult = field(init=False)

    def __post_init__(self) -> None:
        run_id = f"{self.started:%Y%m%dT%H%M%S}-{self.stage.name}-{secrets.token_hex(2)}"
        self.result = RunResult(self.stage.name, run_id, planned=self.due.todo.num_rows, fresh=self.due.fresh)

    def through(self) -> RunResult:
        """Do everything due and keep the record of it, however it ends."""
        ledger, result = self.workspace.ledger, self.result
        ledger.start(
            {
                "run_id": result.run_id,
                "stage": self.stage.name,
                "requested_by": self.requested_by,
                "planned": result.planned,
            }
        )
        try:
            self._work()
        finally:
            ended_by = sys.exception()
            state = {0: "ok", 1: "failed", 130: "stopped"}[result.exit_code]
            if ended_by is not None:
                # Prefect's cancel and Ctrl-C are no Exceptions.
                state = "failed" if isinstance(ended_by, Exception) else "stopped"
                result.error = result.error or type(ended_by).__name__
            now = datetime.now(UTC)
            result.seconds = (now - self.started).total_seconds()
            ledger.update(
                result.run_id,
                state=state,
                finished_at=now.isoformat(),
                seconds=round(result.seconds, 3),
                counts=dict(result.counts),
                reasons=dict(result.reasons),
                error=result.error,
                version=result.pin.version if result.pin else None,
            )
        self.reporter.finished(result)
        return result

    def _work(self) -> None:
        settings = self.workspace.site.run
        jobs = self._jobs()
        clock = _Clock(len(jobs))
        self.reporter.started(self.stage.name, len(jobs), self.due.fresh)
        size = FIRST_GROUP if self.stage.in_workers else 1
        position = 0
        with Pool(
            work_one,
            workers=settings.workers or os.cpu_count() or 1,
            timeout_s=settings.item_timeout_s,
            memory_gb=settings.worker_memory_gb,
        ) as pool:
            while position < len(jobs) and not self.should_stop():
                self._require_disk(settings.min_free_gb)
                group = jobs[position : position + size]
                position += len(group)
                self._group(group, pool, clock)
                if self.stage.in_workers:
                    size = clock.units_in(settings.group_seconds)
                if self.result.stopped or self._too_many_failed(settings.failure_tolerance):
                    return
        self.result.stopped = position < len(jobs) or (self.should_stop() and clock.done < len(jobs))
        if self.due.gone and not self.result.stopped:
            self._retire()
        logger.info(
            "stage done stage=%s planned=%d counts=%s",
            self.stage.name,
            self.result.planned,
            dict(self.result.counts),
        )

    def _jobs(self) -> list[Job]:
        due, stage = self.due, self.stage
        place = Place(self.workspace.root, self.workspace.folder(stage.name) / due.params_fingerprint[:8])
        units = [_unit(row, due.payloads) for row in due.todo.to_pylist()]
        if stage.bundle:
            units = stage.bundle(units, due.params)
        return [Job(stage.name, unit, due.params, place, due.params_fingerprint, self.result.run_id) for unit in units]

    def _group(self, group: list[Job], pool: Pool, clock: "_Clock") -> None:
        """Do some units and publish their rows: one commit, one Prefect task run."""
        rows: list[Row] = []

        def work() -> int:
            outcomes = self._in_pool(pool, group) if self.stage.in_workers else self._inline(group)
            for unit_rows in outcomes:
                rows.extend(unit_rows)
                clock.tick(unit_rows)
                self.reporter.progress(self.stage.name, clock.progress())
            return len(rows)

        try:
            self.reporter.group(f"{self.stage.name} · {len(group)} units", work)
        except Stopped:
            self.result.stopped = True
        finally:
            # Also when the user cancels: finished items are never thrown away.
            self._publish(rows)

    def _in_pool(self, pool: Pool, jobs: list[Job]) -> Iterator[list[Row]]:
        for index, outcome in pool.run(jobs, should_stop=self.should_stop):
            if isinstance(outcome, Lost):
                yield unfinished(jobs[index], "failed", outcome.reason, outcome.detail)
            else:
                yield outcome

    def _inline(self, jobs: list[Job]) -> Iterator[list[Row]]:
        say = partial(self.reporter.message, self.stage.name)
        for job in jobs:
            yield work_one(replace(job, place=replace(job.place, on_progress=say, should_stop=self.should_stop)))

    def _publish(self, rows: list[Row]) -> None:
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

    def _superseded(self, rows: list[Row]) -> list[Row]:
        """A series that gave two volumes and now gives one must not keep its second row alive."""
        sources, now = {row["source_id"] for row in rows}, {row["item_id"] for row in rows}
        return [self._retired(row, Reason.SUPERSEDED) for row in self._live(sources) if row["item_id"] not in now]

    def _retire(self) -> None:
        """Write a row for items whose source no longer exists, so that readers leave them out."""
        self._publish([self._retired(row, Reason.UPSTREAM_GONE) for row in self._live(set(self.due.gone))])

    def _live(self, sources: set[str]) -> list[Row]:
        """Return the rows that these sources had before this run."""
        found = pc.is_in(self._before["source_id"], pa.array(sorted(sources), pa.string()))
        return self._before.filter(found).to_pylist()

    @cached_property
    def _before(self) -> pa.Table:
        """Rows of sources that were done before; read once, and not at all when everything is new."""
        manifest = self.workspace.store.manifest(self.stage.name)
        columns = ["item_id", "source_id", "input_fingerprint", *self.stage.carries]
        if set(self.due.why) <= {"new"} and not self.due.gone:
            return manifest.schema.empty_table().select(columns)
        return manifest.current(columns=columns, ordered=False)

    def _retired(self, row: Row, reason: Reason) -> Row:
        return {
            **row,
            "params_fingerprint": self.due.params_fingerprint,
            "semantic_version": self.stage.semantic_version,
            "status": "excluded",
            "reason": reason.value,
            "bytes": 0,
            "run_id": self.result.run_id,
            "finished_at": datetime.now(UTC),
        }

    def _provenance(self, rows: list[Row]) -> dict[str, Any]:
        params = self.due.params
        return {
            "stage": self.stage.name,
            "run_id": self.result.run_id,
            "requested_by": self.requested_by,
            "schema_version": SCHEMA_VERSION[self.stage.name],
            "semantic_version": self.stage.semantic_version,
            "inputs": {name: pin.to_dict() for name, pin in self.due.upstream.pins.items() if pin},
            "params": params.model_dump(mode="json"),
            "params_fingerprint": self.due.params_fingerprint,
            "methods": self.stage.methods.format(**dict(params)),
            "code_fingerprint": code_fingerprint(self.stage.module),
            "environment": environment(),
            "started_at": self.started.isoformat(),
            "finished_at": datetime.now(UTC).isoformat(),
            "counts": dict(Counter(row["status"] for row in rows)),
            "bytes_out": sum(row["bytes"] for row in rows),
        }

    def _require_disk(self, min_free_gb: float) -> None:
        free = self.workspace.free_gb()
        if free < min_free_gb:
            raise UsageError(
                f"the disk has {free:.2f} GiB left, less than the {min_free_gb:g} GiB that a run needs",
                where=str(self.workspace.root),
                hint="neurovfm gc lists what can go; [run] min_free_gb in site.toml sets the limit",
            )

    def _too_many_failed(self, tolerance: float) -> bool:
        """Say whether to stop a run in which too much fails; what succeeded is committed."""
        result = self.result
        failed = result.counts["failed"]
        top = ", ".join(f"{reason} ({number})" for reason, number in result.reasons.most_common(3))
        if result.reasons[f"failed: {Reason.DISK_FULL}"]:
            result.error = "the disk is full; free some space and run again, done items are kept"
        elif failed > max(MIN_TOLERATED_FAILURES, tolerance * result.planned):
            result.error = f"{failed} of {result.planned} items failed, more than is tolerated: {top}"
        elif failed and not result.counts["ok"] and result.counts.total() >= result.planned:
            result.error = f"nothing succeeded: {top}"
        return bool(result.error)


def _unit(row: Row, payloads: Mapping[str, Any]) -> Unit:
    item_id = row.pop("item_id")
    row.pop("why")
    return Unit(item_id, row.pop("input_fingerprint"), row, payloads.get(item_id))


class _Clock:
    """Progress of one run, measured in finished units."""

    def __init__(self, planned: int) -> None:
        self.done = 0
        self._planned = planned
        self._counts: Counter[str] = Counter()
        self._start = time.monotonic()

    def tick(self, rows: list[Row]) -> None:
        self.done += 1
        self._counts.update(row["status"] for row in rows)

    def progress(self) -> Progress:
        rate = self.done / max(time.monotonic() - self._start, 1e-9)
        return Progress(self.done, self._planned, self._counts, rate, (self._planned - self.done) / rate)

    def units_in(self, seconds: float) -> int:
        return max(FIRST_GROUP, round(self.progress().items_per_s * seconds)) if self.done else FIRST_GROUP
