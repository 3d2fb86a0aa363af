"""Lines of JSON, plain or compressed: LLaVA's conversations, captions, interleaved texts, documents.

A plain file is cut into ranges of bytes; a line belongs to the range that its first byte is in. Invariant: every line
that is not blank becomes a record or a reject, and no line longer than a limit is held in memory.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from data_pipelines.inputs import entries, files
from data_pipelines.record import Record, Unit
from janus_dist.config.pipeline import InputConfig
from janus_dist.data.inspect import Reject
from janus_dist.errors import DataError

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz")
SAMPLED_BYTES = 2**20
LONGEST_LINE_BYTES = 64 * 2**20
HEAD_BYTES = 64
BUFFER_BYTES = 2**20


def units(of: InputConfig, shard_samples: int) -> list[Unit]:
    """Ranges of about `shard_samples` lines, by the mean line at the beginning of the first file; compressed files
    whole."""
    found = files.find(of, ENDINGS)
    range_bytes = shard_samples * _mean_line_bytes(next(iter(found)))
    cut: list[Unit] = []
    for path, size in found.items():
        if _is_compressed(path):
            cut.append(Unit(path, size))
            continue
        starts = range(0, max(1, size), range_bytes)
        cut += [Unit(path, min(range_bytes, size - start), start, min(start + range_bytes, size)) for start in starts]
    return cut


def records(of: InputConfig, unit: Unit) -> Iterator[Record | Reject]:
    """The records of a unit, in their order."""
    prefix, folder = files.key_of_file(of, unit.path), files.folder_of(unit.path)
    seen: set[str] = set()
    for place, line in _lines(unit):
        source = f"{unit.path}:{place}"
        try:
            if isinstance(line, DataError):
                raise line
            values = _object(line)
            key = files.safe_key(str(values[of.columns["key"]])) if "key" in of.columns else f"{prefix}-{place}"
            if key in seen:
                raise DataError(f"duplicate key: {key}")
            seen.add(key)
            yield entries.record(of, values, key, source, folder)
        except KeyError as error:
            yield Reject(source, f"{prefix}-{place}", f"no key: there is no {error}", _head(line))
        except DataError as error:
            yield Reject(source, f"{prefix}-{place}", error.message, _head(line))


def _object(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(entries.utf8(line, "the line"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"not JSON: a line is an object, not {type(values).__name__}")
    return values


def _lines(unit: Unit) -> Iterator[tuple[int, bytes | DataError]]:
    """(place, line): place is the byte of a plain file where the line begins, else its number, counted from 0."""
    with files.open_stream(unit.path) as opened:
        if not _is_compressed(unit.path):
            begin = unit.start
            if begin:
                opened.seek(begin - 1)
                begin += _skip_line(opened) - 1  # the line that the range before begins ends here
            yield from _until(opened, unit.stop, begin)
            return
        number = 0
        try:
            for _, line in _until(_decompressed(opened, unit.path), None, 0):
                yield number, line
                number += 1
        except (EOFError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the store, not of the data
            yield number, DataError(f"damaged: the file ends after {number} lines: {error}")


def _until(opened: BinaryIO, stop: int | None, begin: int) -> Iterator[tuple[int, bytes | DataError]]:
    """Lines that begin before `stop`, each with the byte where it begins."""
    while stop is None or begin < stop:
        line: bytes | DataError = opened.readline(LONGEST_LINE_BYTES)
        if not line:
            return
        size = len(line)
        if size == LONGEST_LINE_BYTES and not line.endswith(b"\n"):
            size += _skip_line(opened)
            line = DataError(f"too long: a line of {size} bytes, at most {LONGEST_LINE_BYTES} are read")
        if isinstance(line, DataError) or line.strip():
            yield begin, line
        begin += size


def _skip_line(opened: BinaryIO) -> int:
    """Read on behind the end of a line; how many bytes that took."""
    size = 0
    while part := opened.readline(LONGEST_LINE_BYTES):
        size += len(part)
        if part.endswith(b"\n"):
            break
    return size


def _decompressed(opened: BinaryIO, path: str) -> BinaryIO:
    if path.endswith(".gz"):
        return gzip.open(opened)  # pyright: ignore[reportReturnType]
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(opened), "zstd"), BUFFER_BYTES)  # pyright: ignore


def _is_compressed(path: str) -> bool:
    return path.endswith((".gz", ".zst"))


def _mean_line_bytes(path: str) -> int:
    """Of the first lines of a file; DataError when it is one JSON array."""
    with files.open_stream(path) as opened:
        head = opened.read(SAMPLED_BYTES) if not _is_compressed(path) else b"{}"
    if head.lstrip()[:1] == b"[":
        raise DataError(
            f"{path} is one JSON array, which cannot be read in pieces",
            "write its items one a line: "
            'python -c "import json, sys; [print(json.dumps(x)) for x in json.load(sys.stdin)]"'
            f" < {path.rpartition('/')[2]} > {path.rpartition('/')[2].removesuffix('.json')}.jsonl",
        )
    return max(1, len(head) // max(1, head.count(b"\n")))


def _head(line: bytes | DataError) -> bytes:
    return b"" if isinstance(line, DataError) else line[:HEAD_BYTES]
