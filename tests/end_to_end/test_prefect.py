"""The same stages through a real Prefect server: deployments, schedule, artifacts, picture."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.workspace import Workspace

pytestmark = pytest.mark.slow


def call(port: int, path: str, body: dict | None = None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/{path}", data=data, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def server(finished_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Workspace]]:
    """`neurovfm up` on a copy of the finished workspace."""
    root = tmp_path_factory.mktemp("up") / "ws"
    shutil.copytree(finished_root, root)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (root.parent / "up.log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "up", "-w", str(root), "--port", str(port)], stdout=log, stderr=log
    )
    deadline = time.monotonic() + 240
    while "nightly   next run" not in Path(log.name).read_text():
        assert process.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()
        time.sleep(1)
    yield port, Workspace.open(root)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)


def test_every_stage_has_a_deployment_and_the_nightly_is_scheduled(server) -> None:
    port, _ = server
    names = {row["name"] for row in call(port, "flows/filter", {})}
    assert {"export", "convert", "preprocess", "shard", "label", "pretrain", "probe", "analyze"} <= names
    assert {"pipeline", "nightly"} <= names
    scheduled = call(port, "flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}})
    assert scheduled


def test_a_stage_triggered_from_the_server_runs_and_leaves_its_summary(server) -> None:
    port, workspace = server
    deployments = call(port, "deployments/filter", {"flows": {"name": {"any_": ["convert"]}}})
    schema = deployments[0]["parameter_openapi_schema"]
    assert "selection" in schema["properties"]
    before = workspace.store.manifest("convert").pin()
    run = call(
        port, f"deployments/{deployments[0]['id']}/create_flow_run", {"parameters": {"selection": {"force": True}}}
    )
    deadline = time.monotonic() + 180
    while run["state_type"] not in ("COMPLETED", "FAILED", "CRASHED"):
        assert time.monotonic() < deadline, run["state_type"]
        time.sleep(2)
        run = call(port, f"flow_runs/{run['id']}")
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert workspace.store.manifest("convert").pin().version > before.version
    artifacts = {row["key"]: row for row in call(port, "artifacts/filter", {})}
    assert {"convert-summary", "convert-progress", "convert-lineage"} <= set(artifacts)
    assert "ok" in artifacts["convert-summary"]["description"]
    tasks = call(port, "task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    assert 1 <= len(tasks) <= 20, "a task run is a group of units, not a unit"


def test_the_command_line_shows_in_the_ui_when_an_api_is_set(server) -> None:
    port, workspace = server
    environment = {**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "DO_NOT_TRACK": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "flows", "run", "label", "-w", str(workspace.root)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    runs = call(port, "flow_runs/filter", {"flows": {"name": {"any_": ["command"]}}})
    assert [run["state_type"] for run in runs] == ["COMPLETED"]


def test_nothing_identifying_is_in_the_servers_database(server, hospital: Path) -> None:
    _, workspace = server
    planted = json.loads((hospital / "truth" / "identifiers.json").read_text())
    words = sorted({word for values in planted.values() for word in values if len(word) >= 6})
    raw = b"".join(path.read_bytes() for path in (workspace.root / "prefect").glob("prefect.db*"))
    found = [word for word in words if word.encode() in raw]
    assert found == []
