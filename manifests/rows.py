"""Turn what a stage hands over into a table that fits the stage's schema, or refuse it."""

import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import DamagedManifest
from manifests.schemas import MAX_DETAIL_CHARACTERS, STATUSES


def conform(rows: list[dict] | pa.Table, schema: pa.Schema, stage: str) -> pa.Table:
    """Return the rows as a table of exactly `schema`; ``commit_seq`` is 0 everywhere.

    Absent stage columns become null, an absent reason or detail is empty, an
    absent list of outputs is empty, and details are cut to 500 characters.

    Raises
    ------
    DamagedManifest
        An unknown column, a wrong type, a required value missing, an unknown
        status, a reason missing where the status is not ok, an output path
        that leaves the workspace, or two rows about one item.
    """
    given = rows.column_names if isinstance(rows, pa.Table) else {name for row in rows for name in row}
    unknown = sorted(set(given) - set(schema.names))
    if unknown:
        raise DamagedManifest(
            f"the column {unknown[0]} does not belong to this manifest",
            where=stage,
            hint="name it in manifests/schemas.py or leave it out",
        )
    try:
        table = _typed(rows, schema)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DamagedManifest(f"rows do not fit the schema: {error}", where=stage) from error
    _refuse_contradictions(table, stage)
    return table


def _typed(rows: list[dict] | pa.Table, schema: pa.Schema) -> pa.Table:
    loose = pa.schema([field.with_nullable(True) for field in schema])
    table = pa.Table.from_pylist(rows, schema=loose) if isinstance(rows, list) else rows
    defaults = {
        "reason": pa.scalar(""),
        "detail": pa.scalar(""),
        "outputs": pa.scalar([], pa.list_(pa.string())),
    }
    columns = {}
    for field in loose:
        if field.name == "commit_seq":
            column = pa.repeat(pa.scalar(0, field.type), table.num_rows)
        elif field.name in table.column_names:
            column = table.column(field.name).cast(field.type)
        else:
            column = pa.nulls(table.num_rows, field.type)
        if field.name in defaults and column.null_count:
            # fill_null knows no lists
            column = pc.if_else(pc.is_valid(column), column, defaults[field.name])
        columns[field.name] = column
    columns["detail"] = pc.utf8_slice_codeunits(columns["detail"], 0, MAX_DETAIL_CHARACTERS)
    for field in schema:
        if not field.nullable and columns[field.name].null_count:
            raise ValueError(f"{field.name} is missing in {columns[field.name].null_count} rows")
    return pa.table(columns, schema=schema)


def _refuse_contradictions(table: pa.Table, stage: str) -> None:
    outputs = pc.list_flatten(table["outputs"])
    wrong = {
        f"the status is none of {', '.join(STATUSES)}": pc.invert(
            pc.is_in(table["status"], value_set=pa.array(STATUSES))
        ),
        "an excluded or failed row gives no reason": pc.and_(
            pc.not_equal(table["status"], "ok"), pc.equal(table["reason"], "")
        ),
    }
    for what, mask in wrong.items():
        if pc.any(mask).as_py():
            item_id = table["item_id"].filter(mask)[0].as_py()
            raise DamagedManifest(f"{what}: {item_id}", where=stage)
    if pc.any(pc.match_substring_regex(outputs, r"^/|\\|(^|/)\.\.(/|$)|^$")).as_py():
        raise DamagedManifest("an output path is not a plain path inside the workspace", where=stage)
    repeated = table.num_rows - pc.count_distinct(table["item_id"]).as_py()
    if repeated:
        raise DamagedManifest(f"{repeated} rows are about an item that another row is about", where=stage)
