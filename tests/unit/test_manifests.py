"""What a manifest promises: versions that stay, rows that add up, damage that is refused by name."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from manifests import store as store_module
from manifests.errors import DamagedManifest, ManifestError, UnknownVersion
from manifests.rows import conform
from manifests.schemas import COMMON, SCHEMA_VERSION, STAGE_SCHEMAS
from manifests.store import ManifestStore, Pin

MOMENT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def row(item_id, **fields):
    common = {
        "item_id": item_id,
        "source_id": item_id,
        "input_fingerprint": "input",
        "params_fingerprint": "params",
        "semantic_version": 1,
        "status": "ok",
        "run_id": "run_1",
        "finished_at": MOMENT,
    }
    return common | fields


def failed(item_id, reason="crash", **fields):
    return row(item_id, status="failed", reason=reason, **fields)


@pytest.fixture
def manifest(tmp_path):
    # Blanks, brackets and letters beyond ASCII: what people really call folders.
    return ManifestStore(tmp_path / "cohort [2] é" / "manifests").manifest("convert")


def items(table):
    return table["item_id"].to_pylist()


def test_a_manifest_nobody_wrote_is_empty_and_has_the_right_columns(manifest):
    assert not manifest.exists
    assert manifest.pin() is None
    assert manifest.current().schema.equals(STAGE_SCHEMAS["convert"])
    assert manifest.current().num_rows == manifest.changed_since(None).num_rows == 0
    assert manifest.counts() == {} and manifest.history() == []
    with pytest.raises(UnknownVersion):
        manifest.current(at=3)
    assert not manifest.folder.exists(), "looking leaves no trace"


def test_the_newest_row_of_an_item_is_current_and_the_old_version_keeps_the_old_row(manifest):
    first = manifest.append([row("a", shape=[4, 5, 6], flags=["x"]), row("b")], {"run_id": "run_1"})
    second = manifest.append([failed("a")], {"run_id": "run_2"})
    assert manifest.counts() == {("ok", ""): 1, ("failed", "crash"): 1}
    assert manifest.counts(first) == {("ok", ""): 2}
    [old, _] = manifest.current(first).to_pylist()
    assert (old["shape"], old["flags"], old["commit_seq"]) == ([4, 5, 6], ["x"], first.version)
    assert manifest.current(second.version, columns=["item_id", "status"]).to_pylist() == [
        {"item_id": "a", "status": "failed"},
        {"item_id": "b", "status": "ok"},
    ]


def test_a_condition_looks_at_newest_rows_only(manifest):
    manifest.append([row("a"), row("b")], {})
    manifest.append([failed("a")], {})
    assert items(manifest.current(where="status = 'ok'")) == ["b"]
    assert items(manifest.current(where="status = 'ok' OR item_id = 'a'", columns=["item_id"])) == ["a", "b"]


def test_retired_items_leave_the_current_view(manifest):
    manifest.append([row("a"), row("b"), row("c")], {})
    gone = {"status": "excluded"}
    manifest.append([row("a", reason="superseded", **gone), row("b", reason="upstream_gone", **gone)], {})
    assert items(manifest.current()) == ["c"]
    assert items(manifest.current(include_retired=True)) == ["a", "b", "c"]
    assert manifest.counts() == {("ok", ""): 1}


def test_history_tells_every_version_with_its_provenance(manifest):
    manifest.append([row("a"), row("b")], {"run_id": "run_1", "inputs": {"export": {"version": 3}}})
    manifest.append([], {"run_id": "run_2"})
    first, second = manifest.history()
    assert (first.num_rows, second.num_rows) == (2, 0)
    assert first.provenance == {"run_id": "run_1", "inputs": {"export": {"version": 3}}}
    assert second.version == manifest.pin().version == first.version + 1
    assert abs(time.time() - second.timestamp.timestamp()) < 60


def test_details_are_cut_and_absent_columns_are_empty(manifest):
    manifest.append([row("a", detail="é" * 600)], {})
    [only] = manifest.current().to_pylist()
    assert only["detail"] == "é" * 500
    assert (only["reason"], only["outputs"], only["shape"], only["bytes"]) == ("", [], None, None)
    assert only["finished_at"] == MOMENT


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([row("a", colour="red")], "colour"),
        ([row("a", bytes="many")], "schema"),
        ([row(None)], "item_id"),
        ([{"item_id": "a"}], "missing"),
        ([row("a", status="done")], "status"),
        ([row("a", status="failed")], "reason"),
        ([row("a", outputs=["/etc/passwd"])], "path"),
        ([row("a", outputs=["nifti/../../x"])], "path"),
        ([row("a"), row("a")], "another row"),
    ],
)
def test_rows_that_break_the_schema_are_refused_and_nothing_is_written(manifest, rows, complaint):
    with pytest.raises(DamagedManifest, match=complaint):
        manifest.append(rows, {})
    assert not manifest.exists


def test_rows_may_come_as_a_table(manifest):
    manifest.append([row("a", shape=[1, 2, 3], spacing_mm=[1.0, 1.0, 4.0]), row("b")], {})
    again = manifest.current()
    manifest.append(again, {})
    assert manifest.current().drop("commit_seq").equals(again.drop("commit_seq"))


def test_provenance_must_be_plain_json(manifest):
    with pytest.raises(ManifestError, match="JSON"):
        manifest.append([row("a")], {"loss": float("nan")})
    with pytest.raises(ManifestError, match="JSON"):
        manifest.append([row("a")], {"path": Path("x")})


def test_an_unknown_stage_names_the_known_ones(tmp_path):
    with pytest.raises(ManifestError, match="preprocess"):
        ManifestStore(tmp_path).manifest("proprocess")


def test_every_column_and_every_table_is_described():
    for stage, schema in STAGE_SCHEMAS.items():
        assert schema.names[: len(COMMON)] == COMMON.names
        assert schema.metadata[b"doc"].startswith(b"one row per"), stage
        for field in schema:
            assert field.metadata[b"doc"], f"{stage}.{field.name}"
            assert b"\n" not in field.metadata[b"doc"]


def test_stages_are_listed_in_the_order_of_the_chain(tmp_path):
    store = ManifestStore(tmp_path)
    for stage in ("label", "export"):
        store.manifest(stage).append([row("a")], {})
    assert store.stages() == ["export", "label"]


# Pins


def test_a_pin_survives_json_and_later_versions(manifest):
    pin = manifest.append([row("a")], {})
    manifest.append([row("b")], {})
    again = Pin.from_dict(json.loads(json.dumps(pin.to_dict())))
    manifest.check(again)
    assert again == pin == manifest.pin(pin.version)
    assert items(manifest.current(again)) == ["a"]


def test_a_rewound_manifest_is_recognised_by_its_pins(tmp_path):
    manifest = ManifestStore(tmp_path).manifest("export")
    pin = manifest.append([row("a")], {"run_id": "before"})
    (tmp_path / "export").rename(tmp_path / "lost")
    manifest.append([row("a")], {"run_id": "after"})
    assert manifest.pin().version == pin.version
    for read in (manifest.check, manifest.current, manifest.changed_since):
        with pytest.raises(DamagedManifest, match="rewound"):
            read(pin)
    with pytest.raises(UnknownVersion):
        manifest.check(Pin("export", 99, pin.commit_sha256))


# Damage


@pytest.mark.parametrize("left", [b"", b'{"commitInfo":{"timest', b"\0" * 400])
def test_a_last_commit_that_a_power_cut_left_unfinished_is_refused(manifest, left):
    manifest.append([row("a")], {})
    last = manifest.append([row("b")], {})
    commit = manifest.log.path(last.version)
    whole = commit.read_bytes()
    commit.write_bytes(left)
    for use in (manifest.current, manifest.pin, manifest.counts, lambda: manifest.append([row("c")], {})):
        with pytest.raises(DamagedManifest, match="cut off") as error:
            use()
        assert str(commit) in str(error.value) and f"version {last.version - 1} is whole" in str(error.value)
    assert commit.read_bytes() == left, "the evidence stays"
    commit.unlink()
    assert items(manifest.current()) == ["a"], "what the message advises works"
    commit.write_bytes(whole)
    assert items(manifest.current()) == ["a", "b"]


def test_the_library_alone_would_accept_an_empty_last_commit(manifest):
    """The reason for our own check; if this fails, the check may go."""
    last = manifest.append([row("a")], {})
    manifest.log.path(last.version).write_bytes(b"")
    assert DeltaTable(manifest.folder).version() == last.version


def test_a_lost_data_file_is_named(manifest):
    manifest.append([row("a")], {})
    [file] = manifest.folder.glob("*.parquet")
    file.unlink()
    with pytest.raises(DamagedManifest, match=r"cannot be read(.|\n)*\.parquet"):
        manifest.current()


def test_a_manifest_of_newer_code_is_not_touched(manifest, monkeypatch):
    monkeypatch.setitem(SCHEMA_VERSION, "convert", 2)
    manifest.append([row("a")], {})
    monkeypatch.setitem(SCHEMA_VERSION, "convert", 1)
    with pytest.raises(ManifestError, match="newer code"):
        manifest.current()


def test_a_new_column_joins_an_old_table_without_rewriting_it(manifest, monkeypatch):
    newer = STAGE_SCHEMAS["convert"]
    monkeypatch.setitem(STAGE_SCHEMAS, "convert", newer.remove(newer.get_field_index("flags")))
    manifest.append([row("a")], {})
    monkeypatch.setitem(STAGE_SCHEMAS, "convert", newer)
    assert manifest.current(where="flags IS NULL").num_rows == 1
    manifest.append([row("b", flags=["tilted"])], {})
    assert manifest.current(columns=["flags"])["flags"].to_pylist() == [None, ["tilted"]]
    assert {field.name for field in DeltaTable(manifest.folder).schema().fields} == set(newer.names)


def test_rows_are_on_disk_before_a_commit_names_them_and_the_commit_before_append_returns(manifest, monkeypatch):
    manifest.append([row("a")], {})
    synced = []
    real_sync = store_module.sync
    monkeypatch.setattr(
        store_module, "sync", lambda path: (synced.append((path, manifest.log.head())), real_sync(path))
    )
    version = manifest.append([row("b")], {}).version
    before = [path for path, head in synced if head == version - 1]
    after = [path for path, head in synced if head == version]
    [data] = manifest.folder.glob(f"{version:020d}-*.parquet")
    assert before == [data, manifest.folder]
    assert after == [manifest.log.path(version), manifest.log.folder]


# Time


def age(log_folder, days):
    for file in log_folder.iterdir():
        moment = file.stat().st_mtime - days * 86400
        os.utime(file, (moment, moment))


def test_log_cleanup_cannot_delete_provenance(manifest, tmp_path):
    plain = tmp_path / "plain"
    for number in range(12):
        manifest.append([row(f"item_{number}")], {"number": number})
        write_deltalake(plain, pa.table({"number": [number]}), mode="append")
    for folder in (plain, manifest.folder):
        age(folder / "_delta_log", days=60)
        table = DeltaTable(folder)
        table.create_checkpoint()
        table.cleanup_metadata()
    assert len(list((plain / "_delta_log").glob("*.json"))) < 12, "with Delta's defaults the log is cut"
    assert [commit.provenance["number"] for commit in manifest.history()] == list(range(12))
    assert items(manifest.current(at=1)) == ["item_0"]


def test_after_a_compaction_changed_since_is_exact_and_old_versions_read_the_same(manifest):
    pins = [manifest.append([row(f"item_{number}"), row("same")], {}) for number in range(6)]
    before = manifest.current()
    old = manifest.current(pins[2])
    assert manifest.compact(max_files=3)
    assert len(DeltaTable(manifest.folder).file_uris()) == 1
    assert manifest.current().equals(before)
    assert manifest.current(pins[2]).equals(old)
    assert items(manifest.changed_since(pins[3])) == ["item_4", "same", "item_5", "same"]
    assert manifest.changed_since(manifest.pin()).num_rows == 0
    compacted = manifest.pin()
    manifest.append([row("new")], {})
    assert items(manifest.changed_since(compacted)) == ["new"]
    assert manifest.changed_since(None).num_rows == 13
    assert len(manifest.history()) == 7, "a compaction is not a published version"


def test_other_readers_see_the_rows_and_the_change_feed(tmp_path):
    # A plain path: the library's change feed panics on brackets, which is why we do without it.
    manifest = ManifestStore(tmp_path).manifest("convert")
    pin = manifest.append([row("a"), row("b")], {})
    manifest.append([row("c")], {})
    manifest.compact(max_files=1)
    assert sorted(items(DeltaTable(manifest.folder).to_pyarrow_table())) == ["a", "b", "c"]
    feed = pa.table(DeltaTable(manifest.folder).load_cdf(starting_version=pin.version + 1))
    assert items(feed) == items(manifest.changed_since(pin)) == ["c"]


def test_append_compacts_by_itself(manifest, monkeypatch):
    monkeypatch.setattr(store_module, "_MAX_FILES", 5)
    for number in range(12):
        manifest.append([row(f"item_{number}")], {})
    assert len(DeltaTable(manifest.folder).file_uris()) <= 5
    assert manifest.current().num_rows == 12


def test_a_rollback_restates_and_deletes_nothing(manifest):
    then = manifest.append([row("a"), row("b", source_id="s"), row("c", source_id="s"), row("d")], {})
    later = manifest.append([failed("a"), row("b", source_id="s", sha256="other"), row("e")], {})
    manifest.restate(then.version, {"run_id": "run_back"})
    assert manifest.diff(then, manifest.pin().version).summary == dict.fromkeys(manifest.diff(then, then).summary, 0)
    assert items(manifest.current()) == ["a", "b", "c", "d"]
    restated = manifest.changed_since(later)
    assert items(restated) == ["a", "b", "c", "e"], "both rows of source s, so that they stay one run"
    [retired] = manifest.current(where="item_id = 'e'", include_retired=True).to_pylist()
    assert (retired["status"], retired["reason"], retired["run_id"]) == ("excluded", "superseded", "run_back")
    assert items(manifest.current(later)) == ["a", "b", "c", "d", "e"]


def test_a_diff_says_what_came_went_and_changed(manifest):
    a = manifest.append([row("a", sha256="1"), row("b"), row("c")], {})
    b = manifest.append(
        [
            row("a", sha256="2"),
            row("b", status="excluded", reason="superseded"),
            row("c", run_id="run_2"),
            row("d"),
        ],
        {},
    )
    diff = manifest.diff(a, b)
    assert [entry["item_id"] for entry in diff.added] == ["d"]
    assert [entry["item_id"] for entry in diff.removed] == ["b"]
    [changed] = diff.changed
    assert (changed["item_id"], changed["old_sha256"], changed["new_sha256"]) == ("a", "1", "2")
    assert {kind: count for kind, count in diff.summary.items() if count} == {
        "added": 1,
        "removed": 1,
        "changed": 1,
        "changed_sha256": 1,
    }
    assert manifest.diff(a, b, limit=0).changed == []
    assert manifest.diff(a, b, limit=0).summary == diff.summary


# Processes

APPENDER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from manifests.store import ManifestStore

manifest = ManifestStore(Path(sys.argv[1])).manifest("export")
name, first, last = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
print("ready", flush=True)
for number in range(first, last):
    rows = [
        dict(item_id=f"{name}_{number}_{part}", source_id=name, input_fingerprint="i", params_fingerprint="p",
             semantic_version=1, status="ok", run_id=name, finished_at=datetime.now(UTC))
        for part in range(3)
    ]
    manifest.append(rows + [dict(rows[0], item_id="shared")], {"number": number})
    print(number, flush=True)
"""


def appender(root, name, first, last):
    arguments = [sys.executable, "-c", APPENDER, str(root), name, str(first), str(last)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    manifest = ManifestStore(tmp_path).manifest("export")
    running = [appender(tmp_path, name, 0, 12) for name in ("left", "right")]
    for process in running:
        process.communicate(timeout=60)
        assert process.returncode == 0
    rows = manifest.changed_since(None, columns=["item_id", "commit_seq"]).to_pylist()
    assert len(rows) == 2 * 12 * 4
    sequence = {commit.version for commit in manifest.history()}
    assert len(sequence) == 24
    assert {entry["commit_seq"] for entry in rows} == sequence, "each row knows the version that brought it"
    shared = [entry["commit_seq"] for entry in rows if entry["item_id"] == "shared"]
    assert len(set(shared)) == 24
    [newest] = manifest.current(where="item_id = 'shared'").to_pylist()
    assert newest["commit_seq"] == max(shared)


def test_kill_9_at_any_moment_loses_and_repeats_no_committed_row(tmp_path):
    manifest = ManifestStore(tmp_path).manifest("export")
    reported, first = set(), 0
    for after_commits, delay_s in ((0, 0.012), (1, 0.003), (2, 0.009), (1, 0.017), (3, 0.031)):
        process = appender(tmp_path, "storm", first, 10_000)
        assert process.stdout.readline() == "ready\n"
        reported |= {int(process.stdout.readline()) for _ in range(after_commits)}
        time.sleep(delay_s)
        process.kill()
        said, _ = process.communicate(timeout=30)
        reported |= {int(line) for line in said.splitlines()}
        committed = [commit.provenance["number"] for commit in manifest.history()]
        assert len(committed) == len(set(committed))
        assert reported <= set(committed)
        assert len(set(committed) - reported) <= 5, "at most the one in flight at each kill"
        rows = manifest.changed_since(None, columns=["item_id"])["item_id"].to_pylist()
        expected = [f"storm_{number}_{part}" for number in committed for part in range(3)]
        assert sorted(rows) == sorted(expected + ["shared"] * len(committed))
        first = max(committed, default=-1) + 1


def test_rows_without_a_single_entry_still_have_every_column():
    assert conform([], STAGE_SCHEMAS["label"], "label").schema.equals(STAGE_SCHEMAS["label"])
