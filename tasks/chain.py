"""Run stages in the order of the chain: the one code path of CLI, Prefect UI and schedule."""

import logging
from collections.abc import Callable, Sequence

from tasks.plan import plan_stage
from tasks.stage import Reporter, RunResult, Selection, Stage, leased, run_due
from tasks.workspace import Workspace

logger = logging.getLogger(__name__)


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
    with leased(workspace, stage.name, requested_by):
        due = plan_stage(stage, workspace, selection, asked=asked)
        if not due.num_due:
            result = RunResult(stage.name, run_id="", planned=0, fresh=due.fresh)
            for note in due.notes:
                reporter.message(stage.name, note)
            reporter.finished(result)
            return result
        return run_due(
            stage,
            workspace,
            due,
            params=due.params,
            reporter=reporter,
            requested_by=requested_by,
            should_stop=should_stop,
        )


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
    results = []
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
