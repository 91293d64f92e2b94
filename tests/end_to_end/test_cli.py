"""The command line as a user meets it: good input, bad input, stops and full disks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manifests import Lease
from neurovfm_core.hospital.build import HospitalParams, build_hospital
from tasks.workspace import Workspace


def neurovfm(*words: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows", *map(str, words)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "NEUROVFM"))}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)


def test_a_second_run_does_nothing_and_says_so_quickly(finished: Workspace) -> None:
    begun = time.monotonic()
    result = neurovfm("run", "-w", finished.root)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("nothing to do") == 8
    assert time.monotonic() - begun < 20


def test_status_plan_show_trace_and_history_agree(finished: Workspace) -> None:
    status = json.loads(neurovfm("status", "-w", finished.root, "--json").stdout)
    assert [row["stage"] for row in status][:3] == ["export", "convert", "preprocess"]
    plan = json.loads(neurovfm("plan", "-w", finished.root, "--json").stdout)
    assert {row["state"] for row in plan} == {"fresh"}
    rows = json.loads(neurovfm("show", "shard", "--status", "ok", "--limit", "3", "-w", finished.root, "--json").stdout)
    trace = json.loads(neurovfm("trace", rows[0]["study_id"], "-w", finished.root, "--json").stdout)
    assert {"export", "convert", "preprocess", "shard", "label"} <= {row["stage"] for row in trace}
    history = json.loads(neurovfm("history", "shard", "-w", finished.root, "--json").stdout)
    assert history[0]["inputs"].startswith("preprocess@")
    assert "flowchart" in neurovfm("lineage", "analyze", "-w", finished.root).stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", "-w", "NOWHERE"], 2, ["no site.toml", "neurovfm init"]),
        (["run", "preproces", "-w", "WORKSPACE"], 2, ["no stage 'preproces'", "did you mean preprocess?"]),
        (["show", "shard@99", "-w", "WORKSPACE"], 1, ["99"]),
        (["trace", "stu_nobody", "-w", "WORKSPACE"], 2, ["no manifest knows"]),
        (["trace", "x'; drop table", "-w", "WORKSPACE"], 2, ["not an id"]),
        (["run", "convert", "--only", "ser_nobody", "-w", "WORKSPACE"], 2, ["no item ser_nobody"]),
        (["run", "--only", "failed", "-w", "WORKSPACE"], 2, ["need the name of a stage"]),
        (["run", "--from", "probe", "--until", "export", "-w", "WORKSPACE"], 2, ["comes after"]),
        (["init", "WORKSPACE", "--source", "folder:/"], 2, ["already"]),
        (["init", "NEW", "--source", "folder:/does/not/exist"], 2, ["does not exist"]),
        (["init", "NEW", "--source", "dimse:pacs"], 2, ["folder:PATH"]),
        (["embed", "NOWHERE/x.nii.gz", "--encoder", "NOWHERE"], 2, ["no such file"]),
        (["--log-level", "loud", "status"], 2, ["no log level"]),
        (["nonsense"], 2, ["nonsense"]),
    ],
)
def test_a_mistake_is_one_clear_message(words, code, said, finished: Workspace, tmp_path: Path) -> None:
    places = {"WORKSPACE": str(finished.root), "NOWHERE": str(tmp_path / "nowhere"), "NEW": str(tmp_path / "new")}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    result = neurovfm(*words)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for part in said:
        assert part in result.stderr


def test_a_malformed_site_names_the_line(finished: Workspace) -> None:
    site = finished.root / "site.toml"
    site.write_text(site.read_text() + "\n[preprocess]\nslice_mm = 40.0\n")
    result = neurovfm("plan", "-w", finished.root)
    assert result.returncode == 2
    assert "preprocess.slice_mm is 40.0" in result.stderr
    assert "line" in result.stderr


def test_an_empty_source_is_refused(finished: Workspace, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    site = finished.root / "site.toml"
    lines = [
        f'url = "folder:{tmp_path / "empty"}"' if line.startswith("url") else line
        for line in site.read_text().splitlines()
    ]
    site.write_text("\n".join(lines))
    result = neurovfm("run", "export", "-w", finished.root)
    assert result.returncode == 2
    assert "empty" in result.stderr


def test_a_second_run_at_the_same_time_is_told_who_is_there(finished: Workspace) -> None:
    with Lease(finished.lease_path("convert"), {"stage": "convert", "requested_by": "test"}):
        result = neurovfm("run", "convert", "-w", finished.root)
    assert result.returncode == 3
    assert "convert" in result.stderr


@pytest.mark.slow
def test_sigterm_commits_and_the_next_run_goes_on(finished: Workspace) -> None:
    before = finished.store.manifest("convert").current(columns=["item_id", "sha256"])
    shutil.rmtree(finished.root / "manifests" / "convert")
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "run", "convert", "-w", str(finished.root)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(4)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 130), said  # 0 if it was done already
    assert neurovfm("run", "convert", "-w", finished.root).returncode == 0
    assert finished.store.manifest("convert").current(columns=["item_id", "sha256"]) == before


@pytest.mark.slow
def test_three_new_studies_are_exactly_what_is_processed(hospital: Path, finished: Workspace, tmp_path: Path) -> None:
    grown = tmp_path / "hospital"
    shutil.copytree(hospital, grown)
    build_hospital(grown, HospitalParams(num_studies=17, seed=3, scale=0.6), workers=2)
    site = finished.root / "site.toml"
    site.write_text(site.read_text().replace(str(hospital), str(grown)))
    known = set(finished.store.manifest("export").current(columns=["study_id"])["study_id"].to_pylist())
    trained = {stage: finished.store.manifest(stage).pin() for stage in ("pretrain", "probe")}
    result = neurovfm("run", "-w", finished.root)
    assert result.returncode == 0, result.stdout
    for stage in ("export", "convert", "preprocess", "shard", "label"):
        manifest = finished.store.manifest(stage)
        version = manifest.history()[-1].version
        newest = manifest.current(columns=["study_id", "commit_seq"], where=f"commit_seq = {version}")
        studies = {study for study in newest["study_id"].to_pylist() if study}
        assert studies and not studies & known, stage
    for stage, pin in trained.items():
        assert finished.store.manifest(stage).pin() == pin, f"{stage} does not follow new data by itself"
    assert "neurovfm run pretrain" in result.stdout


def test_little_disk_stops_before_anything_is_written(finished: Workspace) -> None:
    site = finished.root / "site.toml"
    site.write_text(site.read_text().replace("min_free_gb = 0.1", "min_free_gb = 1000000.0"))
    result = neurovfm("run", "convert", "--force", "-w", finished.root)
    assert result.returncode == 2
    assert "GiB left" in result.stderr


@pytest.mark.slow
def test_a_full_disk_loses_nothing(finished: Workspace, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(small)], check=False)
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small file system here (needs root)")
    try:
        root = small / "ws"
        shutil.copytree(
            finished.root, root, ignore=shutil.ignore_patterns("dicom", "nifti", "volumes", "shards", "prefect")
        )
        (root / "dicom").symlink_to(finished.root / "dicom")
        shutil.rmtree(root / "manifests" / "convert")
        site = root / "site.toml"
        site.write_text(site.read_text().replace("min_free_gb = 0.1", "min_free_gb = 0.0"))
        used_mb = shutil.disk_usage(small).used // 2**20
        subprocess.run(["mount", "-o", f"remount,size={used_mb + 6}m", str(small)], check=True)
        result = neurovfm("run", "convert", "-w", root)
        assert result.returncode == 1, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        assert "full" in (result.stdout + result.stderr).lower() or "space" in (result.stdout + result.stderr).lower()
        subprocess.run(["mount", "-o", "remount,size=400m", str(small)], check=True)
        assert neurovfm("run", "convert", "-w", root).returncode == 0
        columns = ["item_id", "status", "sha256"]
        healed = Workspace.open(root).store.manifest("convert").current(columns=columns)
        assert healed == finished.store.manifest("convert").current(columns=columns)
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_every_command_has_help_with_an_example() -> None:
    from flows.reference import pages

    sections = pages()["cli.md"].split("## neurovfm ")[1:]
    assert len(sections) >= 18
    for section in sections:
        name = section.split("\n", 1)[0]
        assert f"neurovfm {name}" in section.split("```text")[1], f"{name} shows no example"
