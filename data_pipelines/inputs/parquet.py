"""Parquet as the Hugging Face hub serves it: images as bytes or paths, captions, conversations, documents.

Invariant: of a file, the footer and the columns that are used are read, a few rows at a time.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.inputs import entries, files
from data_pipelines.record import Record, Unit
from janus_dist.config.pipeline import InputConfig
from janus_dist.data.inspect import Reject
from janus_dist.errors import DataError

ENDINGS = (".parquet",)
FOOTERS = 32
"""Footers that are read at once."""
ROWS = 64
"""Rows in memory; a row may hold several photographs."""


def units(of: InputConfig, shard_samples: int) -> list[Unit]:
    """Row groups; DataError when a file is no Parquet."""
    found = files.find(of, ENDINGS)
    with ThreadPoolExecutor(FOOTERS) as pool:
        return [unit for cut in pool.map(_row_groups, found) for unit in cut]


def records(of: InputConfig, unit: Unit) -> Iterator[Record | Reject]:
    """The records of a unit, in their order."""
    prefix, folder = files.key_of_file(of, unit.path), files.folder_of(unit.path)
    seen: set[str] = set()
    for number, values in _rows(of, unit):
        key, source = f"{prefix}-{number}", f"{unit.path}:{number}"
        try:
            if isinstance(values, DataError):
                raise values
            if "key" in of.columns:
                key = files.safe_key(str(values.get(of.columns["key"])))
            if key in seen:
                raise DataError(f"duplicate key: {key}")
            seen.add(key)
            yield entries.record(of, values, key, source, folder)
        except DataError as error:
            yield Reject(source, key, error.message, b"")


def _row_groups(path: str) -> list[Unit]:
    try:
        with _opened(path) as opened:
            footer = pq.ParquetFile(opened).metadata
            groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    except pa.ArrowException as error:
        raise DataError(f"{path} is no Parquet file: {error}", "leave it out, or write it again") from error
    first, cut = 0, list[Unit]()
    for number, group in enumerate(groups):
        cut.append(Unit(path, group.total_byte_size, number, number + 1, group.num_rows))
        first += group.num_rows
    return cut


def _rows(of: InputConfig, unit: Unit) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """(row of the file, values); a DataError stands for all rows behind a damage."""
    number = 0
    try:
        with _opened(unit.path) as opened:
            file = pq.ParquetFile(opened)
            number = sum(file.metadata.row_group(before).num_rows for before in range(unit.start))
            wanted = _columns(of, file.schema_arrow.names)
            for batch in file.iter_batches(ROWS, [unit.start], wanted, use_threads=False):
                for values in batch.to_pylist():
                    yield number, values
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the store, not of the data
        yield number, DataError(f"damaged: rows from {number} to the end of their group: {error}")


def _columns(of: InputConfig, names: list[str]) -> list[str]:
    used = {name for options in entries.NAMES.values() for name in options} | set(of.columns.values()) | set(of.where)
    return [name for name in names if name in used]


def _opened(path: str) -> Any:
    files, name = fsspec.core.url_to_fs(path)
    return files.open(name, "rb")
