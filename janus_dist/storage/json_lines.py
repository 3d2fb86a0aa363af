"""JSON Lines: cut a file into lines and read the value of a line, in one way for pipelines, evaluation and own records.

Invariant: only a line feed ends a line (U+2028 and U+0085 may stand inside a JSON string); a byte order mark and blank
lines are not entries.
"""

import codecs
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

BLANK = b" \t\r\n\v\f"
"""Bytes that are removed around a line."""


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file that a run appends to (metrics, events, left-out steps), in their order.

    Empty when there is no file. A line that is not an object is left out: a kill or a full disk cuts lines short.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    records: list[dict[str, Any]] = []
    for _, line in lines(content):
        with suppress(ValueError):
            value = parse(line)
            if isinstance(value, dict):
                records.append(value)
    return records


def lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the line, counted from 1; its bytes) for each line of a file that is not blank."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if stripped := strip(line, is_first=number == 1):
            yield number, stripped


def strip(line: bytes, is_first: bool) -> bytes:
    """Return a line without white space around it and, where it begins a file, without the byte order mark."""
    return (line.removeprefix(codecs.BOM_UTF8) if is_first else line).strip(BLANK)


def parse(line: bytes) -> Any:
    """Return the value of a line; ValueError says why there is none (UnicodeDecodeError: it is not UTF-8)."""
    try:
        return json.loads(line.decode())
    except RecursionError as error:
        raise ValueError(str(error)) from error
