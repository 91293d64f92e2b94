"""Commands that set up: demo, init, config, doctor, up."""

import hashlib
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.cli import EXIT_FAILED, EXIT_OK, JsonOption, WorkspaceOption, app
from flows.console import in_words, table
from neurovfm_core.errors import UsageError

config_app = typer.Typer(help="Read the settings of a workspace and what they mean.", no_args_is_help=True)
app.add_typer(config_app, name="config")


@app.command()
def init(
    workspace: Annotated[Path, typer.Argument(help="Folder to make.")] = Path(),
    source: Annotated[str, typer.Option(help="Where images come from: folder:PATH.")] = ...,  # type: ignore[assignment]
    warehouse: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL of the warehouse with cohort and reports.")
    ] = None,
    preset: Annotated[str, typer.Option(help="demo, hospital or paper.")] = "hospital",
) -> None:
    """Make a workspace: site.toml, and a vault with a new pseudonym key.

    neurovfm init ws --source folder:/data/dicom

    neurovfm init ws --source folder:/data/dicom --warehouse sqlite:////data/warehouse.sqlite
    """
    from neurovfm_core.pacs.source import open_source
    from tasks.settings import PRESETS
    from tasks.workspace import Workspace

    if preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}", hint=", ".join(PRESETS))
    scheme, _, path = source.partition(":")
    if scheme == "folder":
        source = f"folder:{Path(path).expanduser().resolve()}"
    open_source(source)
    if warehouse and warehouse.startswith("sqlite:///"):
        # Relative to where it was typed, not to where a later run happens to start.
        warehouse = f"sqlite:///{Path(warehouse.removeprefix('sqlite:///')).expanduser().resolve()}"
    made = Workspace.create(workspace, source=source, warehouse=warehouse, preset=preset)  # type: ignore[arg-type]
    typer.echo(f"made {made.root}")
    typer.echo(f"next: neurovfm plan -w {workspace}, then neurovfm run -w {workspace}")


@app.command()
def demo(
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder of the workspace.")] = Path(
        "demo-workspace"
    ),
    hospital: Annotated[Path, typer.Option(help="Folder of the synthetic hospital.")] = Path("demo-hospital"),
    studies: Annotated[int, typer.Option(min=8, help="Studies of the synthetic hospital.")] = 80,
    seed: Annotated[int, typer.Option(help="Another seed is another hospital.")] = 0,
) -> None:
    """Run the whole chain on a synthetic hospital and end with an HTML report.

    A few minutes on two cores. Run it again with more --studies to see that only the new
    ones are processed.

      neurovfm demo

      neurovfm demo --studies 83
    """
    from flows.cli_run import run_stages
    from neurovfm_core.hospital.build import HospitalParams, build_hospital
    from tasks.registry import STAGES
    from tasks.stage import Selection
    from tasks.workspace import Workspace

    console = Console()
    begun = time.monotonic()
    console.print(f"[bold]hospital[/]  {studies} studies in {hospital}", highlight=False)
    with console.status("building") as line:
        build_hospital(
            hospital,
            HospitalParams(num_studies=studies, seed=seed),
            workers=2,
            on_progress=lambda done, of: line.update(f"{done} of {of} studies"),
        )
    console.print(f"  built in {in_words(time.monotonic() - begun)}", highlight=False)
    if not (workspace / "site.toml").exists():
        Workspace.create(
            workspace,
            source=f"folder:{(hospital / 'pacs').resolve()}",
            warehouse=f"sqlite:///{(hospital / 'warehouse.sqlite').resolve()}",
            preset="demo",
            # Nobody is behind these pseudonyms, so a known key costs nothing and every demo is the same.
            key=hashlib.sha256(f"demo {seed}".encode()).digest(),
        )
    code = run_stages([stage.name for stage in STAGES], workspace, Selection(), asked=False)
    if code == EXIT_OK:
        opened = Workspace.open(workspace)
        reports = opened.store.manifest("analyze").current(columns=["report"], where="status = 'ok'")
        for row in reports.to_pylist():
            console.print(f"\nreport  {workspace / row['report']}", highlight=False, soft_wrap=True)
        console.print(f"took    {in_words(time.monotonic() - begun)}", highlight=False)
    raise typer.Exit(code)


@config_app.command()
def explain(
    section: Annotated[str | None, typer.Argument(help="A section of site.toml.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List every setting with type, default and meaning.

    neurovfm config explain

    neurovfm config explain preprocess
    """
    from tasks.settings import explain as explain_settings

    rows = explain_settings(section)
    if not rows:
        raise UsageError(f"there is no section {section!r}", hint="neurovfm config explain lists all")
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    shown = [[f"{row['section']}.{row['key']}", row["default"], row["help"]] for row in rows]
    Console().print(table("", ["setting", "default", "meaning"], shown))


@config_app.command("show")
def show_config(workspace: WorkspaceOption = Path()) -> None:
    """Print the settings in force, defaults included, as JSON.

    neurovfm config show
    """
    from tasks.workspace import Workspace

    typer.echo(json.dumps(Workspace.open(workspace).site.model_dump(mode="json"), indent=2))


@app.command()
def doctor(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Check this machine, the installed versions and, if there is one, the workspace.

    Exit code 1 if something would break a run.

      neurovfm doctor
    """
    from flows.doctor import examine

    findings = examine(workspace)
    if as_json:
        typer.echo(json.dumps(findings, indent=2))
    else:
        Console().print(table("", ["", "check", "finding"], [[f["state"], f["check"], f["finding"]] for f in findings]))
    if any(finding["state"] == "bad" for finding in findings):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def up(
    workspace: WorkspaceOption = Path(),
    port: Annotated[int, typer.Option(help="Port of UI and API, on this machine only.")] = 4200,
    cron: Annotated[str, typer.Option(help="When the nightly runs.")] = "0 2 * * *",
    timezone: Annotated[str, typer.Option(help="Time zone of the schedule.")] = "UTC",
) -> None:
    """Start Prefect's server and UI with a form for every stage and the nightly schedule.

    Listens on this machine only, without telemetry, until Ctrl-C.

      neurovfm up -w ws --cron "0 2 * * *" --timezone Europe/Berlin
    """
    from flows.server import up as serve_until_stopped
    from tasks.workspace import Workspace

    root = Workspace.open(workspace).root
    raise typer.Exit(serve_until_stopped(root, port, cron, timezone, typer.echo))
