"""Laws of manifests, against implementations in plain Python that a reader can check by eye."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.freshness import classify
from manifests.store import ManifestStore

MOMENT = datetime(2026, 3, 1, tzinfo=UTC)
RETIRED = ("superseded", "upstream_gone")

outcomes = st.sampled_from(
    [
        ("ok", ""),
        ("ok", ""),
        ("excluded", "too_small"),
        ("excluded", "superseded"),
        ("excluded", "upstream_gone"),
        ("failed", "timeout"),
        ("failed", "crash"),
    ]
)


@st.composite
def commits(draw):
    """Up to four commits over five sources with up to two items each."""
    result = []
    for _ in range(draw(st.integers(0, 4))):
        names = draw(st.sets(st.tuples(st.sampled_from("abcde"), st.sampled_from("01")), max_size=6))
        rows = []
        for source, part in sorted(names):
            status, reason = draw(outcomes)
            rows.append(
                {
                    "item_id": f"{source}_{part}",
                    "source_id": source,
                    "input_fingerprint": draw(st.sampled_from(["i1", "i2"])),
                    "params_fingerprint": draw(st.sampled_from(["p1", "p1", "p2"])),
                    "semantic_version": draw(st.sampled_from([1, 2, 2])),
                    "status": status,
                    "reason": reason,
                    "sha256": draw(st.sampled_from([None, "s1", "s2"])),
                    "run_id": "run",
                    "finished_at": MOMENT,
                }
            )
        # Rows of one source in one commit come from one run over one input.
        for row in rows:
            twin = next(other for other in rows if other["source_id"] == row["source_id"])
            row["input_fingerprint"] = twin["input_fingerprint"]
        result.append(rows)
    return result


def newest_rows(history):
    """The newest row by item, retired ones included, with the number of its commit."""
    newest = {}
    for number, rows in enumerate(history, start=1):
        for row in rows:
            newest[row["item_id"]] = row | {"commit_seq": number}
    return newest


def live_rows(history):
    return {item: row for item, row in newest_rows(history).items() if row["reason"] not in RETIRED}


def naive_classify(inputs, history, retry, *, force, only_failed, failed_reason, only_ids, only_new):
    by_source = {}
    for row in live_rows(history).values():
        by_source.setdefault(row["source_id"], []).append(row)
    todo, fresh, quarantined = {}, 0, 0
    for item_id, fingerprint in inputs.items():
        rows = by_source.get(item_id, [])
        last = max((row["commit_seq"] for row in rows), default=0)
        rows = [row for row in rows if row["commit_seq"] == last]
        failures = {row["reason"] for row in rows if row["status"] == "failed"}
        chosen = only_ids is None or item_id in only_ids
        if failed_reason is not None:
            chosen = chosen and failed_reason in failures
        elif only_failed:
            chosen = chosen and bool(failures)
        if only_new:
            chosen = chosen and not rows
        asked_by_name = only_failed or failed_reason is not None or only_ids is not None
        if not rows:
            why = "new"
        elif rows[0]["input_fingerprint"] != fingerprint:
            why = "input_changed"
        elif any(row["params_fingerprint"] != "p1" for row in rows):
            why = "params_changed"
        elif min(row["semantic_version"] for row in rows) < 2:
            why = "code_changed"
        elif failures & retry or (failures and chosen and asked_by_name):
            why = "failed_before"
        elif chosen and force:
            why = "forced"
        else:
            fresh += not failures
            quarantined += bool(failures)
            continue
        if chosen:
            todo[item_id] = why
    return todo, fresh, quarantined, sorted(set(by_source) - set(inputs))


@settings(max_examples=40, deadline=None)
@given(
    history=commits(),
    inputs=st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["i1", "i2"])),
    retry=st.sets(st.sampled_from(["timeout", "crash"])),
    choice=st.fixed_dictionaries(
        {
            "force": st.booleans(),
            "only_failed": st.booleans(),
            "failed_reason": st.sampled_from([None, None, "crash"]),
            "only_ids": st.none() | st.frozensets(st.sampled_from("abcz")),
            "only_new": st.sampled_from([False, False, True]),
        }
    ),
)
def test_classify_agrees_with_a_loop_in_python(history, inputs, retry, choice):
    table = pa.table(
        {
            "item_id": pa.array(list(inputs), pa.string()),
            "input_fingerprint": pa.array(list(inputs.values()), pa.string()),
            "shape": pa.array([[1, 2]] * len(inputs), pa.list_(pa.int32())),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        manifest = ManifestStore(Path(folder)).manifest("convert")
        for rows in history:
            manifest.append(rows, {})
        arguments = {"params_fingerprint": "p1", "semantic_version": 2, "retry_reasons": frozenset(retry)}
        work = classify(table, manifest, **arguments, **choice)
        backwards = classify(
            table.take(pa.array(range(len(inputs))[::-1], pa.int64())), manifest, **arguments, **choice
        )
    todo, fresh, quarantined, gone = naive_classify(inputs, history, retry, **choice)
    assert dict(zip(work.todo["item_id"].to_pylist(), work.todo["why"].to_pylist(), strict=True)) == todo
    assert (work.fresh, work.quarantined, work.gone) == (fresh, quarantined, gone)
    assert sum(work.why_counts.values()) == work.todo.num_rows
    assert work.todo.column_names == [*table.column_names, "why"]
    assert work.todo.schema.field("shape").type == table.schema.field("shape").type
    assert backwards.todo.equals(work.todo), "the order does not depend on arrival"


@settings(max_examples=20, deadline=None)
@given(history=commits(), compact_after=st.integers(0, 4), back_to=st.integers(0, 4), start=st.integers(0, 4))
def test_views_agree_with_a_dictionary(history, compact_after, back_to, start):
    start = min(start, len(history))
    with tempfile.TemporaryDirectory() as folder:
        manifest = ManifestStore(Path(folder)).manifest("convert")
        pins = [None]
        for number, rows in enumerate(history, start=1):
            pins.append(manifest.append(rows, {"number": number}))
            if number == compact_after:
                manifest.compact(max_files=1)
        shown = manifest.current(columns=["item_id", "sha256", "reason"]).to_pylist()
        live = live_rows(history)
        assert {entry["item_id"]: entry["sha256"] for entry in shown} == {
            item: row["sha256"] for item, row in live.items()
        }
        assert [entry["item_id"] for entry in shown] == sorted(live)
        assert sum(manifest.counts().values()) == len(live)

        came = [(row["item_id"], row["sha256"]) for rows in history[start:] for row in rows]
        since = manifest.changed_since(pins[start], columns=["item_id", "sha256"]).to_pylist()
        assert [tuple(entry.values()) for entry in since] == came

        if history:
            past = min(max(back_to, 1), len(history))
            check_diff(manifest.diff(pins[past], pins[-1]), live_rows(history[:past]), live)
            manifest.restate(pins[past].version, {"run_id": "back"})
            again = manifest.current().drop("commit_seq")
            assert again.equals(manifest.current(pins[past]).drop("commit_seq"))


def check_diff(diff, old, new):
    columns = ("status", "reason", "sha256", "params_fingerprint")
    assert [entry["item_id"] for entry in diff.added] == sorted(new.keys() - old.keys())
    assert [entry["item_id"] for entry in diff.removed] == sorted(old.keys() - new.keys())
    changed = [
        item
        for item in sorted(old.keys() & new.keys())
        if any(old[item][column] != new[item][column] for column in columns)
    ]
    assert [entry["item_id"] for entry in diff.changed] == changed
    assert [diff.summary[kind] for kind in ("added", "removed", "changed")] == [
        len(diff.added),
        len(diff.removed),
        len(changed),
    ]
