"""Lines of JSON, plain or compressed: LLaVA's conversations, captions, interleaved texts, documents.

A plain file is cut into ranges of bytes; a line belongs to the range of its first byte. Invariants: every line that is
not blank becomes a record or a reject; no line longer than a limit is held in memory.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

import pyarrow as pa

from data_pipelines.inputs import entries, files
from data_pipelines.inputs.files import UnreachableError
from data_pipelines.inputs.values import parsed
from data_pipelines.record import Record, Unit
from janus_dist.config.pipeline import InputConfig
from janus_dist.errors import DataError, RecordError
from janus_dist.inspection.inspect import Reject
from janus_dist.storage import json_lines

ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
COMPRESSED = (".gz", ".zst")
SAMPLED_BYTES = 2**20
"""Bytes of the first file from which the mean length of lines is taken."""
USUAL_BYTES = 1_000
"""Compressed bytes of a line, assumed where none could be read: a paragraph, or a short conversation."""
FILL = 0.9
"""Share of a shard that a range of lines of mean length fills, so that shorter lines do not start a second shard."""

Line = tuple[int, bytes | DataError]
"""(position, line): the position is the first byte in a plain file, else the index of the line."""


def units(config: InputConfig, shard_samples: int) -> list[Unit]:
    """Return ranges of about a shard's lines, by the mean line at the start of the first file; compressed files whole.

    Raises DataError when a file named .json, or the first file, is one JSON array.
    """
    input_files = files.find(config, ENDINGS)
    plain = [file for file in input_files if not file.path.endswith(COMPRESSED)]
    for file in plain:
        if file is plain[0] or file.path.endswith(".json"):
            _check_no_array(file.path)
    range_bytes = max(1, int(FILL * shard_samples * _mean_line_bytes(plain[0].path))) if plain else 0
    cut: list[Unit] = []
    for file in input_files:
        if file.path.endswith(COMPRESSED):
            cut.append(Unit(file.path, file.size, stem=file.stem))
            continue
        for start in range(0, file.size, range_bytes):
            stop = min(start + range_bytes, file.size)
            cut.append(Unit(file.path, stop - start, start, stop, stem=file.stem))
    return cut


def records(config: InputConfig, unit: Unit) -> Iterator[Record | Reject]:
    """Yield the records of a unit in their order, and a Reject for each line that is not a record."""
    return entries.records(config, unit, rows(config, unit))


def rows(config: InputConfig, unit: Unit) -> Iterator[tuple[int, Mapping[str, Any] | DataError, bytes]]:
    """Yield (position, values or the error of the line, first bytes) of each line."""
    return ((position, _parsed_object(line), _first_bytes(line)) for position, line in _lines(config, unit))


def _parsed_object(line: bytes | DataError) -> Mapping[str, Any] | DataError:
    if isinstance(line, DataError):
        return line
    try:
        values = parsed(line, "the line")
    except DataError as error:
        return error
    if not isinstance(values, dict):
        return RecordError("not JSON", f"a line is an object, not {type(values).__name__}")
    return values


def _lines(config: InputConfig, unit: Unit) -> Iterator[Line]:
    if unit.path.endswith(COMPRESSED):
        yield from _compressed_lines(config, unit)
        return
    with files.open_stream(unit.path, min(files.READ_AHEAD_BYTES, max(1, unit.size))) as opened:
        begin = unit.start
        if begin:
            opened.seek(begin - 1)  # a line that began in the range before is skipped
            begin += _skip_line(opened, unit.stop) - 1
        yield from _lines_until(opened, unit.stop, begin)


def _compressed_lines(config: InputConfig, unit: Unit) -> Iterator[Line]:
    line_count = 0
    with files.open_stream(unit.path) as file:
        try:
            for _, line in _lines_until(_decompressed(file, unit.path), None, 0):
                yield line_count, line
                line_count += 1
        except UnreachableError:
            raise
        except (OSError, EOFError, zlib.error) as error:
            read_bytes = min(unit.size, file.tell())
            loss = entries.Loss(entries.lost(unit.size - read_bytes, read_bytes, line_count, USUAL_BYTES))
            if isinstance(error, EOFError) and read_bytes == unit.size:
                loss = entries.lost_at_end(config, ENDINGS, unit, line_count)
            yield line_count, entries.LostError("damaged", f"the file ends after {line_count} lines: {error}", loss)


def _lines_until(opened: BinaryIO, stop: int | None, begin: int) -> Iterator[Line]:
    """Yield the lines that begin before `stop`, each with the byte where it begins."""
    limit = entries.LONGEST_TEXT_BYTES
    while stop is None or begin < stop:
        line = opened.readline(limit)
        if not line:
            return
        size = len(line)
        if size == limit and not line.endswith(b"\n"):
            size += _skip_line(opened, None)
            yield begin, RecordError("too long", f"a line of {size} bytes, at most {limit} are read")
        elif line := json_lines.strip(line, is_first=begin == 0):
            yield begin, line
        begin += size


def _skip_line(opened: BinaryIO, stop: int | None) -> int:
    """Read to the end of a line, or to `stop` when that is earlier, and return the number of bytes read."""
    size = 0
    while part := opened.readline(files.BUFFER_BYTES):
        size += len(part)
        if part.endswith(b"\n") or (stop is not None and opened.tell() >= stop):
            break
    return size


def _decompressed(opened: BinaryIO, path: str) -> BinaryIO:
    if path.endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=opened))
    inflated: Any = pa.CompressedInputStream(pa.PythonFile(opened), "zstd")
    return io.BufferedReader(inflated, files.BUFFER_BYTES)


def _check_no_array(path: str) -> None:
    with files.open_stream(path, files.BUFFER_BYTES) as opened:
        head = opened.read(files.BUFFER_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith(b"["):
        name = path.rpartition("/")[2]
        raise DataError(
            f"{path} is one JSON array, which cannot be read in pieces",
            "write its items one a line: "
            "python -c 'import json, sys; [print(json.dumps(one)) for one in json.load(sys.stdin)]' "
            f"< {name} > {name.removesuffix('.json')}.jsonl",
        )


def _mean_line_bytes(path: str) -> int:
    with files.open_stream(path, SAMPLED_BYTES) as opened:
        head = opened.read(SAMPLED_BYTES)
    return max(1, len(head) // max(1, head.count(b"\n")))


def _first_bytes(line: bytes | DataError) -> bytes:
    return b"" if isinstance(line, DataError) else line[: entries.HEAD_BYTES]
