"""DuckDB over the Parquet files of a manifest, within a fixed amount of memory."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from manifests.schemas import RETIRED_REASONS

MEMORY_LIMIT = "1GB"
NUM_THREADS = 2


@contextmanager
def connected() -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a database in memory that spills to a temporary folder and never calls the network."""
    with tempfile.TemporaryDirectory(prefix="manifests-") as spill:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY_LIMIT,
            "threads": NUM_THREADS,
            "temp_directory": spill,
            "preserve_insertion_order": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        with duckdb.connect(config=settings) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection


def define_rows(connection: duckdb.DuckDBPyConnection, name: str, files: Sequence[Path], schema: pa.Schema) -> None:
    """Define the view `name`: all rows of the files, with every column of `schema`.

    The empty table contributes the columns that files of an older schema lack.
    """
    connection.register(f"{name}_columns", schema.empty_table())
    parts = [f"SELECT * FROM {name}_columns"]
    if files:
        listed = ", ".join(_literal(file) for file in files)
        parts.append(f"SELECT * FROM read_parquet([{listed}], union_by_name = true)")
    connection.execute(f"CREATE VIEW {name} AS {' UNION ALL BY NAME '.join(parts)}")


def define_newest(connection: duckdb.DuckDBPyConnection, name: str, rows: str) -> None:
    """Define the view `name`: the newest row of every item among the view `rows`."""
    connection.execute(
        f"""
        CREATE VIEW {name} AS
        SELECT * FROM {rows} SEMI JOIN
            (SELECT item_id, max(commit_seq) AS commit_seq FROM {rows} GROUP BY item_id)
        USING (item_id, commit_seq)
        """
    )


LIVE = f"reason NOT IN {RETIRED_REASONS}"
"""Condition on a newest row: the item is still there."""


def fetch(
    connection: duckdb.DuckDBPyConnection, query: str, schema: pa.Schema, params: Sequence[object] = ()
) -> pa.Table:
    """Run a query and return its result in exactly the columns and types of `schema`."""
    result = connection.sql(query, params=list(params)).to_arrow_table()
    return result.select(schema.names).cast(schema)


def quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _literal(file: Path) -> str:
    # read_parquet expands globs, and a workspace may well be called "cohort [2]".
    text = "".join(f"[{char}]" if char in "*?[" else char for char in str(file))
    return "'" + text.replace("'", "''") + "'"
