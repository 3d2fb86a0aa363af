"""The files of an input, on disks and in stores.

Invariants: files come in the order of their paths, wherever they are, and none that was asked for is left out silently;
a store that fails is never taken for damaged data; what an entry names is below the folder that it may name.
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
"""What may be a brace pattern; a name of a file with braces that is there is taken as it is."""
LONGEST_NAME = 255
"""Bytes of one name in a path, on every disk."""
LONGEST_PATH = 1024
"""Bytes, in S3."""
READ_AHEAD_BYTES = 8 * 2**20
BUFFER_BYTES = 2**20
SHOWN_NAMES = 3


@dataclass(frozen=True)
class Found:
    """A file of an input."""

    path: str
    """Absolute, or a URL."""
    size: int
    stem: str
    """Its path below what all paths of the input share, without its ending."""
    root: str
    """The folder of `path` that it was found below."""


@dataclass
class _Meter:
    """Counts the bytes that this process read from files of inputs, for the progress of its job."""

    read_bytes: int = 0


_METER = _Meter()


def bytes_read() -> int:
    """Return how many bytes this process read from files of inputs so far; a job takes the difference."""
    return _METER.read_bytes


class UnreachableError(OSError):
    """A store or a disk failed to give bytes that it has, or no longer has them."""


def find(config: InputConfig, endings: Sequence[str]) -> list[Found]:
    """The input's files in the order of their paths; folders are searched for `endings`, without hidden files.

    One request to a store lists a thousand objects. DataError when a path or pattern names nothing, or two files
    cannot have keys of their own.
    """
    listings = [_listing(path, endings) for path in ((config.path,) if isinstance(config.path, str) else config.path)]
    shared = _shared_folder([root for root, _ in listings])
    roots = {path: root for root, sizes in listings for path in sizes}
    sizes = {path: size for _, sizes in listings for path, size in sizes.items()}
    files = [Found(path, sizes[path], _stem(path, shared, endings), roots[path]) for path in sorted(sizes)]
    by_stem: dict[str, str] = {}
    for file in files:
        if by_stem.setdefault(file.stem, file.path) != file.path:
            raise DataError(
                f"{by_stem[file.stem]} and {file.path} differ only by their endings: their keys would be the same",
                "give a pattern that names one of them",
            )
    return files


def mean_size_of_others(config: InputConfig, endings: Sequence[str], path: str) -> float | None:
    """Return the mean bytes of the input's files other than `path`; None when there are none or they cannot be listed.

    A process lists an input once.
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
    """The path of a file that an entry of the input names; DataError when it is not below the folder.

    A path that begins with the folder is one below it, too.
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
        raise RecordError("unsafe name", f"{short(name)} has {len(content)} bytes, no file's name is that long")
    return f"{folder}/{below}"


def image_folder(config: InputConfig, unit: Unit) -> str:
    """What paths of images in a unit's file are relative to."""
    return config.images or unit.path.rpartition("/")[0]


def open_stream(path: str, ahead: int = READ_AHEAD_BYTES) -> io.BufferedReader:
    """A file to read from its beginning to its end; from a store it is fetched `ahead` bytes at a time.

    Without `ahead`, what is asked for is fetched as it is asked for. FileNotFoundError when there is none; reading
    raises UnreachableError and no other OSError.
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
    """What stands for an error of a disk, of fsspec, aiohttp, botocore or asyncio."""
    return UnreachableError(f"{path} cannot be read: {type(error).__name__}: {error}")


class _InputStream(io.RawIOBase):
    """The bytes of a file. Its failures have a type of their own, since decompressors raise OSError for bad data."""

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
    """(folder that they are below, bytes of files) of one path or pattern, all as absolute paths or URLs."""
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
    """Return the bytes of the files that a brace pattern names; each of their folders is listed once.

    DataError when one of the names is not there.
    """
    sizes: dict[str, int] = {}
    listed: dict[str, dict[str, Any]] = {}
    names = expand(pattern)
    if names == [pattern]:
        raise DataError(f"pipeline.inputs: nothing at {_url(files, pattern)}, and its braces are no pattern", FORMS)
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
    """Bytes of the files below a folder, or of the file itself whatever its ending."""
    entries = _walked(files, name) if _is_local(files) else files.find(name, detail=True)
    sizes: dict[str, int] = {}
    for path, entry in entries.items():
        below = path[len(name) :]
        if not below or ("/." not in below and below.endswith(tuple(endings))):
            sizes |= _size(path, entry, endings)
    return sizes


def _walked(files: LocalFileSystem, name: str) -> dict[str, Any]:
    """Entries of the files below a folder of a disk, or of the file; fsspec leaves out folders that it cannot list."""
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
    """Return the bytes of a file by its name, nothing for a folder.

    What is neither is refused, but for a format of which each file is a record: that one record is refused later.
    """
    if "::" in name:
        raise DataError(f"pipeline.inputs: {name} cannot be read, '::' stands for a chain of files", "rename the file")
    if entry["type"] != "file" and entry["type"] != "directory" and "" not in endings:
        raise DataError(
            f"pipeline.inputs: {name} is {entry['type']}, not a file", "remove it, or name others in `path`"
        )
    return {} if entry["type"] == "directory" else {name: int(entry["size"] or 0)}


def _folder_contents(files: Any, name: str, endings: Sequence[str]) -> str:
    """What stands where nothing of the format was found, for the user to see the mistake."""
    folder = _fixed_folder(name) if MAGIC.search(name) else name
    missing = ""
    while not files.isdir(folder) and _parent(folder) != folder:
        missing, folder = folder.rpartition("/")[2], _parent(folder)
    names = sorted(path.rstrip("/").rpartition("/")[2] for path in files.ls(folder, detail=False))
    close = difflib.get_close_matches(missing, names, 1)
    if close:
        return f"{_url(files, folder)} has {close[0]}, no {missing}"
    shown = f"it has {', '.join(names[:SHOWN_NAMES])}" if names else "it is empty"
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    missing_name = missing or (
        name.rpartition("/")[2] if MAGIC.search(name) else f"file that ends with {_joined_by_or(endings)}"
    )
    return f"{_url(files, folder)} has no {missing_name}: {shown}{more}"


def _stem(path: str, shared: str, endings: Sequence[str]) -> str:
    """A path below a folder, without its ending."""
    ending = max((ending for ending in endings if path.endswith(ending)), key=len, default="")
    below = path.removeprefix(shared).lstrip("/")
    return below[: len(below) - len(ending)] or below


def _shared_folder(folders: Sequence[str]) -> str:
    """The longest folder that all are in."""
    split = zip(*(folder.rstrip("/").split("/") for folder in folders), strict=False)
    return "/".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, split))


def _fixed_folder(pattern: str) -> str:
    """The last folder before what may vary."""
    return re.split(r"[*?\[{]", pattern)[0].rpartition("/")[0]


def _parent(name: str) -> str:
    return name.rpartition("/")[0] or ("/" if name.startswith("/") else name)


def _is_local(files: Any) -> bool:
    return isinstance(files, LocalFileSystem)


def _url(files: Any, name: str) -> str:
    return name if _is_local(files) else files.unstrip_protocol(name)


def short(name: str) -> str:
    """A name as it stands in a reason."""
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


def _joined_by_or(endings: Sequence[str]) -> str:
    return " or ".join([", ".join(endings[:-1]), endings[-1]] if len(endings) > 1 else endings)
