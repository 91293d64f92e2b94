"""A volume that changed lies in two shards: its row says which one counts."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from neurovfm_core.shards import ShardSet, VolumeTokens, write_shard
from tasks.registry import stage_named
from tasks.shardset import open_shards
from tasks.workspace import Workspace


def test_the_newer_row_decides_whatever_the_names_of_the_shards(finished: Workspace, tmp_path: Path) -> None:
    rows = finished.store.manifest("shard").current(where="status = 'ok'").to_pylist()
    known = open_shards(finished.root, rows)
    first, second = (known.get(row["item_id"]) for row in rows[:2])
    changed: VolumeTokens = replace(first, tokens=255 - first.tokens)
    write_shard(tmp_path, "train-zzz", [first, second])
    write_shard(tmp_path, "train-aaa", [changed])
    now = [
        {"item_id": second.volume_id, "outputs": ["train-zzz.json"], "commit_seq": 1},
        {"item_id": first.volume_id, "outputs": ["train-aaa.json"], "commit_seq": 2},
    ]
    for order in (now, now[::-1]):
        assert np.array_equal(open_shards(tmp_path, order).get(first.volume_id).tokens, changed.tokens)
    assert isinstance(open_shards(tmp_path, now), ShardSet)


def test_every_row_finds_its_volume(finished: Workspace) -> None:
    rows = finished.store.manifest("shard").current(where="status = 'ok'").to_pylist()
    shards = open_shards(finished.root, rows)
    assert {row["item_id"]: row["num_tokens"] for row in rows} == {
        row["item_id"]: len(shards.get(row["item_id"])) for row in rows
    }
    assert stage_named("shard").bundle is not None
