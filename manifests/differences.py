"""What changed between two versions of a manifest."""

from dataclasses import dataclass
from typing import Any

import duckdb

_COMPARED = ("status", "reason", "sha256", "params_fingerprint")


@dataclass(frozen=True, slots=True)
class ManifestDiff:
    """Items of `b` that `a` lacks, items of `a` that `b` lacks, and items whose row says something else.

    Every entry has ``item_id`` and, for each of status, reason, sha256 and
    params_fingerprint, ``old_<column>`` and ``new_<column>``. The summary counts
    added, removed and changed items, and under ``changed_<column>`` the changed
    items in which that column differs.
    """

    added: list[dict[str, Any]]
    removed: list[dict[str, Any]]
    changed: list[dict[str, Any]]
    summary: dict[str, int]


def compare(connection: duckdb.DuckDBPyConnection, limit: int | None = None) -> ManifestDiff:
    """Compare the views ``a`` and ``b``, each with one row per item."""
    old_new = ", ".join(f"a.{c} AS old_{c}, b.{c} AS new_{c}" for c in _COMPARED)
    differs = {c: f"old_{c} IS DISTINCT FROM new_{c}" for c in _COMPARED}
    connection.execute(
        f"""
        CREATE TEMP TABLE differing AS
        SELECT coalesce(a.item_id, b.item_id) AS item_id, {old_new},
            CASE WHEN a.item_id IS NULL THEN 'added'
                 WHEN b.item_id IS NULL THEN 'removed' ELSE 'changed' END AS kind
        FROM a FULL JOIN b ON a.item_id = b.item_id
        WHERE {" OR ".join(differs.values())}
        """
    )
    lists = {
        kind: connection.sql(
            "SELECT * EXCLUDE (kind) FROM differing WHERE kind = $1 ORDER BY item_id LIMIT $2",
            params=[kind, limit],
        )
        .to_arrow_table()
        .to_pylist()
        for kind in ("added", "removed", "changed")
    }
    summary = dict.fromkeys(lists, 0)
    summary.update(connection.sql("SELECT kind, count(*) FROM differing GROUP BY kind").fetchall())
    for column, condition in differs.items():
        query = f"SELECT count(*) FROM differing WHERE kind = 'changed' AND {condition}"
        summary[f"changed_{column}"] = connection.sql(query).fetchall()[0][0]
    return ManifestDiff(**lists, summary=summary)
