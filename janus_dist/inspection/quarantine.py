"""The quarantine table for people: which folders have one, its rows as text and as CSV.

Invariant: what is shown is printable ASCII and text, whatever bytes a refused record began with.
"""

import csv
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TextIO

from janus_dist.errors import DataError
from janus_dist.inspection.inspect import QUARANTINE, Reject, kinds, quarantine
from janus_dist.inspection.render import visible
from janus_dist.storage import fs

CSV_COLUMNS = ("input", "source", "key", "kind", "reason", "records", "head")


def quarantine_folders(folder: str) -> list[str]:
    """Return FOLDER if it has a quarantine table, else the folders directly in it that have one.

    A run that failed has one without a manifest. DataError when there is none.
    """
    folder = folder.rstrip("/") or "/"
    names = fs.names(folder)
    if QUARANTINE in names:
        return [folder]
    folders = [f"{folder}/{name}" for name in names if _has_table(f"{folder}/{name}")]
    if not folders:
        raise DataError(
            f"no quarantine table in {folder}: neither {QUARANTINE} nor a folder with one",
            "give the folder of an input's shards or a data.root; jobs/prepare.py makes them",
        )
    return folders


def write_csv(folders: Iterable[str], out: TextIO, kind: str | None = None) -> None:
    """Write the rows of the folders' quarantine tables, of one kind of reason if given, as CSV with a header."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for folder in folders:
        name = folder.rpartition("/")[2]
        for reject in _of_kind(folder, kind):
            values = (reject.source, reject.key, reject.kind, reject.reason, reject.records, shown_head(reject))
            writer.writerow([name, *values])


def lines_of_table(folder: str, kind: str | None, shown: int) -> Iterator[str]:
    """Yield lines for people: how many records were refused for which kind of reason, and the first rows."""
    counted = kinds(quarantine(folder))
    parts = [f"{name} {number:,}" for name, number in sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))]
    yield f"{folder}: {sum(counted.values()):,} records refused" + (f" ({', '.join(parts)})" if parts else "")
    rows = _of_kind(folder, kind)
    for reject in islice(rows, shown):
        number = f", {reject.records:,} records" if reject.records > 1 else ""
        key, reason, source = (
            visible(text).replace("\n", "\\n") for text in (reject.key, reject.reason, reject.source)
        )
        yield f"  {key}  {reason}  ({source}{number})"
    left = sum(1 for _ in rows)
    if left:
        yield f"  and {left:,} more rows; --csv prints all"


def _of_kind(folder: str, kind: str | None) -> Iterator[Reject]:
    return (reject for reject in quarantine(folder) if kind is None or reject.kind == kind)


def shown_head(reject: Reject) -> str:
    """Return the first bytes of a refused record as ASCII, others than printable ones as hexadecimal escapes."""
    return "".join(chr(byte) if 32 <= byte < 127 and byte != 92 else f"\\x{byte:02x}" for byte in reject.head)


def _has_table(folder: str) -> bool:
    try:
        return fs.size(f"{folder}/{QUARANTINE}") is not None
    except NotADirectoryError:
        return False
