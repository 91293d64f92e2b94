"""Commands that look: status, show, diff, history, trace, verify, gc."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.cli import EXIT_FAILED, JsonOption, WorkspaceOption, app
from flows.console import in_words, size_in_words, table

StageArgument = Annotated[str, typer.Argument(help="A stage of the chain.")]


@app.command()
def status(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Show every stage: items by state and reason, version, last run.

    neurovfm status

    neurovfm status --json
    """
    from tasks.views import overview
    from tasks.workspace import Workspace

    rows = overview(Workspace.open(workspace))
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=str))
        return
    console = Console()
    keys = ["stage", "version", "ok", "excluded", "failed", "last_run"]
    console.print(table("", keys, [[row[key] for key in keys] for row in rows]))
    for row in rows:
        for reason, number in row["reasons"].items():
            console.print(f"  {row['stage']}: {number:,} {reason}", highlight=False, markup=False)


@app.command()
def show(
    stage: Annotated[str, typer.Argument(help="A stage, or STAGE@VERSION.")],
    status_: Annotated[str | None, typer.Option("--status", help="ok, excluded or failed.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only rows with this reason.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many rows.")] = 20,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Show rows of a manifest.

    neurovfm show convert --status excluded

    neurovfm show shard@3 --limit 5 --json
    """
    from tasks.views import rows_of
    from tasks.workspace import Workspace

    rows, total = rows_of(Workspace.open(workspace), stage, status_, reason, limit)
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=str))
        return
    keys = ["item_id", "status", "reason", "detail", "seconds"]
    Console().print(table("", keys, [[row[key] for key in keys] for row in rows]))
    if total > len(rows):
        typer.echo(f"{len(rows)} of {total:,} rows; --limit shows more, --json every column")


@app.command()
def history(stage: StageArgument, workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """List the versions of a manifest, newest first, with what made them.

    neurovfm history preprocess
    """
    from tasks.views import versions_of
    from tasks.workspace import Workspace

    rows = versions_of(Workspace.open(workspace), stage)
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=str))
        return
    keys = ["version", "finished_at", "rows", "run_id", "requested_by", "inputs"]
    Console().print(table("", keys, [[row[key] for key in keys] for row in rows]))


@app.command()
def diff(
    stage: StageArgument,
    old: Annotated[int, typer.Argument(help="Earlier version.")],
    new: Annotated[int | None, typer.Argument(help="Later version; the newest when left out.")] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Compare two versions of a manifest by item and reason.

    neurovfm diff preprocess 3 5
    """
    from tasks.views import difference
    from tasks.workspace import Workspace

    found: dict[str, Any] = difference(Workspace.open(workspace), stage, old, new)
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
        return
    for kind in ("added", "removed", "changed"):
        typer.echo(f"{len(found[kind]):,} {kind}")
        for row in found[kind][:20]:
            typer.echo(f"  {row['item_id']}  {row['how']}")


@app.command()
def trace(
    study: Annotated[str, typer.Argument(help="A study's, series' or volume's pseudonym.")],
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Follow one study through every stage.

    neurovfm trace stu_abcdefghijklmnop
    """
    from tasks.views import follow
    from tasks.workspace import Workspace

    rows = follow(Workspace.open(workspace), study)
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=str))
        return
    keys = ["stage", "item_id", "status", "reason", "outputs", "run_id"]
    Console().print(table("", keys, [[row[key] for key in keys] for row in rows]))


@app.command()
def lineage(stage: StageArgument, workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Show from which versions a manifest was made, as a Mermaid graph.

    neurovfm lineage analyze
    """
    from tasks.views import lineage_of
    from tasks.workspace import Workspace

    graph, tree = lineage_of(Workspace.open(workspace), stage)
    typer.echo(json.dumps(tree, indent=2, default=str) if as_json else graph)


@app.command()
def verify(
    stages: Annotated[list[str] | None, typer.Argument(help="Stages; all when none is named.")] = None,
    sample: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the files to read.")] = 1.0,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Read files again and compare them with the checksums in the manifests.

    Exit code 1 if one is missing or differs.

      neurovfm verify

      neurovfm verify shard --sample 0.1
    """
    from tasks.verify import damaged_files
    from tasks.workspace import Workspace

    checked, damaged = damaged_files(Workspace.open(workspace), stages or [], sample)
    if as_json:
        typer.echo(json.dumps({"checked": checked, "damaged": damaged}, indent=2))
    else:
        for row in damaged:
            typer.echo(f"{row['stage']}  {row['item_id']}  {row['output']}: {row['problem']}")
        typer.echo(f"{checked:,} items read, {len(damaged):,} damaged")
    if damaged:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; without it nothing is touched.")] = False,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """List files that no manifest row refers to any more, and delete them if asked.

    neurovfm gc             what could go, and why

    neurovfm gc --delete    let it go
    """
    from tasks.verify import collect_garbage
    from tasks.workspace import Workspace

    files = collect_garbage(Workspace.open(workspace), delete=delete)
    total = sum(file["bytes"] for file in files)
    if as_json:
        typer.echo(json.dumps(files, indent=2))
        return
    for file in files[:50]:
        typer.echo(f"{file['path']}  {size_in_words(file['bytes'])}  {file['why']}")
    verb = "deleted" if delete else "could be deleted (neurovfm gc --delete)"
    typer.echo(f"{len(files):,} files, {size_in_words(total)}, {verb}")


@app.command()
def runs(
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 20,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """List runs of stages, newest first.

    neurovfm runs --limit 5
    """
    from tasks.workspace import Workspace

    records = Workspace.open(workspace).ledger.list(limit=limit)
    if as_json:
        typer.echo(json.dumps(records, indent=2, default=str))
        return
    keys = ["run_id", "stage", "state", "requested_by", "planned", "counts", "seconds"]
    rows = [[record.get(key, "") for key in keys] for record in records]
    for row in rows:
        row[-1] = in_words(row[-1]) if isinstance(row[-1], int | float) else ""
    Console().print(table("", keys, rows))
