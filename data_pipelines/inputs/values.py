"""Single values of an entry: text, JSON, and what they are called in a reason.

Invariant: whatever the value is, it is returned as its type or is a DataError.
"""

from typing import Any

from janus_dist.errors import RecordError
from janus_dist.storage import json_lines

LONGEST_SHOWN = 100
"""Characters of a value in a reason."""


def words(value: Any, what: str) -> str:
    """Text of a value, empty for none; DataError when it is something else."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return utf8(value, what)
    if not isinstance(value, str):
        raise RecordError("not text", f"{what} is {kind(value)}")
    return value


def utf8(content: bytes, what: str) -> str:
    """Bytes as text; DataError when they are no UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8", f"{what} at byte {error.start}") from error


def parsed(content: bytes, what: str) -> Any:
    """The value that JSON stands for; DataError when it stands for none."""
    try:
        return json_lines.parse(content)
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8", f"{what} at byte {error.start}") from error
    except ValueError as error:
        raise RecordError("not JSON", f"{what}: {error}") from error


def kind(value: Any) -> str:
    """Return what a value is, for a reason."""
    if value is None or value == "":
        return "absent" if value is None else "empty"
    return type(value).__name__
