"""A description of an input's entries for messages: names and kinds of values, as they are in its files.

Invariant: only a few entries are read, and nothing here decides whether a record is used.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow.parquet as pq

from data_pipelines.inputs import files, jsonl, tar
from data_pipelines.inputs.columns import partition_columns
from data_pipelines.inputs.tar_stream import DamagedTarError, TarStream
from data_pipelines.record import Unit
from janus_dist.config.pipeline import InputConfig
from janus_dist.data import images
from janus_dist.errors import DataError

SAMPLED = 20
"""Entries that are read of a unit."""
SAMPLED_UNITS = 8
"""Units that are read of an input."""
SAMPLED_MEMBERS = 200
"""Members that are read of a tar."""
SHOWN_KEYS = 4
"""Keys of an object that a message lists."""
ROLE_KEYS = ("from", "role")
"""Keys by which an object is recognised as a message of a conversation."""
IMAGE, BYTES, TEXT, CONVERSATION, NUMBER = "path of an image", "bytes", "text", "conversation", "number"
"""Kinds of values."""


def contents(config: InputConfig, units: Sequence[Unit]) -> dict[str, str]:
    """Return the names in the first entries of some units, each with the kind of its first value.

    The units are spread evenly over the input. The names are endings of members and keys of their JSON for tars, and
    endings of files for folders. Units that cannot be read are left out.
    """
    kinds: dict[str, str] = {}
    last = len(units) - 1
    for index in sorted({round(part * last / (SAMPLED_UNITS - 1)) for part in range(SAMPLED_UNITS)} if units else ()):
        unit = units[index]
        try:
            for entry in _entries(config, unit):
                for name, value in entry.items():
                    kind = kind_of_value(value)
                    if kind:
                        kinds.setdefault(str(name), kind)
        except (DataError, OSError, ValueError, KeyError, TypeError):  # damaged, or removed meanwhile
            continue
        for name in partition_columns(unit.path):
            kinds.setdefault(name, "name of a folder")
    return kinds


def kind_of_value(value: Any) -> str:
    """Return in words what a value is; empty for null and for an empty text."""
    match value:
        case None | "":
            return ""
        case bool() | int() | float():
            return NUMBER
        case str():
            return _kind_of_text(value)
        case bytes() | {"bytes": bytes()}:
            return BYTES
        case {"path": str()}:
            return IMAGE
        case [first, *_]:
            return _kind_of_list(first)
        case Mapping():
            return f"object with {', '.join(map(str, islice(value, SHOWN_KEYS)))}"
        case _:
            return type(value).__name__


def _kind_of_text(text: str) -> str:
    """Return in words what a text that is not empty holds."""
    if text.startswith("data:"):
        return "image as a data URI"
    return IMAGE if PurePosixPath(text).suffix.removeprefix(".").lower() in images.ENDINGS else TEXT


def _kind_of_list(first: Any) -> str:
    """Return in words what a list is, by its first item."""
    if isinstance(first, Mapping) and any(key in first for key in ROLE_KEYS):
        return CONVERSATION
    kind = kind_of_value(first)
    return kind if kind in (IMAGE, BYTES) else f"list of {kind or 'null'}"


def _entries(config: InputConfig, unit: Unit) -> Iterable[Mapping[str, Any]]:
    """Return the first entries of a unit, each as values by name."""
    match config.format:
        case "jsonl":
            return (row for _, row, _ in islice(jsonl.rows(config, unit), SAMPLED) if not isinstance(row, DataError))
        case "parquet":
            return _rows(unit)
        case "webdataset":
            return _members(unit)
        case "folders":
            suffixes = (PurePosixPath(name).suffix.removeprefix(".") for name in unit.names[:SAMPLED])
            return [{suffix: f"a.{suffix}"} for suffix in suffixes if suffix]
        case _:
            return []


def _rows(unit: Unit) -> Iterator[Mapping[str, Any]]:
    """Yield the first rows of a Parquet file with all of their columns."""
    with files.open_stream(unit.path, ahead=0) as file:
        for batch in pq.ParquetFile(file).iter_batches(SAMPLED, [unit.start], use_threads=False):
            yield from batch.to_pylist()
            return


def _members(unit: Unit) -> Iterator[Mapping[str, Any]]:
    """Yield the endings of a tar's members, and the values of its JSON members."""
    with files.open_stream(unit.path) as file:
        is_gzip = file.peek(2)[:2] == tar.GZIP
        stream = TarStream(cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_gzip else file)
        for _ in range(SAMPLED_MEMBERS):
            try:
                member = stream.next()
            except DamagedTarError:
                return
            if member is None:
                return
            ending = tar.split_name(member.name)[1]
            if not ending or member.kind != "file" or member.size > files.BUFFER_BYTES:
                continue
            if ending in images.ENDINGS:
                yield {ending: f"a.{ending}"}
            elif ending == "json":
                values = json.loads(stream.read(member))
                yield values if isinstance(values, dict) else {}
            else:
                yield {ending: _text_or_bytes(stream.read(member))}


def _text_or_bytes(content: bytes) -> str | bytes:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content
