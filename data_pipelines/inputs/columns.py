"""Columns that rules of a recipe (`where`) may name: those of the records, and those in the names of folders.

Invariant: a rule on a column that an input does not have is an error that lists the columns it has.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from data_pipelines.steps.keep import COMPUTED
from janus_dist.config.pipeline import KeepRule
from janus_dist.errors import DataError

PARTITION = re.compile(r"([A-Za-z_][\w.-]*)=([^/]*)")
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
SHOWN_NAMES = 20


def partition_columns(path: str) -> dict[str, str]:
    """Return the columns in a path's folders, as Hive and Spark write them: `lang=en/part-0.parquet`."""
    pairs = (PARTITION.fullmatch(part) for part in path.split("/"))
    columns = {pair[1]: unquote(pair[2]) for pair in pairs if pair}
    return {name: value for name, value in columns.items() if value != NULL_PARTITION}


def rule_columns(where: Mapping[str, KeepRule]) -> list[str]:
    """Return the names in `where` that are columns of the input rather than values that a step computes."""
    computed = {name for names in COMPUTED.values() for name in names}
    return [name for name in where if name not in computed]


def check_rule_columns(input_name: str, where: Mapping[str, KeepRule], names: Iterable[str]) -> None:
    """Raise DataError for the first rule on a column that is not among `names`, those with a value in some record."""
    known = sorted(set(names))
    absent = [name for name in rule_columns(where) if name not in known]
    if not absent:
        return
    close = difflib.get_close_matches(absent[0], known, 1)
    more = f" and {len(known) - SHOWN_NAMES} more" if len(known) > SHOWN_NAMES else ""
    columns = f"its columns are {', '.join(known[:SHOWN_NAMES])}{more}" if known else "its records have no columns"
    hint = f"; did you mean {close[0]!r}?" if close else ", or leave the rule out"
    raise DataError(
        f"{input_name}: no record has a value for {absent[0]!r}, which `where` asks for, so all would be dropped",
        f"{columns}{hint}",
    )
