"""Leases, the run ledger, lineage and garbage: what surrounds the tables."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest

from manifests import Lease, Locked, ManifestError, ManifestStore, Pin, RunLedger, collect, mermaid, plan_gc
from manifests import lineage as lineage_of
from manifests.processes import certainly_dead, this_process


def row(item_id, **fields):
    common = {
        "item_id": item_id,
        "source_id": item_id,
        "input_fingerprint": "input",
        "params_fingerprint": "params",
        "semantic_version": 1,
        "status": "ok",
        "run_id": "run_1",
        "finished_at": datetime(2026, 3, 1, tzinfo=UTC),
    }
    return common | fields


def dead_process():
    """What a process that lived on this machine, and is no more, wrote about itself."""
    code = "import json; from manifests.processes import this_process; print(json.dumps(this_process()))"
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def held_lease(path, age_s=0.0, **fields):
    record = {"token": "t", "owner": {"run_id": "run_9"}, "since": "2026-03-01T02:00:00", "ttl_s": 90}
    path.write_text(json.dumps(record | fields))
    os.utime(path, (time.time() - age_s,) * 2)


ELSEWHERE = {"host": "another-machine", "pid": 77}


# Leases


def test_a_second_run_is_told_who_holds_the_lease(tmp_path):
    path = tmp_path / "locks" / "convert.lease"
    with (
        Lease(path, {"run_id": "run_1"}),
        pytest.raises(Locked, match="already running: run_1") as error,
        Lease(path, {"run_id": "run_2"}),
    ):
        pass
    assert (error.value.pid, error.value.host) == (os.getpid(), socket.gethostname())
    assert error.value.owner == {"run_id": "run_1"}
    assert error.value.since.startswith(str(datetime.now(UTC).year))


def test_a_released_lease_leaves_nothing_behind(tmp_path):
    path = tmp_path / "convert.lease"
    for _ in range(2):
        with Lease(path, {}) as lease:
            assert path.exists()
        assert list(tmp_path.iterdir()) == []
        assert not lease.lost.is_set()


def test_a_lease_is_released_when_its_block_fails(tmp_path):
    path = tmp_path / "convert.lease"
    with pytest.raises(ZeroDivisionError), Lease(path, {}):
        _ = 1 / 0
    assert not path.exists()


def test_a_holder_that_lives_elsewhere_is_believed_until_its_lease_expires(tmp_path, caplog):
    path = tmp_path / "convert.lease"
    held_lease(path, age_s=80, **ELSEWHERE)
    with pytest.raises(Locked, match=r"run_9 on another-machine, process 77, since 2026"), Lease(path, {}):
        pass
    held_lease(path, age_s=100, **ELSEWHERE)
    with Lease(path, {"run_id": "run_10"}) as lease:
        assert json.loads(path.read_text())["owner"] == {"run_id": "run_10"}
    assert not lease.lost.is_set() and not path.exists()
    assert "it expired" in caplog.text


def test_a_killed_holder_on_this_machine_is_replaced_at_once(tmp_path, caplog):
    path = tmp_path / "convert.lease"
    held_lease(path, **dead_process())
    with Lease(path, {}):
        pass
    assert "its process is dead" in caplog.text


@pytest.mark.parametrize("left", ["", "{", "[]"])
def test_an_unreadable_lease_holds_until_it_expires(tmp_path, left):
    path = tmp_path / "convert.lease"
    path.write_text(left)
    with pytest.raises(Locked), Lease(path, {}):
        pass
    os.utime(path, (time.time() - 100,) * 2)
    with Lease(path, {}):
        pass


def test_a_living_holder_renews_its_lease(tmp_path):
    path = tmp_path / "convert.lease"
    with Lease(path, {}, ttl_s=90, renew_s=0.02) as lease:
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < time.time() - 60 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > time.time() - 60
        assert not lease.lost.is_set()


def test_a_holder_learns_that_it_was_replaced_and_leaves_its_successor_alone(tmp_path):
    path = tmp_path / "convert.lease"
    with Lease(path, {}, renew_s=0.02) as lease:
        successor = tmp_path / "successor"
        held_lease(successor, **ELSEWHERE)
        successor.replace(path)
        os.utime(path, (1000, 1000))
        assert lease.lost.wait(timeout=10)
        assert path.stat().st_mtime == 1000, "a heartbeat never touches another run's lease"
    assert json.loads(path.read_text())["pid"] == 77


def test_of_many_that_want_an_expired_lease_one_gets_it(tmp_path):
    path = tmp_path / "convert.lease"
    for _ in range(10):
        held_lease(path, age_s=1000, **ELSEWHERE)
        start, done = threading.Barrier(6), threading.Barrier(6)
        got = []

        def contend(start=start, done=done, got=got):
            start.wait()
            try:
                with Lease(path, {}) as lease:
                    got.append(lease)
                    done.wait(timeout=20)
            except Locked:
                done.wait(timeout=20)

        threads = [threading.Thread(target=contend) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1 and not got[0].lost.is_set()
        assert list(tmp_path.iterdir()) == []


def test_a_lease_that_somebody_else_took_a_moment_ago_is_not_taken_from_them(tmp_path, monkeypatch):
    path = tmp_path / "convert.lease"
    held_lease(path, age_s=1000, **ELSEWHERE)

    def another_is_faster(lease, held, age_s):
        held_lease(path, **ELSEWHERE | {"token": "new", "owner": {"run_id": "run_fast"}})
        return "it expired"

    monkeypatch.setattr(Lease, "_why_free", another_is_faster)
    with pytest.raises(Locked, match="run_fast"), Lease(path, {}):
        pass
    assert json.loads(path.read_text())["token"] == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_only_a_process_of_this_machine_can_be_called_dead():
    mine, dead = this_process(), dead_process()
    assert not certainly_dead(mine)
    assert certainly_dead(dead)
    assert certainly_dead(mine | {"pid_started": mine["pid_started"] - 1}), "its number was used again"
    assert not certainly_dead(dead | {"host": "another-machine"})
    assert not certainly_dead(dead | {"pid_space": "pid:[1]"}), "a container with the same host name"
    assert not certainly_dead({})


# The run ledger


def test_runs_are_listed_newest_first_and_by_stage(tmp_path):
    ledger = RunLedger(tmp_path / "runs")
    assert ledger.list() == []
    for number, stage in enumerate(("convert", "label", "convert")):
        ledger.start({"run_id": f"run_{number}", "stage": stage, "started_at": f"2026-03-0{number + 1}"})
    assert [record["run_id"] for record in ledger.list()] == ["run_2", "run_1", "run_0"]
    assert [record["run_id"] for record in ledger.list(stage="convert")] == ["run_2", "run_0"]
    assert [record["run_id"] for record in ledger.list(limit=1)] == ["run_2"]


def test_an_update_keeps_what_it_does_not_name(tmp_path):
    ledger = RunLedger(tmp_path)
    ledger.start({"run_id": "run_1", "stage": "convert"})
    assert ledger.get("run_1")["state"] == "running"
    ledger.update("run_1", state="ok", counts={"ok": 3})
    record = ledger.get("run_1")
    assert (record["state"], record["counts"], record["stage"]) == ("ok", {"ok": 3}, "convert")
    assert [file.name for file in tmp_path.iterdir()] == ["run_1.json"]


def test_a_run_whose_process_was_killed_is_shown_as_interrupted(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from manifests import RunLedger\n"
        "RunLedger(Path(sys.argv[1])).start({'run_id': 'run_1'})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    ledger = RunLedger(tmp_path)
    assert ledger.get("run_1")["state"] == ledger.list()[0]["state"] == "interrupted"
    ledger.update("run_1", state="failed")
    assert ledger.get("run_1")["state"] == "failed"


@pytest.mark.parametrize("run_id", ["", "../../etc/x", "a b", ".hidden", "run.lock"])
def test_a_run_id_must_be_a_plain_file_name(tmp_path, run_id):
    with pytest.raises(ManifestError, match="run id"):
        RunLedger(tmp_path).start({"run_id": run_id})


def test_unknown_repeated_and_damaged_runs_are_named(tmp_path):
    ledger = RunLedger(tmp_path)
    with pytest.raises(ManifestError, match="no run run_7"):
        ledger.update("run_7", state="ok")
    ledger.start({"run_id": "run_1"})
    with pytest.raises(ManifestError, match="already is a run run_1"):
        ledger.start({"run_id": "run_1"})
    (tmp_path / "run_1.json").write_text("")
    with pytest.raises(ManifestError, match="not JSON"):
        ledger.list()


# Lineage


def test_lineage_follows_pins_back_to_the_first_stage_and_says_where_it_breaks(tmp_path):
    store = ManifestStore(tmp_path)
    export = store.manifest("export").append([row("a")], {"run_id": "e"})
    convert = store.manifest("convert").append([row("a")], {"inputs": {"export": export.to_dict()}})
    store.manifest("convert").append([row("b")], {"inputs": {"export": export.to_dict()}})
    store.manifest("convert").compact(max_files=1)
    label_inputs = {"export": export.to_dict(), "convert": store.manifest("convert").pin().to_dict()}
    label = store.manifest("label").append([row("a")], {"inputs": label_inputs})

    tree = lineage_of(store, label)
    assert json.loads(json.dumps(tree)) == tree
    assert list(tree["inputs"]) == ["convert", "export"]
    assert tree["inputs"]["convert"]["version"] > convert.version
    assert Pin.from_dict(tree["inputs"]["convert"]["inputs"]["export"]) == export, "a compaction hides nothing"

    chart = mermaid(tree).splitlines()
    assert chart[0] == "flowchart LR"
    assert sum('["export v1"]' in line for line in chart) == 1, "each version appears once"
    assert sum("-->" in line for line in chart) == 3

    lost = Pin("export", 1, "0" * 64)
    broken = store.manifest("label").append([row("b")], {"inputs": {"export": lost.to_dict()}})
    tree = lineage_of(store, broken)
    assert "rewound" in tree["inputs"]["export"]["trouble"]
    assert "history lost" in mermaid(tree)


# Garbage


def write(path, age_s=100_000.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"1234")
    os.utime(path, (time.time() - age_s,) * 2)


def names(plan, root):
    return {file.path.relative_to(root).as_posix(): file.why for file in plan}


def test_only_what_no_live_row_names_is_garbage(tmp_path):
    store = ManifestStore(tmp_path / "manifests")
    store.manifest("export").append([row("a", outputs=["dicom/stu/ser_a"])], {})
    pin = store.manifest("convert").append(
        [row(name, outputs=[f"nifti/{name}.nii.gz", f"nifti/{name}.json"]) for name in "ab"], {}
    )
    store.manifest("convert").append([row("b", status="excluded", reason="superseded")], {})
    for name in (
        "dicom/stu/ser_a/1.dcm",
        "dicom/stu/ser_a/deep/2.dcm",
        "dicom/stu/ser_a/.3.dcm.17.partial",
        "dicom/stu/ser_ab/1.dcm",
        "nifti/a.nii.gz",
        "nifti/a.json",
        "nifti/b.nii.gz",
        "vault/key",
    ):
        write(tmp_path / name)
    write(tmp_path / "nifti/young.nii.gz", age_s=60)
    write(tmp_path / "nifti/.young.nii.gz.partial", age_s=60)
    folders = ["dicom", "nifti", "shards"]

    plan = plan_gc(store, tmp_path, folders)
    assert names(plan, tmp_path) == {
        "dicom/stu/ser_a/.3.dcm.17.partial": "partial",
        "dicom/stu/ser_ab/1.dcm": "unreferenced",
        "nifti/b.nii.gz": "unreferenced",
    }
    assert "nifti/b.nii.gz" not in names(plan_gc(store, tmp_path, folders, keep=[pin]), tmp_path)
    assert set(names(plan_gc(store, tmp_path, ["nifti"], min_age_s=0), tmp_path)) == {
        "nifti/b.nii.gz",
        "nifti/young.nii.gz",
        "nifti/.young.nii.gz.partial",
    }

    write(tmp_path / "nifti/b.nii.gz", age_s=0)
    assert collect(plan) == (2, 8), "a file written again since the plan stays"
    assert (tmp_path / "nifti/b.nii.gz").exists() and (tmp_path / "nifti/a.json").exists()
    assert (tmp_path / "vault/key").exists()
    assert collect(plan) == (0, 0)


@pytest.mark.parametrize("folder", ["..", "/etc", "nifti/../..", ""])
def test_garbage_is_looked_for_inside_the_workspace_only(tmp_path, folder):
    with pytest.raises(ManifestError, match="inside the workspace"):
        plan_gc(ManifestStore(tmp_path / "manifests"), tmp_path, [folder])


def test_a_bulk_folder_may_be_a_link_to_a_larger_disk(tmp_path):
    store = ManifestStore(tmp_path / "ws" / "manifests")
    store.manifest("convert").append([row("a", outputs=["nifti/a.nii.gz"])], {})
    write(tmp_path / "disk" / "a.nii.gz")
    write(tmp_path / "disk" / "b.nii.gz")
    (tmp_path / "ws" / "nifti").symlink_to(tmp_path / "disk")
    plan = plan_gc(store, tmp_path / "ws", ["nifti"])
    assert names(plan, tmp_path / "ws") == {"nifti/b.nii.gz": "unreferenced"}


def test_no_file_is_garbage_when_a_pin_that_should_keep_it_is_lost(tmp_path):
    store = ManifestStore(tmp_path / "manifests")
    write(tmp_path / "nifti" / "a.nii.gz")
    with pytest.raises(ManifestError):
        plan_gc(store, tmp_path, ["nifti"], keep=[Pin("convert", 3, "0" * 64)])
