"""JSON Lines: one parser of lines and values for pipelines, evaluation and the records of runs.

Invariant: only a line feed ends a line (a JSON string may contain U+2028 and U+0085); a byte order mark and blank lines
are not entries.
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
    """Return the objects of a file that a run appends to (metrics, events, skipped steps), in their order.

    The result is empty when the file does not exist. A line that is not an object is left out: a kill or a full disk
    cuts lines short.
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
    """Yield (line number, counted from 1; bytes of the line) for each line of a file that is not blank."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if stripped := strip(line, is_first=number == 1):
            yield number, stripped


def strip(line: bytes, is_first: bool) -> bytes:
    """Return a line without surrounding white space and, if it is the first, without the byte order mark."""
    return (line.removeprefix(codecs.BOM_UTF8) if is_first else line).strip(BLANK)


def parse(line: bytes) -> Any:
    """Return the value of a line; raise ValueError when it is not JSON (UnicodeDecodeError when it is not UTF-8)."""
    try:
        return json.loads(line.decode())
    except RecursionError as error:
        raise ValueError(str(error)) from error
