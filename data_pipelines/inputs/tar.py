"""WebDataset tars as img2dataset writes them: members of one key (what stands before the first dot) are one entry.

Invariant: every member belongs to a record or a reject. A tar that ends in the middle, or in a header that is none,
says so; Python's own reader would take either for the end.
"""

import gzip
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from data_pipelines.inputs import entries, files
from data_pipelines.record import Picture, Record, Unit
from janus_dist.config.pipeline import InputConfig
from janus_dist.data.inspect import Reject
from janus_dist.data.sample import TAR_BLOCK
from janus_dist.errors import DataError

ENDINGS = (".tar", ".tar.gz", ".tgz")
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2")
LONGEST_MEMBER_BYTES = 2**30
MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
HEAD_BYTES = 64


@dataclass
class _Entry:
    """Members of one key."""

    key: str
    contents: dict[str, bytes] = field(default_factory=dict)
    """By ending."""
    fault: str = ""


def units(of: InputConfig, shard_samples: int) -> list[Unit]:
    """Each tar whole: it has no index."""
    return [Unit(path, size) for path, size in files.find(of, ENDINGS).items()]


def records(of: InputConfig, unit: Unit) -> Iterator[Record | Reject]:
    """The records of a tar, in their order."""
    prefix, folder = files.key_of_file(of, unit.path), files.folder_of(unit.path)
    seen: set[str] = set()
    for entry in _entries(unit):
        source = f"{unit.path}:{entry.key}"
        key = f"{prefix}/{files.safe_key(entry.key)}"
        head = next(iter(entry.contents.values()), b"")[:HEAD_BYTES]
        try:
            if entry.fault:
                raise DataError(entry.fault)
            if entry.key in seen:
                raise DataError(f"duplicate key: {entry.key} was there before")
            seen.add(entry.key)
            yield _record(of, entry, key, source, folder)
        except DataError as error:
            yield Reject(source, key, error.message, head)


def _record(of: InputConfig, entry: _Entry, key: str, source: str, folder: str) -> Record:
    values: dict[str, Any] = {}
    if "json" in entry.contents:
        try:
            found = json.loads(entries.utf8(entry.contents["json"], f"{entry.key}.json"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {entry.key}.json: {error}") from error
        if not isinstance(found, dict):
            raise DataError(f"not JSON: {entry.key}.json holds no object")
        values |= found
    named = of.columns.get("image")
    images = [ending for ending in sorted(entry.contents, key=_order) if _is_image(ending, named)]
    values["image"] = [Picture(f"{source}.{ending}", entry.contents[ending]) for ending in images]
    ending = of.columns.get("caption", "txt")
    if ending in entry.contents:
        values["caption" if ending == "txt" else ending] = entries.utf8(entry.contents[ending], f"{entry.key}.{ending}")
    return entries.record(of.model_copy(update={"columns": _without_image(of)}), values, key, source, folder)


def _entries(unit: Unit) -> Iterator[_Entry]:
    """Members grouped by key, in their order; what is no member of a key stands alone, with its fault."""
    current: _Entry | None = None
    for name, content in _members(unit):
        match = MEMBER.fullmatch(name) if isinstance(content, bytes) else None
        if match is None:
            if current is not None:
                yield current
                current = None
            fault = (
                content.message if isinstance(content, DataError) else f"no key: {name!r} has no ending behind a dot"
            )
            yield _Entry(name, {}, fault)
            continue
        key, ending = match[1], match[2].lower()
        if current is not None and current.key != key:
            yield current
            current = None
        current = current or _Entry(key)
        if ending in current.contents:
            current.fault = f"duplicate key: {name} is there twice"
        assert isinstance(content, bytes)
        current.contents[ending] = content
    if current is not None:
        yield current


def _members(unit: Unit) -> Iterator[tuple[str, bytes | DataError]]:
    """(name, content) of the files in a tar; DataError for what cannot or must not be read."""
    with files.open_stream(unit.path) as opened:
        file = opened if unit.path.endswith(".tar") else gzip.GzipFile(fileobj=opened)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # pyright: ignore[reportAttributeAccessIssue] - or it would keep all of them
                    if not member.isdir():
                        yield member.name, _content(tar, member)
                _check_end(file, tar.offset)  # pyright: ignore[reportArgumentType]
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the store, not of the data
            yield "", DataError(f"damaged: {error}; what stands behind it is lost")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | DataError:
    name = member.name
    if name.startswith("/") or ".." in name.split("/"):
        return DataError(f"unsafe name: {name!r}")
    if not member.isreg():
        return DataError(f"unsafe name: {name!r} is a link or a device")
    try:
        name.encode()
    except UnicodeEncodeError:
        return DataError(f"not UTF-8: the name {name!r}")
    if member.size > LONGEST_MEMBER_BYTES:
        return DataError(f"too large: {name} has {member.size} bytes, at most {LONGEST_MEMBER_BYTES} are read")
    file = tar.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise tarfile.ReadError(f"the tar ends inside {name}")
    return content


def _check_end(file: BinaryIO, offset: int) -> None:
    """Raise ReadError unless a block of zeros stands where the reader stopped."""
    file.seek(offset)
    block = file.read(TAR_BLOCK)
    if len(block) < TAR_BLOCK:
        raise tarfile.ReadError(f"the tar ends at byte {offset} without the block that ends a tar")
    if any(block):
        raise tarfile.ReadError(f"no member begins at byte {offset}")


def _is_image(ending: str, named: str | None) -> bool:
    last = ending.rsplit(".", 1)[-1]
    return last == named or ending == named if named else last in IMAGES


def _order(ending: str) -> tuple[int, str]:
    """Images of one key in the order of their numbers: `jpg`, `1.jpg`, `2.jpg`, `10.jpg`."""
    number = ending.split(".", 1)[0]
    return (int(number) if number.isdecimal() else 0, ending)


def _without_image(of: InputConfig) -> dict[Any, str]:
    """Names of columns, but that of the image, which is an ending here."""
    return {what: name for what, name in of.columns.items() if what != "image"}
