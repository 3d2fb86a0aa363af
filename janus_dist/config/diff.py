"""Differences between two trees of settings, by dotted keys.

Invariant: a list is one value, and so is an empty mapping; keys keep the order in which they are first met.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast


class Absent:
    """The value of a key that one side does not have."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT = Absent()


class Difference(NamedTuple):
    """A key whose values differ."""

    key: str
    before: Any
    """Value of the first tree; ABSENT where only the second has the key."""
    now: Any
    """Value of the second tree; ABSENT where only the first has the key."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of nested mappings, each key behind `prefix`."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        else:
            yield prefix + name, value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return the keys whose values differ between two trees, those that one side does not have included."""
    first, second = dict(flatten(before)), dict(flatten(now))
    pairs = (Difference(key, first.get(key, ABSENT), second.get(key, ABSENT)) for key in first | second)
    return [pair for pair in pairs if pair.before != pair.now]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the keys whose values differ, with both values; a key that one side does not have counts as None."""
    for key, *pair in differences(before, now):
        old, new = (None if value is ABSENT else value for value in pair)
        if old != new:
            yield key, old, new
