"""The files of an input, on disks and in stores.

Invariants: files are in the order of their paths, wherever they are, and no requested file is left out silently; a
failing store is never mistaken for damaged data; a file that an entry names is below the folder of such files.
"""

import difflib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError
from fsspec.implementations.local import LocalFileSystem

from data_pipelines.inputs.braces import FORMS, expand
from data_pipelines.inputs.local_files import local_entry
from data_pipelines.record import Unit
from janus_dist.config.pipeline import InputConfig
from janus_dist.errors import DataError, RecordError

MAGIC = re.compile(r"[*?\[]")
BRACES = re.compile(r"\{.*[,.].*\}")
"""Form of a brace pattern; the name of an existing file is no pattern even when it has braces."""
LONGEST_NAME = 255
"""Most bytes of one name in a path, on every disk."""
LONGEST_PATH = 1024
"""Most bytes of a path, in S3."""
READ_AHEAD_BYTES = 8 * 2**20
"""Bytes that are fetched from a store at a time."""
BUFFER_BYTES = 2**20
SHOWN_NAMES = 3
"""Names of files that a message lists."""


@dataclass(frozen=True)
class InputFile:
    """A file of an input."""

    path: str
    """Absolute path or URL."""
    size: int
    """Bytes."""
    stem: str
    """Path below the folder that all paths of the input share, without the ending."""
    root: str
    """The folder in which it was searched, a prefix of `path`."""


@dataclass
class _Meter:
    """A counter of the bytes that this process read from files of inputs, for the progress of its job."""

    read_bytes: int = 0


_METER = _Meter()


def bytes_read() -> int:
    """Return how many bytes this process has read from files of inputs; a job uses the difference of two calls."""
    return _METER.read_bytes


class UnreachableError(OSError):
    """A failure of a store or a disk to return bytes that it has or had."""


def find(config: InputConfig, endings: Sequence[str]) -> list[InputFile]:
    """Return the input's files in the order of their paths; folders are searched for `endings`, without hidden files.

    One request to a store lists a thousand objects. Raises DataError when a path or pattern names no file, or when the
    keys of two files' records would be the same.
    """
    listings = [_listing(path, endings) for path in ((config.path,) if isinstance(config.path, str) else config.path)]
    shared = _shared_folder([root for root, _ in listings])
    roots = {path: root for root, sizes in listings for path in sizes}
    sizes = {path: size for _, sizes in listings for path, size in sizes.items()}
    files = [InputFile(path, sizes[path], _stem(path, shared, endings), roots[path]) for path in sorted(sizes)]
    by_stem: dict[str, str] = {}
    for file in files:
        if by_stem.setdefault(file.stem, file.path) != file.path:
            raise DataError(
                f"{by_stem[file.stem]} and {file.path} differ only by their endings: their keys would be the same",
                "give a pattern that names one of them",
            )
    return files


def mean_size_of_others(config: InputConfig, endings: Sequence[str], path: str) -> float | None:
    """Return the mean bytes of the input's files other than `path`; None without others or when they cannot be listed.

    A process lists an input only once.
    """
    try:
        sizes = _known_sizes((config.path,) if isinstance(config.path, str) else config.path, tuple(endings))
    except DataError:
        return None
    others = len(sizes) - (path in sizes)
    return (sum(sizes.values()) - sizes.get(path, 0)) / others if others else None


@lru_cache(maxsize=8)
def _known_sizes(paths: tuple[str, ...], endings: tuple[str, ...]) -> dict[str, int]:
    return {name: size for path in paths for name, size in _listing(path, endings)[1].items()}


def inside(folder: str, name: str) -> str:
    """Return the path of a file that an entry of the input names; raises DataError when it is not below the folder.

    `name` is relative to the folder, or a path that begins with the folder.
    """
    folder = folder.rstrip("/")
    parts = [part for part in name.removeprefix(f"{folder}/").split("/") if part != "."]
    below = "/".join(parts)
    try:
        content = below.encode()
    except UnicodeEncodeError as error:
        raise RecordError("not UTF-8", f"the path {short(name)}") from error
    if not below or not parts[0] or not parts[-1] or ".." in parts or re.search("://|::|\0", below):
        raise RecordError("unsafe name", f"{short(name)} is not a path inside {folder or '/'}")
    if len(content) > LONGEST_PATH or max(len(part.encode()) for part in parts) > LONGEST_NAME:
        raise RecordError("unsafe name", f"{short(name)} has {len(content)} bytes, longer than the name of any file")
    return f"{folder}/{below}"


def image_folder(config: InputConfig, unit: Unit) -> str:
    """Return the folder that paths of images in a unit's file are relative to."""
    return config.images or unit.path.rpartition("/")[0]


def open_stream(path: str, ahead: int = READ_AHEAD_BYTES) -> io.BufferedReader:
    """Open a file to be read from its beginning to its end; from a store it is fetched `ahead` bytes at a time.

    With `ahead=0`, each read is one request. Raises FileNotFoundError when the file does not exist, and
    UnreachableError when it cannot be opened; reading raises UnreachableError and no other OSError.
    """
    files, name = fsspec.core.url_to_fs(path)
    cache: Any = {"cache_type": "readahead", "block_size": ahead} if ahead else {"cache_type": "none"}
    try:
        opened = io.FileIO(name) if _is_local(files) else files.open(name, "rb", **cache)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise _unreachable_error(path, error) from error
    return io.BufferedReader(_InputStream(path, opened), BUFFER_BYTES)


def _unreachable_error(path: str, error: Exception) -> UnreachableError:
    """Return our error for an error of a disk, of fsspec, aiohttp, botocore or asyncio."""
    return UnreachableError(f"{path} cannot be read: {type(error).__name__}: {error}")


class _InputStream(io.RawIOBase):
    """The bytes of a file; its failures are UnreachableErrors, since decompressors raise OSError for bad data."""

    def __init__(self, path: str, opened: Any):
        self.path, self.opened = path, opened

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            number = self.opened.readinto(buffer)
            _METER.read_bytes += number or 0
            return number
        except Exception as error:
            raise _unreachable_error(self.path, error) from error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.opened.seek(offset, whence)

    def tell(self) -> int:
        return self.opened.tell()

    def close(self) -> None:
        if not self.closed:
            self.opened.close()
        super().close()


def _listing(path: str, endings: Sequence[str]) -> tuple[str, dict[str, int]]:
    """Return (searched folder, bytes by file) of one path or pattern, all as absolute paths or URLs.

    Raises DataError when there is no such file, or when it cannot be listed.
    """
    try:
        files, name = fsspec.core.url_to_fs(path)
        files.invalidate_cache()
        root, sizes = _search(files, name, endings)
        if not sizes:
            raise DataError(f"pipeline.inputs: nothing at {path}", _folder_contents(files, name, endings))
    except (OSError, ValueError, ImportError, BotoCoreError) as error:
        raise DataError(f"pipeline.inputs: {path} cannot be listed: {type(error).__name__}: {error}") from error
    return _url(files, root), {_url(files, file_name): size for file_name, size in sizes.items()}


def _search(files: Any, name: str, endings: Sequence[str]) -> tuple[str, dict[str, int]]:
    """Return (searched folder, bytes by file) of one path or pattern."""
    if BRACES.search(name) and not files.exists(name):
        return _fixed_folder(name), _search_names(files, name, endings)
    if not MAGIC.search(name) or files.exists(name):
        sizes = _below(files, name, endings)
        return (_parent(name) if list(sizes) == [name] else name), sizes
    sizes = {}
    for match_name, entry in files.glob(name, detail=True).items():
        sizes |= (
            _below(files, match_name, endings)
            if _is_local(files) or entry["type"] == "directory"
            else _size(match_name, entry, endings)
        )
    return _fixed_folder(name), sizes


def _search_names(files: Any, pattern: str, endings: Sequence[str]) -> dict[str, int]:
    """Return the bytes of the files that a brace pattern names, by file; each of their folders is listed once.

    Raises DataError when one of the files does not exist.
    """
    sizes: dict[str, int] = {}
    listed: dict[str, dict[str, Any]] = {}
    names = expand(pattern)
    if names == [pattern]:
        raise DataError(f"pipeline.inputs: nothing at {_url(files, pattern)}, and its braces are not a pattern", FORMS)
    for name in names:
        folder = _parent(name)
        if folder not in listed and not MAGIC.search(name):
            entries = files.ls(folder, detail=True) if files.isdir(folder) else []
            listed[folder] = {entry["name"].rstrip("/"): entry for entry in entries}
        entry = listed.get(folder, {}).get(name.rstrip("/"))
        is_file = entry is not None and entry["type"] == "file"
        matches = _size(name, entry, endings) if entry is not None and is_file else _search(files, name, endings)[1]
        if not matches:
            raise DataError(
                f"pipeline.inputs: nothing at {_url(files, name)}, one of {len(names):,} names of {pattern}",
                _folder_contents(files, name, endings),
            )
        sizes |= matches
    return sizes


def _below(files: Any, name: str, endings: Sequence[str]) -> dict[str, int]:
    """Return the bytes of the files below a folder, or of the file itself with any ending, by file."""
    entries = _walked(files, name) if _is_local(files) else files.find(name, detail=True)
    sizes: dict[str, int] = {}
    for path, entry in entries.items():
        below = path[len(name) :]
        if not below or ("/." not in below and below.endswith(tuple(endings))):
            sizes |= _size(path, entry, endings)
    return sizes


def _walked(files: LocalFileSystem, name: str) -> dict[str, Any]:
    """Return the entries of the files below a folder of a disk, or of the file.

    fsspec would leave out folders that it cannot list. Raises DataError for a link to a folder.
    """
    if not files.isdir(name):
        return {name: local_entry(name)} if os.path.lexists(name) else {}
    entries: dict[str, Any] = {}
    for folder, folders, names in os.walk(name, onerror=_raise):
        for path in (f"{folder}/{path}" for path in folders):
            if files.islink(path):
                what = "is a link to a folder, which is not searched"
                raise DataError(f"pipeline.inputs: {path} {what}", "name its target in `path`")
        entries |= {path: local_entry(path) for path in (f"{folder}/{path}" for path in names)}
    return entries


def _raise(error: OSError) -> None:
    raise error


def _size(name: str, entry: dict[str, Any], endings: Sequence[str]) -> dict[str, int]:
    """Return the bytes of a file by its name; empty for a folder.

    Raises DataError for anything else, but not for a format of which each file is a record: then that record alone is
    refused later.
    """
    if "::" in name:
        raise DataError(
            f"pipeline.inputs: {name} cannot be read: '::' separates the parts of a chain of files", "rename the file"
        )
    if entry["type"] != "file" and entry["type"] != "directory" and "" not in endings:
        raise DataError(
            f"pipeline.inputs: {name} is {entry['type']}, not a file", "remove it, or name others in `path`"
        )
    return {} if entry["type"] == "directory" else {name: int(entry["size"] or 0)}


def _folder_contents(files: Any, name: str, endings: Sequence[str]) -> str:
    """Return in words what a folder holds where no file was found, so that the user sees the mistake."""
    folder = _fixed_folder(name) if MAGIC.search(name) else name
    missing = ""
    while not files.isdir(folder) and _parent(folder) != folder:
        missing, folder = folder.rpartition("/")[2], _parent(folder)
    names = sorted(path.rstrip("/").rpartition("/")[2] for path in files.ls(folder, detail=False))
    close = difflib.get_close_matches(missing, names, 1)
    if close:
        return f"{_url(files, folder)} has {close[0]}, but no {missing}"
    shown = f"it has {', '.join(names[:SHOWN_NAMES])}" if names else "it is empty"
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    missing_name = missing or (
        name.rpartition("/")[2] if MAGIC.search(name) else f"file that ends with {_joined_by_or(endings)}"
    )
    return f"{_url(files, folder)} has no {missing_name}: {shown}{more}"


def _stem(path: str, shared: str, endings: Sequence[str]) -> str:
    """Return a path below a folder, without its ending."""
    ending = max((ending for ending in endings if path.endswith(ending)), key=len, default="")
    below = path.removeprefix(shared).lstrip("/")
    return below[: len(below) - len(ending)] or below


def _shared_folder(folders: Sequence[str]) -> str:
    """Return the longest path that contains all folders."""
    split = zip(*(folder.rstrip("/").split("/") for folder in folders), strict=False)
    return "/".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, split))


def _fixed_folder(pattern: str) -> str:
    """Return the last folder before the variable part of a pattern."""
    return re.split(r"[*?\[{]", pattern)[0].rpartition("/")[0]


def _parent(name: str) -> str:
    return name.rpartition("/")[0] or ("/" if name.startswith("/") else name)


def _is_local(files: Any) -> bool:
    return isinstance(files, LocalFileSystem)


def _url(files: Any, name: str) -> str:
    return name if _is_local(files) else files.unstrip_protocol(name)


def short(name: str) -> str:
    """Return a name quoted and shortened for a message."""
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


def _joined_by_or(endings: Sequence[str]) -> str:
    return " or ".join([", ".join(endings[:-1]), endings[-1]] if len(endings) > 1 else endings)
