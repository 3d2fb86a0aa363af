"""Brace patterns as shells and webdataset expand them: `{0000..0012}.tar`, `{train,val}/*.parquet`.

Invariant: every name of a pattern is an existing file, or an error names one that is missing.
"""

from collections.abc import Iterator
from itertools import islice

from braceexpand import braceexpand

from janus_dist.errors import DataError

MOST_NAMES = 200_000
"""Most names that one pattern may expand to."""
FORMS = "a range is {0000..0012}, a choice is {a,b}"


def expand(path: str) -> list[str]:
    """Return the names that a path's braces expand to, in their order; the path itself when it has no braces.

    Raises DataError when the braces are unbalanced or expand to more than MOST_NAMES names.
    """
    if "{" not in path:
        return [path]
    names = list(islice(_names(path), MOST_NAMES + 1))
    if len(names) > MOST_NAMES:
        raise DataError(
            f"pipeline.inputs: {path} expands to more than {MOST_NAMES:,} names",
            "give a pattern with *, or the folder of the files",
        )
    return list(dict.fromkeys(names))


def _names(path: str) -> Iterator[str]:
    """Yield the names of a pattern; a backslash is part of a name."""
    try:
        yield from braceexpand(path, escape=False)
    except ValueError as error:
        raise DataError(f"pipeline.inputs: {path}: {error}", FORMS) from error
