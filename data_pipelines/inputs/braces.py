"""Brace patterns as shells and webdataset expand them: `{0000..0012}.tar`, `{train,val}/*.parquet`.

Invariant: of a pattern, all names are files that are there, or an error names one that is not.
"""

from collections.abc import Iterator
from itertools import islice

from braceexpand import braceexpand

from janus_dist.errors import DataError

MOST_NAMES = 200_000
"""Names that one pattern may stand for."""
FORMS = "a range is {0000..0012}, a choice is {a,b}"


def expand(path: str) -> list[str]:
    """Return the names that a path's braces stand for, in their order; the path itself when it has none.

    DataError when the braces do not fit together or stand for more than MOST_NAMES names.
    """
    if "{" not in path:
        return [path]
    names = list(islice(_names(path), MOST_NAMES + 1))
    if len(names) > MOST_NAMES:
        raise DataError(
            f"pipeline.inputs: {path} stands for more than {MOST_NAMES:,} names",
            "give a pattern with *, or the folder of the files",
        )
    return list(dict.fromkeys(names))


def _names(path: str) -> Iterator[str]:
    """Yield the names of a pattern; a backslash is part of a name."""
    try:
        yield from braceexpand(path, escape=False)
    except ValueError as error:
        raise DataError(f"pipeline.inputs: {path}: {error}", FORMS) from error
