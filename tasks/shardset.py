"""The shards that manifest rows name, opened so that every volume is the one its row speaks of."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from neurovfm_core.shards import ShardSet

COLUMNS = ("item_id", "sha256", "outputs", "commit_seq")
"""What a row must have to be opened."""


def open_shards(root: Path, rows: Iterable[Mapping[str, Any]]) -> ShardSet:
    """Open the shards of some rows of the shard manifest.

    A volume that changed lies in an old shard and in a newer one. `ShardSet`
    lets the later of its paths win, so they are given in the order of their commits.
    """
    commits: dict[str, int] = {}
    for row in rows:
        name = row["outputs"][0]
        commits[name] = max(commits.get(name, 0), row["commit_seq"])
    return ShardSet([root / name for name in sorted(commits, key=lambda name: (commits[name], name))])
