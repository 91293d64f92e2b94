"""The `neurovfm` command: what a person types, and how errors and exit codes look."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from manifests import Locked, ManifestError
from neurovfm_core import __version__
from neurovfm_core.errors import PipelineError, UsageError

app = typer.Typer(
    name="neurovfm",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From PACS and reports to a pretrained brain encoder, heads and their evaluation.\n\n"
    "  neurovfm demo                              the whole chain on a synthetic hospital\n\n"
    "  neurovfm init WS --source folder:/data     a workspace on your own DICOM files\n\n"
    "  neurovfm plan -w WS                        what would run, and why\n\n"
    "  neurovfm run -w WS                         run it",
)

WorkspaceOption = Annotated[
    Path,
    typer.Option("--workspace", "-w", envvar="NEUROVFM_WORKSPACE", help="Folder of the workspace.", show_default="."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print data for programs instead of people.")]

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_LOCKED = 0, 1, 2, 3
"""A stopped run ends with 130; `RunResult.exit_code` says so."""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"neurovfm {__version__}")
        raise typer.Exit


@app.callback()
def options(
    log_level: Annotated[
        str, typer.Option("--log-level", envvar="NEUROVFM_LOG_LEVEL", help="debug, info, warning or error.")
    ] = "warning",
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    numeric = logging.getLevelNamesMapping().get(log_level.upper())
    if numeric is None:
        raise UsageError(f"there is no log level {log_level!r}", hint="debug, info, warning or error")
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for ours in ("flows", "tasks", "manifests", "neurovfm_core"):
        logging.getLogger(ours).setLevel(numeric)


def main() -> None:
    """Run the command; every user mistake ends in a few lines, never in a traceback."""
    from flows import cli_inspect, cli_model, cli_run, cli_setup

    assert all((cli_inspect, cli_model, cli_run, cli_setup))  # imported for their commands
    try:
        app()
    except Locked as error:
        sys.exit(_say(error, EXIT_LOCKED))
    except UsageError as error:
        sys.exit(_say(error, EXIT_USAGE))
    except (PipelineError, ManifestError) as error:
        sys.exit(_say(error, EXIT_FAILED))
    except BrokenPipeError:
        # The reader of a pipe went away; without this Python complains again while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # Paths of the workspace carry pseudonyms only, so the file may be named.
        where = f": {error.filename}" if error.filename else ""
        sys.exit(_say(OSError(f"{error.strerror or error}{where}"), EXIT_FAILED))


def _say(error: Exception, code: int) -> int:
    typer.echo(f"error: {error}", err=True)
    return code
