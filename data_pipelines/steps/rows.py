"""Rows and what happens to the bad ones: a step gets a row and returns it with more columns, or says why it cannot.

Invariant: a graph never loses a row. What a step refuses stays in its block as a bad row (`reason` not empty, `head`
the first bytes of what was read), is passed over by later steps and ends in the quarantine table.
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from janus_dist.errors import DataError

Row = dict[str, Any]
Step = Callable[[Row], Row]

HEAD_BYTES = 64
COMMON = pa.schema(
    [
        ("shard", pa.int64()),  # number of the shard that the row belongs to
        ("position", pa.int64()),  # of the row in its shard
        ("key", pa.string()),
        ("source", pa.string()),  # where the item came from, for people
        ("reason", pa.string()),  # why the row is bad; empty while it is good
        ("head", pa.binary()),
    ]
)


def schema(**columns: pa.DataType) -> pa.Schema:
    """The schema of a table: the columns that all rows have, and others."""
    return pa.schema([*COMMON, *(pa.field(name, kind) for name, kind in columns.items())])


def guarded(step: Step, row: Row) -> Row:
    """The row after a step: changed, left alone because it was bad before, or bad because the step raised DataError."""
    if row["reason"]:
        return row
    try:
        return row | step(row)
    except DataError as error:
        return row | {"reason": error.message, "head": row["head"] or _first_bytes(row)}


def run(steps: list[Step], rows: list[Row]) -> list[Row]:
    """All rows through all steps, as a graph does it."""
    for step in steps:
        rows = [guarded(step, row) for row in rows]
    return rows


def _first_bytes(row: Row) -> bytes:
    content = row.get("encoded") or row.get("text") or row.get("caption") or b""
    return (content.encode() if isinstance(content, str) else content)[:HEAD_BYTES]


class Blocks:
    """A step on whole blocks, as Ray Data calls it. Columns outside `columns` are dropped, absent ones are null."""

    def __init__(self, step: Step, columns: pa.Schema):
        self.step, self.columns = step, columns

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = [guarded(self.step, row) for row in block.to_pylist()]
        return pa.Table.from_pylist(rows, schema=self.columns)
