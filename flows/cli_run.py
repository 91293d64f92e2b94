"""Commands that decide and work: plan, run, accept."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from flows.cli import EXIT_OK, JsonOption, WorkspaceOption, app
from flows.console import ConsoleReporter, table
from neurovfm_core.errors import UsageError

if TYPE_CHECKING:
    from tasks.stage import Selection

StagesArgument = Annotated[list[str] | None, typer.Argument(help="Stages; all of them when none is named.")]


@app.command()
def plan(stages: StagesArgument = None, workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Say what would run, and why; touch nothing.

    States: never, stale (settings or meaning changed), behind (new or changed inputs),
    suspect (the code moved), fresh.

      neurovfm plan                    the whole chain

      neurovfm plan preprocess --json  one stage, for a program
    """
    from tasks.plan import State, plan_chain
    from tasks.registry import STAGES, stages_named
    from tasks.workspace import Workspace

    opened = Workspace.open(workspace)
    wanted = stages_named(stages or [])
    last = STAGES.index(wanted[-1]) + 1
    plans = [p for p in plan_chain(STAGES[:last], opened) if p.stage in {s.name for s in wanted}]
    if as_json:
        keys = ("stage", "state", "why", "fresh", "quarantined", "after", "notes")
        rows = [{key: getattr(p, key) for key in keys} | {"todo": p.todo.num_rows, "gone": len(p.gone)} for p in plans]
        typer.echo(json.dumps(rows, indent=2))
        return
    console = Console()
    rows_shown: list[list[object]] = []
    for p in plans:
        why = ", ".join(f"{number:,} {reason.replace('_', ' ')}" for reason, number in p.why.items())
        if p.gone:
            why = f"{why}, {len(p.gone):,} gone upstream".lstrip(", ")
        if p.after:
            why = f"{why}; after {', '.join(p.after)}".lstrip("; ")
        rows_shown.append([p.stage, str(p.state), p.todo.num_rows, p.fresh, why or "up to date"])
    console.print(table("", ["stage", "state", "to do", "done", "why"], rows_shown))
    for p in plans:
        for note in p.notes:
            console.print(f"{p.stage}: {note}", highlight=False, markup=False)
    suspects = ", ".join(p.stage for p in plans if p.state is State.SUSPECT)
    if suspects:
        console.print(
            f"The code of {suspects} changed since the last run, their meaning (semantic version) did not. Done items "
            "are kept: neurovfm accept STAGE --because TEXT records that this is right, neurovfm run STAGE --force "
            "recomputes.",
            highlight=False,
        )


@app.command()
def run(
    stages: StagesArgument = None,
    only: Annotated[
        list[str] | None, typer.Option(help="new, failed, failed:REASON or an item id; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many items a stage.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Redo items that are done, too.")] = False,
    first: Annotated[str | None, typer.Option("--from", help="Begin the chain at this stage.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="End the chain after this stage.")] = None,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Run stages on whatever is new or changed.

    Items already done with the same input and settings are kept, so a second run does
    nothing. Safe to stop at any time; the next run goes on where this one stopped.
    Training does not follow new data by itself: name pretrain or probe to retrain.

      neurovfm run                               the whole chain

      neurovfm run preprocess --only failed      try the failed items again

      neurovfm run --from shard --until probe    a part of the chain
    """
    from tasks.registry import between, stages_named
    from tasks.stage import Selection
    from tasks.workspace import Workspace

    if stages and (first or until):
        raise UsageError("name stages, or use --from and --until, not both")
    selection = Selection(only=tuple(only or ()), limit=limit, force=force)
    if (selection.only or selection.force) and not stages:
        raise UsageError("--only and --force need the name of a stage", hint="neurovfm run preprocess --only failed")
    chosen = stages_named(stages) if stages else between(first, until)
    names = [stage.name for stage in chosen]
    raise typer.Exit(run_stages(names, Workspace.open(workspace).root, selection, asked=bool(stages)))


def run_stages(names: list[str], root: Path, selection: "Selection", *, asked: bool) -> int:
    """Run stages here and return the exit code; with a Prefect API configured, as a flow run of its UI."""
    if os.environ.get("PREFECT_API_URL"):
        from flows.deployments import run_as_flow

        return max(run_as_flow(names, root, selection, asked=asked), default=EXIT_OK)
    from tasks.registry import stages_named
    from tasks.run import run_chain
    from tasks.workspace import Workspace

    results = run_chain(
        stages_named(names),
        Workspace.open(root),
        selection,
        reporter=ConsoleReporter(Console()),
        requested_by="cli",
        asked=asked,
        should_stop=stop_on_signals(),
    )
    return max((result.exit_code for result in results), default=EXIT_OK)


def stop_on_signals() -> Callable[[], bool]:
    """Turn the first SIGINT or SIGTERM into a polite request to stop; the second one kills."""
    wanted = threading.Event()

    def ask(number: int, frame: object) -> None:
        if wanted.is_set():
            raise KeyboardInterrupt
        wanted.set()
        typer.echo("stopping: running items are finished and committed (again to stop at once)", err=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return wanted.is_set


@app.command()
def accept(
    stage: Annotated[str, typer.Argument(help="A stage that plan calls suspect.")],
    because: Annotated[str, typer.Option(help="Why its results still hold; kept in the run ledger.")],
    workspace: WorkspaceOption = Path(),
) -> None:
    """Declare that a code change did not alter what a stage means.

    The alternative is to recompute: neurovfm run STAGE --force.

      neurovfm accept convert --because "only renamed variables"
    """
    from tasks.accept import accept_code
    from tasks.registry import stage_named
    from tasks.workspace import Workspace

    record: dict[str, Any] = accept_code(stage_named(stage), Workspace.open(workspace), because)
    typer.echo(f"accepted {stage} at code {record['code_fingerprint'][:12]}")
