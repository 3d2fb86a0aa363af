"""Parquet as the Hugging Face hub serves it: images as bytes or paths, captions, conversations, documents.

Invariants: only the footer and the used columns of a file are read, and a few values of other columns when the footer
does not tell what they hold; only a few rows and a part of each of their columns are in memory, for row groups of any
length.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.inputs import entries, files, media
from data_pipelines.inputs.account import NOT_USED, shows_editing
from data_pipelines.inputs.columns import check_rule_columns, partition_columns
from data_pipelines.inputs.entries import Loss, LostError
from data_pipelines.inputs.files import UnreachableError
from data_pipelines.record import Record, Unit
from janus_dist.config.pipeline import InputConfig
from janus_dist.errors import DataError, RecordError
from janus_dist.inspection.inspect import Reject

ENDINGS = (".parquet",)
FOOTERS = 32
"""Footers that are read at once."""
BATCH_BYTES = 16 * 2**20
"""Bytes of a file that one batch of rows stands for on average."""
LONGEST_BATCH = 1_000
"""Most rows of a batch."""
PEEKED_ROWS = 8
"""Rows that are read at once of an unused column whose footer has no statistics."""
CUT_BYTES = 64
"""Bytes to which some writers cut the least and greatest value of a column."""
READ_BYTES = 4 * 2**20
"""Bytes of a column that are read at once."""
FAULTS = (pa.ArrowException, OSError, ValueError, OverflowError, KeyError, TypeError)
"""Exceptions that pyarrow raises on damaged files."""

Group = tuple[int, int]
"""(rows, bytes)"""


def units(config: InputConfig, shard_samples: int) -> list[Unit]:
    """Return runs of row groups of up to `shard_samples` rows.

    A file without a footer is one unit, for which there is one reject: its number of rows is estimated from the mean
    size of rows in other files. Raises DataError when no file has a footer, or when the first one has none of the
    columns.
    """
    input_files = files.find(config, ENDINGS)
    with ThreadPoolExecutor(FOOTERS, thread_name_prefix="footers") as pool:
        footers = list(pool.map(lambda input_file: _footer(input_file.path), input_files))
    readable = [
        (file, footer) for file, footer in zip(input_files, footers, strict=True) if not isinstance(footer, DataError)
    ]
    if not readable:
        raise DataError(f"{input_files[0].path} is not a Parquet file: {footers[0]}", "give the path of Parquet files")
    _check_columns(config, readable[0][0].path, readable[0][1][0])
    names = {name for file, (columns, _) in readable for name in [*columns, *partition_columns(file.path)]}
    check_rule_columns("pipeline.inputs", config.where, names)
    rows = sum(rows for _, (_, groups) in readable for rows, _ in groups)
    cut: list[Unit] = []
    for file, footer in zip(input_files, footers, strict=True):
        if isinstance(footer, DataError):
            whole_bytes = sum(file.size for file, _ in readable)
            size = max(file.size, whole_bytes // len(readable))  # most files without a footer were cut short
            lost_records = entries.lost(size, whole_bytes, rows, size)
            cut.append(Unit(file.path, file.size, records=lost_records, stem=file.stem))
        else:
            cut += _cut_file(file, footer[1], shard_samples)
    return cut


def records(config: InputConfig, unit: Unit) -> Iterator[Record | Reject]:
    """Yield the records of a unit in their order, and a Reject for each row that is not a record."""
    unread: dict[str, str] = {}
    return entries.records(config, unit, _rows(config, unit, unread), unread)


def _footer(path: str) -> tuple[list[str], list[Group]] | DataError:
    """Return (names of columns, row groups) of a file, or the error of a file without a footer."""
    with files.open_stream(path, ahead=0) as opened:
        try:
            file = pq.ParquetFile(opened)
            groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            return file.schema_arrow.names, [(group.num_rows, group.total_byte_size) for group in groups]
        except UnreachableError:
            raise
        except FAULTS as error:
            return DataError(str(error))


def _cut_file(file: files.InputFile, groups: list[Group], shard_samples: int) -> Iterator[Unit]:
    """Yield runs of row groups of up to `shard_samples` rows, at least one group each."""
    start = 0
    while start < len(groups):
        stop, (rows, size) = start + 1, groups[start]
        while stop < len(groups) and rows + groups[stop][0] <= shard_samples:
            rows, size, stop = rows + groups[stop][0], size + groups[stop][1], stop + 1
        yield Unit(file.path, size, start, stop, rows, stem=file.stem)
        start = stop


def _rows(
    config: InputConfig, unit: Unit, unread: dict[str, str]
) -> Iterator[tuple[int, Mapping[str, Any] | DataError, bytes]]:
    """Yield (row of the file, its values, b""); a DataError stands for all rows of a row group behind a damage.

    `unread` is updated to hold the reasons for the columns that the current rows do not have.
    """
    with files.open_stream(unit.path, ahead=0) as opened:
        try:
            file = pq.ParquetFile(opened, buffer_size=READ_BYTES, pre_buffer=False, page_checksum_verification=True)
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        except UnreachableError:
            raise
        except FAULTS as error:
            yield 0, LostError("damaged", f"no row can be read: {error}", Loss(max(1, unit.records or 1))), b""
            return
        batch_rows = max(1, min(BATCH_BYTES * max(1, unit.records or 0) // max(1, unit.size), LONGEST_BATCH))
        for group in range(unit.start, len(counts) if unit.stop is None else unit.stop):
            row, end = sum(counts[:group]), sum(counts[: group + 1])
            try:
                for values in _group_rows(config, file, group, batch_rows, unread):
                    yield row, values, b""
                    row += 1
            except UnreachableError:
                raise
            except FAULTS as error:
                reason = f"rows {row} to {end - 1} cannot be read: {error}"
                yield row, LostError("damaged", reason, Loss(max(1, end - row))), b""


def _group_rows(
    config: InputConfig, file: pq.ParquetFile, group: int, batch_rows: int, unread: dict[str, str]
) -> Iterator[Mapping[str, Any] | DataError]:
    """Yield the rows of a row group, with the columns that a record may be made of or that may hold media."""
    used = _used_columns(config)
    names = file.schema_arrow.names
    read_names = [name for name in names if name in used or _may_hold_media(config, file, group, name)]
    unread.clear()
    unread.update({name: NOT_USED for name in names if name not in read_names})
    for batch in file.iter_batches(batch_rows, [group], read_names, use_threads=False):
        yield from _values(batch)


def _values(batch: pa.RecordBatch) -> list[Mapping[str, Any] | DataError]:
    """Return the rows of a batch; a DataError replaces a row with values that Python cannot represent."""
    try:
        return batch.to_pylist()
    except FAULTS:
        return [_row(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _row(batch: pa.RecordBatch) -> Mapping[str, Any] | DataError:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return RecordError("not UTF-8", f"a text at byte {error.start}")
    except FAULTS as error:
        return RecordError("no value", f"{error}")


def _may_hold_media(config: InputConfig, file: pq.ParquetFile, group: int, name: str) -> bool:
    """Return whether an unused column may hold images, video or sound.

    It is recognised by its name, by the least and greatest value in the footer, or else by its first values.
    """
    if name.lower() in media.KEYS or shows_editing(name):
        return True
    if "image" in config.columns or config.stream == "text":  # all unused columns are ignored then
        return False
    metadata = file.metadata.row_group(group)
    leaves = (metadata.column(index) for index in range(metadata.num_columns))
    try:
        return any(
            _leaf_may_hold_media(file, group, name, leaf)
            for leaf in leaves
            if leaf.physical_type == "BYTE_ARRAY" and f"{leaf.path_in_schema}.".startswith(f"{name}.")
        )
    except UnreachableError:
        raise
    except FAULTS:  # damage in a column that is not needed costs nothing
        return False


def _leaf_may_hold_media(file: pq.ParquetFile, group: int, name: str, leaf: pq.ColumnChunkMetaData) -> bool:
    """Return whether a leaf of a column may hold media, by its statistics or its first values."""
    statistics = leaf.statistics
    if statistics is not None and statistics.has_min_max:
        extremes = [statistics.min, statistics.max]
        if media.look(extremes, name):
            return True
        if all(isinstance(value, str | bytes) and len(value) < CUT_BYTES for value in extremes):
            return False
    for batch in file.iter_batches(PEEKED_ROWS, [group], [name], use_threads=False):
        values = [value for row in batch.to_pylist() if media.has_value(value := row[name])]
        if values:
            return bool(media.look(values, name))
    return False


def _used_columns(config: InputConfig) -> set[str]:
    """Return the names of columns that a record may be made of."""
    looked_for = (() if what in config.columns else names for what, names in entries.NAMES.items())
    return {name for names in looked_for for name in names} | set(config.columns.values()) | set(config.where)


def _check_columns(config: InputConfig, path: str, names: list[str]) -> None:
    """Raise DataError when a file has not all columns that the recipe names, or none that a record is made of."""
    missing = sorted(set(config.columns.values()) - set(names))
    if missing or not set(names) & (_used_columns(config) - set(entries.NAMES["system"])):
        raise DataError(
            f"{path} has no column {missing[0]}" if missing else f"{path} has no column of images or texts",
            f"it has {', '.join(names)}: name those that count in `columns`",
        )
