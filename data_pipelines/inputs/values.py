"""Conversion of single values of an entry: text, JSON, and their names in messages.

Invariant: any value is returned as the requested type or raises a DataError.
"""

from typing import Any

from janus_dist.errors import RecordError
from janus_dist.storage import json_lines

LONGEST_SHOWN = 100
"""Characters of a value that a message shows."""


def words(value: Any, what: str) -> str:
    """Return the text of a value, empty for None; raises DataError when it is not a text."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return utf8(value, what)
    if not isinstance(value, str):
        raise RecordError("not text", f"{what} is {kind(value)}")
    return value


def utf8(content: bytes, what: str) -> str:
    """Decode bytes; raises DataError when they are not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8", f"{what} at byte {error.start}") from error


def parsed(content: bytes, what: str) -> Any:
    """Parse JSON; raises DataError when it is not JSON."""
    try:
        return json_lines.parse(content)
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8", f"{what} at byte {error.start}") from error
    except ValueError as error:
        raise RecordError("not JSON", f"{what}: {error}") from error


def kind(value: Any) -> str:
    """Return the type of a value, for a message."""
    if value is None or value == "":
        return "absent" if value is None else "empty"
    return type(value).__name__
