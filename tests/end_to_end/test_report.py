"""The analysis report, opened in a real browser without a network."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP*~NOTFOUND",
    "--window-size=1200,3000",
]


@pytest.fixture(scope="module")
def report(finished_root: Path) -> Path:
    return next((finished_root / "analyses").glob("*/*/report.html"))


def test_the_page_names_no_other_host(report: Path) -> None:
    text = html.unescape(report.read_text())
    assert re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?https?:", text) == []
    assert "default-src 'none'" in text


def test_every_number_is_in_results_json(report: Path) -> None:
    results = json.loads((report.parent / "results.json").read_text())
    assert {"flow", "cohort", "evaluation", "pretraining", "methods", "provenance"} <= set(results)
    for part in results["evaluation"].values():
        assert set(part["macro"]) == {"pretrained", "random", "histogram"}
        assert part["unit"] == "patient"


def test_a_browser_without_network_shows_it(report: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed; `make test` installs it")
    picture = tmp_path / "report.png"
    command = [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]
    subprocess.run([*command, f"--screenshot={picture}", report.as_uri()], capture_output=True, check=True, timeout=120)
    dom = subprocess.run(
        [*command, "--dump-dom", report.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    assert "For research use only" in dom.stdout
    assert dom.stdout.count("<svg") >= 3
    assert picture.stat().st_size > 50_000, "a blank page is smaller"
