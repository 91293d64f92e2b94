"""`neurovfm up`: a Prefect server, its deployments and a proof that the schedule lives."""

import json
import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neurovfm_core.errors import UsageError

logger = logging.getLogger(__name__)

REPAIR = "pip install 'prefect==3.8.8' 'fastapi<0.151' 'sqlalchemy<2.1'"


def server_environment(workspace: Path, port: int) -> dict[str, str]:
    """Return the environment of server and runner: local, quiet, no telemetry."""
    home = workspace / "prefect"
    return {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        # Without it a UI on another port than 4200 looks for its API on 4200.
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # its pages call an analytics host from the browser
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_TASKS_DEFAULT_NO_CACHE": "true",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "neurovfm_core,tasks,manifests",
        "NEUROVFM_WORKSPACE": str(workspace),
    }


def up(workspace: Path, port: int, cron: str, timezone: str, say: Callable[[str], None]) -> int:
    """Start everything, prove that the nightly is scheduled, and stay until stopped.

    Raises
    ------
    UsageError
        If the port is taken, the server does not start or its scheduler is dead.
    """
    environment = server_environment(workspace, port)
    (workspace / "prefect").mkdir(mode=0o700, exist_ok=True)
    if _answers(port):
        raise UsageError(
            f"something answers on port {port} already",
            hint="neurovfm up --port 4201, or stop the other server",
        )
    with (workspace / "prefect" / "server.log").open("ab") as server_log:
        children = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "prefect",
                    "server",
                    "start",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(port),
                ],
                env=environment,
                stdout=server_log,
                stderr=subprocess.STDOUT,
            )
        ]
        try:
            say("starting the Prefect server (10 to 20 s)")
            _wait_for(lambda: _answers(port), children, 120, workspace)
            with (workspace / "prefect" / "runner.log").open("ab") as runner_log:
                children.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "flows.runner", str(workspace), cron, timezone],
                        env=environment,
                        stdout=runner_log,
                        stderr=subprocess.STDOUT,
                    )
                )
            say("registering deployments and checking that the schedule really makes runs (up to 90 s)")
            _wait_for(lambda: next_nightly(port) != "", children, 120, workspace)
            say(f"UI        http://127.0.0.1:{port}")
            say(f"nightly   next run {next_nightly(port)} ({cron}, {timezone})")
            say(f"CLI       export PREFECT_API_URL=http://127.0.0.1:{port}/api   shows `neurovfm run` in the UI")
            say("stop      Ctrl-C")
            while all(child.poll() is None for child in children):
                time.sleep(1)
            raise UsageError("server or runner ended by itself", where=str(workspace / "prefect"), hint=REPAIR)
        except KeyboardInterrupt:
            say("stopping")
            return 0
        finally:
            for child in reversed(children):
                child.terminate()
            for child in children:
                try:
                    child.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    child.kill()


def next_nightly(port: int) -> str:
    """Return when the next nightly is due, or an empty text if the scheduler made no run.

    With SQLAlchemy 2.1 the schedule looks active and never makes one.
    """
    body = {
        "flows": {"name": {"any_": ["nightly"]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        "sort": "EXPECTED_START_TIME_ASC",
        "limit": 1,
    }
    runs = _call(port, "flow_runs/filter", body) or []
    return str(runs[0]["expected_start_time"])[:16] if runs else ""


def _wait_for(
    ready: Callable[[], bool], children: list[subprocess.Popen[bytes]], seconds: float, workspace: Path
) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if any(child.poll() is not None for child in children) or time.monotonic() > deadline:
            raise UsageError(
                "the Prefect server is not well: it ended, or its scheduler makes no runs",
                where=str(workspace / "prefect" / "server.log"),
                hint=REPAIR,
            )
        time.sleep(1)


def _answers(port: int) -> bool:
    return _call(port, "health", None) is not None


def _call(port: int, path: str, body: dict[str, Any] | None) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/{path}", data=data, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)
    except (urllib.error.URLError, OSError, ValueError):
        return None
