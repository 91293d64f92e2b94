"""Prefect flows: one per stage, `pipeline` and `nightly`; thin wrappers over `tasks.run`.

Prefect decides when and where. What is fresh is decided by manifests alone,
so nothing here caches, persists or retries.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import Flow, flow, get_run_logger, serve, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.deployments.runner import EntrypointType
from prefect.schedules import Cron
from prefect.states import Completed, Failed, State
from pydantic import Field

from flows.console import in_words, size_in_words
from neurovfm_core.params import Params
from tasks.registry import STAGES, between, stage_named, stages_named
from tasks.run import run_stage
from tasks.stage import Progress, RunResult, Selection, Stage
from tasks.views import lineage_of
from tasks.workspace import Workspace

logger = logging.getLogger(__name__)

ARTIFACT_EVERY_S = 3.0
"""An artifact update costs the server about 10 ms."""


WORKSPACE: Any = Field(description="Folder of the workspace.")


class ChainParams(Params):
    """Which part of the chain to run."""

    from_stage: str | None = None
    """First stage; empty: from the export on."""
    until_stage: str | None = None
    """Last stage; empty: to the analysis."""
    retrain: bool = False
    """Let pretrain and probe take new data in. Without it they run only when settings made them stale."""


WHOLE_CHAIN = ChainParams()
EVERYTHING_DUE = Selection()


class PrefectReporter:
    """Progress and summaries as artifacts of the flow run. Pseudonyms only."""

    def __init__(self) -> None:
        self._log = get_run_logger()
        self._artifact: Any = None
        self._updated = 0.0

    def started(self, stage: str, planned: int, fresh: int) -> None:
        self._log.info("%s: %d to do, %d already done", stage, planned, fresh)
        self._artifact = create_progress_artifact(0.0, key=f"{stage}-progress", description=f"{planned} units")

    def progress(self, stage: str, progress: Progress) -> None:
        if time.monotonic() - self._updated < ARTIFACT_EVERY_S or self._artifact is None:
            return
        self._updated = time.monotonic()
        text = f"{progress.done}/{progress.planned}, {progress.items_per_s:.1f}/s, {in_words(progress.eta_s)} left"
        update_progress_artifact(self._artifact, 100.0 * progress.done / progress.planned, description=text)

    def message(self, stage: str, text: str) -> None:
        if time.monotonic() - self._updated > ARTIFACT_EVERY_S:
            self._updated = time.monotonic()
            self._log.info("%s: %s", stage, text)

    def finished(self, result: RunResult) -> None:
        self._log.info("%s: %s", result.stage, _in_short(result))
        if self._artifact is not None and not result.exit_code:
            update_progress_artifact(self._artifact, 100.0)
        if not result.run_id:
            return
        rows = [{"outcome": "ok", "reason": "", "items": result.counts["ok"]}]
        rows += [
            {"outcome": words.partition(": ")[0], "reason": words.partition(": ")[2], "items": number}
            for words, number in result.reasons.most_common()
        ]
        description = f"{_in_short(result)}, {size_in_words(result.bytes_out)} written in {in_words(result.seconds)}"
        create_table_artifact(rows, key=f"{result.stage}-summary", description=description)

    def group(self, name: str, work: Callable[[], int]) -> None:
        """Do one group of units as one Prefect task run; it lasts seconds to minutes, never milliseconds."""

        @task(name="group", task_run_name=name, cache_policy=NO_CACHE, persist_result=False, retries=0)
        def execute() -> int:
            return work()

        execute()


def _in_short(result: RunResult) -> str:
    if not result.run_id:
        return "; ".join([f"nothing to do, {result.fresh} items up to date", *result.notes])
    counts = " · ".join(f"{n} {status}" for status, n in result.counts.items())
    return f"{counts}{' · stopped' if result.stopped else ''}{f' · {result.error}' if result.error else ''}"


def _run(stage: Stage, workspace: Workspace, selection: Selection, *, asked: bool, requested_by: str) -> RunResult:
    result = run_stage(stage, workspace, selection, reporter=PrefectReporter(), requested_by=requested_by, asked=asked)
    if result.pin:
        graph, _ = lineage_of(workspace, stage.name)
        create_markdown_artifact(f"```mermaid\n{graph}\n```", key=f"{stage.name}-lineage")
        if stage.name == "analyze":
            _link_report(workspace)
    return result


def _link_report(workspace: Workspace) -> None:
    rows = workspace.store.manifest("analyze").current(columns=["report"], where="status = 'ok'").to_pylist()
    for row in rows:
        create_link_artifact((workspace.root / row["report"]).as_uri(), link_text="analysis report", key="report")


def _state(results: list[RunResult]) -> State[Any]:
    """Say how a flow ended; the data carry exit codes to the command line."""
    codes = [result.exit_code for result in results]
    worst = [result for result in results if result.exit_code]
    if worst:
        return Failed(message=f"{worst[0].stage}: {_in_short(worst[0])}", data=codes)
    done = [f"{result.stage} {_in_short(result)}" for result in results if result.run_id]
    return Completed(message="; ".join(done) or "nothing to do", data=codes)


def _stage_flow(stage: Stage) -> Flow[Any, Any]:
    def run(workspace: Path = WORKSPACE, selection: Selection = EVERYTHING_DUE) -> State[Any]:
        return _state([_run(stage, Workspace.open(workspace), selection, asked=True, requested_by="prefect")])

    run.__name__ = run.__qualname__ = stage.name
    run.__doc__ = f"Run {stage.name} on whatever is new or changed. Done items are kept."
    return flow(name=stage.name, flow_run_name=stage.name, retries=0, persist_result=False)(run)


STAGE_FLOWS: dict[str, Flow[Any, Any]] = {stage.name: _stage_flow(stage) for stage in STAGES}
globals().update(STAGE_FLOWS)  # a runner finds a flow as `flows.deployments.<stage>`


@flow(name="pipeline", retries=0, persist_result=False)
def pipeline(
    workspace: Path = WORKSPACE,
    chain: ChainParams = WHOLE_CHAIN,
) -> State[Any]:
    """Run the chain, or a part of it, on whatever is new or changed."""
    opened = Workspace.open(workspace)
    return _state(_run_all(between(chain.from_stage, chain.until_stage), opened, chain.retrain, "prefect"))


@flow(name="nightly", retries=0, persist_result=False)
def nightly(workspace: Path = WORKSPACE) -> State[Any]:
    """Take in new and changed studies. Never retrains on new data; five late runs do one run's work."""
    return _state(_run_all(STAGES, Workspace.open(workspace), False, "schedule"))


def _run_all(stages: tuple[Stage, ...], workspace: Workspace, asked: bool, requested_by: str) -> list[RunResult]:
    results = []
    for stage in stages:
        results.append(_run(stage, workspace, Selection(), asked=asked, requested_by=requested_by))
        if results[-1].exit_code:
            break
    return results


@flow(name="command", flow_run_name="neurovfm run {names}", retries=0, persist_result=False)
def command(names: list[str], workspace: Path, selection: Selection, asked: bool) -> State[Any]:
    """Run what was typed on the command line, so that the UI shows it."""
    opened = Workspace.open(workspace)
    results = []
    for stage in stages_named(names):
        results.append(_run(stage, opened, selection, asked=asked, requested_by="cli"))
        if results[-1].exit_code:
            break
    return _state(results)


def run_as_flow(names: list[str], root: Path, selection: Selection, *, asked: bool) -> list[int]:
    """Run stages as a flow run and return their exit codes."""
    for name in names:
        stage_named(name)
    state = command(names, root, selection, asked, return_state=True)
    codes: Any = state.result(raise_on_failure=False)
    if isinstance(codes, BaseException):
        raise codes
    return list(codes)


def serve_all(workspace: Path, cron: str, timezone: str) -> None:
    """Serve every deployment of one workspace from this process, until it is stopped."""
    common: dict[str, Any] = {
        "name": workspace.name,
        "parameters": {"workspace": str(workspace)},
        "entrypoint_type": EntrypointType.MODULE_PATH,  # works from any folder
    }
    deployments: list[Any] = [
        stage_flow.to_deployment(tags=[name, workspace.name], **common) for name, stage_flow in STAGE_FLOWS.items()
    ]
    deployments.append(pipeline.to_deployment(tags=[workspace.name], **common))
    schedule = Cron(cron, timezone=timezone)
    deployments.append(nightly.to_deployment(schedule=schedule, tags=[workspace.name], **common))
    logger.info("serving deployments=%d since=%s", len(deployments), datetime.now(UTC).isoformat())
    serve(*deployments, limit=2)
