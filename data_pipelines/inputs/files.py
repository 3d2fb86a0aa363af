"""The files of an input, and the keys of what is in them.

Invariants: files come in the order of their paths, wherever they are; keys are safe as names in a tar and differ
between files.
"""

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from janus_dist.config.pipeline import InputConfig
from janus_dist.errors import DataError

MAGIC = re.compile(r"[*?\[]")
LONGEST_KEY = 80
READ_AHEAD_BYTES = 8 * 2**20
BUFFER_BYTES = 2**20


def find(of: InputConfig, endings: Sequence[str]) -> dict[str, int]:
    """Bytes of the input's files by their absolute path or URL, sorted; folders are searched for `endings`.

    One request for a thousand objects. DataError when a path or pattern names nothing.
    """
    found: dict[str, int] = {}
    for path in paths(of):
        files, name = fsspec.core.url_to_fs(path)
        files.invalidate_cache()
        if MAGIC.search(name):
            entries = files.glob(name, detail=True)
        elif files.isdir(name):
            inside: dict[str, Any] = files.find(name, detail=True)
            entries = {path: entry for path, entry in inside.items() if path.endswith(tuple(endings))}
        else:
            entries = {name: files.info(name)} if files.exists(name) else {}
        entries = {path: entry for path, entry in entries.items() if entry["type"] == "file"}
        if not entries:
            raise DataError(
                f"pipeline.inputs: nothing at {path}", f"it holds no file that ends with {_either(endings)}"
            )
        found |= {_url(files, path): int(entry["size"] or 0) for path, entry in entries.items()}
    return dict(sorted(found.items()))


def paths(of: InputConfig) -> tuple[str, ...]:
    """Paths and patterns of an input."""
    return (of.path,) if isinstance(of.path, str) else of.path


def key_of_file(of: InputConfig, path: str) -> str:
    """What keys of a file's records begin with: its path below what all paths share, without its ending."""
    folders = [_fixed_folder(one) for one in paths(of)]
    shared = folders[0]
    while not all(folder == shared or folder.startswith(f"{shared}/") for folder in folders):
        shared = shared.rpartition("/")[0]
    below = _plain(path).removeprefix(shared).lstrip("/")
    return safe_key(re.sub(r"(\.[A-Za-z]+)+$", "", below))


def safe_key(text: str) -> str:
    """A text as a key: letters, digits, `_`, `-` and `/` stay, all else is written as %XX, what is long ends in a hash.

    Plain webdataset takes what stands before the first dot of a member's name as its key.
    """
    encoded = quote(text.encode(errors="surrogateescape"), safe="/").replace(".", "%2E").replace("~", "%7E")
    encoded = "/".join(part for part in encoded.split("/") if part) or "%2F"
    if len(encoded) <= LONGEST_KEY:
        return encoded
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{encoded[: LONGEST_KEY - 17]}-{digest}"


def inside(folder: str, name: str) -> str:
    """The path of a file that an entry of the input names; DataError when it leads out of the folder."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "://" in name or "\0" in name:
        raise DataError(f"unsafe name: {name!r} is not a path inside {folder}")
    return f"{folder.rstrip('/')}/{name}"


def folder_of(path: str) -> str:
    """The folder that a file is in."""
    return path.rpartition("/")[0]


def open_stream(path: str) -> BinaryIO:
    """A file to read from its beginning to its end; from a store it is fetched some MiB at a time."""
    files, name = fsspec.core.url_to_fs(path)
    if isinstance(files, LocalFileSystem):
        return Path(name).open("rb")
    return io.BufferedReader(files.open(name, "rb", block_size=READ_AHEAD_BYTES, cache_type="readahead"), BUFFER_BYTES)


def _url(files: fsspec.AbstractFileSystem, name: str) -> str:
    return name if isinstance(files, LocalFileSystem) else files.unstrip_protocol(name)


def _plain(path: str) -> str:
    """A path as its file system says it: absolute, without a protocol."""
    return fsspec.core.url_to_fs(path)[1].rstrip("/")


def _fixed_folder(path: str) -> str:
    """The last folder of a path or pattern before what may vary: a folder itself, or that of a file."""
    name = _plain(path)
    fixed = MAGIC.split(name)[0]
    return fixed.rpartition("/")[0] if fixed != name or re.search(r"\.[A-Za-z]+$", name) else name


def _either(endings: Sequence[str]) -> str:
    return " or ".join([", ".join(endings[:-1]), endings[-1]] if len(endings) > 1 else endings)
