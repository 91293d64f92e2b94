"""Which sources a stage has to work on, and why: one SQL query, never a question per item."""

from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests import sql
from manifests.errors import ManifestError
from manifests.store import Manifest

WHYS = ("new", "input_changed", "params_changed", "code_changed", "failed_before", "forced")
"""Reasons to work on a source; the first that holds is given."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage would do.

    ``todo`` has every column of the inputs, and ``why``. Its order comes from a
    digest of the ids, so it depends neither on arrival nor on the number of
    workers. ``fresh`` and ``quarantined`` count the inputs that are up to date
    and those that failed for a reason that trying again does not mend.
    ``gone`` are the sources that have live rows but are no longer an input.
    """

    todo: pa.Table
    fresh: int
    quarantined: int
    gone: list[str]
    why_counts: dict[str, int]


# What a row says, in few bytes, so that 5 M of them fit the memory limit. Two different
# fingerprints have the same 8-byte hash once in 10^19 comparisons.
_FACTS = f"""
SELECT item_id, source_id, commit_seq, semantic_version,
    hash(input_fingerprint) AS input,
    params_fingerprint = $params AS same_params,
    status = 'failed' AS failed,
    status = 'failed' AND list_contains($retry, reason) AS worth_retrying,
    status = 'failed' AND reason = coalesce($failed_reason, reason) AS failed_as_asked,
    {sql.LIVE} AS live
FROM rows
"""

_DONE = f"""
CREATE TEMP TABLE done AS
WITH facts AS ({_FACTS})
SELECT source_id, commit_seq,
    any_value(input) AS input,
    bool_and(same_params) AS same_params,
    min(semantic_version) AS version,
    bool_or(failed) AS failed,
    bool_or(worth_retrying) AS worth_retrying,
    bool_or(failed_as_asked) AS failed_as_asked
FROM facts SEMI JOIN (SELECT item_id, max(commit_seq) AS commit_seq FROM rows GROUP BY item_id)
USING (item_id, commit_seq) WHERE live GROUP BY source_id, commit_seq
"""

_ONLY_NEWEST_COMMIT = """
DELETE FROM done USING (
    SELECT source_id, max(commit_seq) AS commit_seq FROM done GROUP BY source_id HAVING count(*) > 1
) AS last WHERE done.source_id = last.source_id AND done.commit_seq < last.commit_seq
"""

_JUDGED = """
CREATE TEMP TABLE judged AS
WITH compared AS (
    SELECT inputs.item_id, inputs.position, inputs.input_fingerprint, done.*,
        ($every_id OR inputs.item_id IN (SELECT item_id FROM asked))
            AND (NOT $only_failed OR coalesce(done.failed_as_asked, false))
            AND (NOT $only_new OR done.source_id IS NULL) AS selected
    FROM inputs LEFT JOIN done ON inputs.item_id = done.source_id
)
SELECT item_id, position, selected,
    CASE WHEN source_id IS NULL THEN 'new'
         WHEN input != hash(input_fingerprint) THEN 'input_changed'
         WHEN NOT same_params THEN 'params_changed'
         WHEN version < $version THEN 'code_changed'
         WHEN worth_retrying OR (failed AND selected AND $asked) THEN 'failed_before'
         WHEN selected AND $force THEN 'forced'
         WHEN failed THEN 'quarantined'
         ELSE 'fresh' END AS why
FROM compared
"""


def classify(
    inputs: pa.Table,
    manifest: Manifest,
    *,
    params_fingerprint: str,
    semantic_version: int,
    retry_reasons: frozenset[str],
    force: bool = False,
    only_failed: bool = False,
    failed_reason: str | None = None,
    only_ids: frozenset[str] | None = None,
    only_new: bool = False,
) -> Work:
    """Compare the inputs of a stage with what its manifest already says.

    A source is judged by its live rows of its newest commit. Sources whose
    rows were all retired count as new.

    Parameters
    ----------
    inputs
        ``item_id`` (the source), ``input_fingerprint``, and anything else. One row per source.
    semantic_version
        Rows of a lower one are ``code_changed``.
    retry_reasons
        Failures with these reasons are tried again by every run; others are
        quarantined until their settings or input change, or somebody asks
        (`only_failed`, `only_ids`).
    force
        Also work on what is fresh or quarantined; it is then called ``forced``.
    only_failed, failed_reason
        Only sources that failed, or only those that failed for this reason.
    only_ids
        Only these sources; the fresh ones among them stay fresh unless forced.
    only_new
        Only sources the manifest has no live row of.

    Raises
    ------
    ManifestError
        The inputs lack a column, have a null in it, or name a source twice.
    """
    only_failed = only_failed or failed_reason is not None
    narrow = _narrow(inputs)
    about_rows = {
        "params": params_fingerprint,
        "retry": sorted(retry_reasons),
        "failed_reason": failed_reason,
    }
    about_choice = {
        "every_id": only_ids is None,
        "only_failed": only_failed,
        "only_new": only_new,
        "version": semantic_version,
        "asked": only_failed or only_ids is not None,
        "force": force,
    }
    with manifest.newest() as connection:
        connection.register("inputs", narrow)
        connection.register("asked", pa.table({"item_id": pa.array(sorted(only_ids or ()), pa.string())}))
        _refuse_repeated(connection)
        connection.execute(_DONE, about_rows)
        connection.execute(_ONLY_NEWEST_COMMIT)
        connection.execute(_JUDGED, about_choice)
        left = dict(
            connection.sql(
                "SELECT why, count(*) FROM judged WHERE why IN ('fresh', 'quarantined') GROUP BY why"
            ).fetchall()
        )
        todo = connection.sql(
            """
            SELECT position, why FROM judged WHERE selected AND why NOT IN ('fresh', 'quarantined')
            ORDER BY md5_number(item_id)
            """
        ).to_arrow_table()
        gone = connection.sql(
            "SELECT source_id FROM done ANTI JOIN inputs ON source_id = inputs.item_id ORDER BY source_id"
        ).fetchall()
    counted = {entry["values"]: entry["counts"] for entry in pc.value_counts(todo["why"]).to_pylist()}
    return Work(
        todo=inputs.take(todo["position"]).append_column("why", todo["why"]),
        fresh=left.get("fresh", 0),
        quarantined=left.get("quarantined", 0),
        gone=[source_id for (source_id,) in gone],
        why_counts={why: counted[why] for why in WHYS if why in counted},
    )


def _narrow(inputs: pa.Table) -> pa.Table:
    """Return what the query needs of the inputs; the rest joins again by position."""
    for name in ("item_id", "input_fingerprint"):
        if name not in inputs.column_names:
            raise ManifestError(f"the inputs have no column {name}")
        if inputs[name].null_count:
            raise ManifestError(f"{name} is missing in {inputs[name].null_count} inputs")
    position = pa.array(np.arange(inputs.num_rows, dtype=np.int64))
    return inputs.select(["item_id", "input_fingerprint"]).append_column("position", position)


def _refuse_repeated(connection: duckdb.DuckDBPyConnection) -> None:
    repeated = connection.sql("SELECT item_id FROM inputs GROUP BY item_id HAVING count(*) > 1 LIMIT 1")
    for (item_id,) in repeated.fetchall():
        raise ManifestError(f"the inputs name {item_id} twice", hint="give one row per source")
