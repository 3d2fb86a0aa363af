"""WebDataset tars as img2dataset writes them: members of one key (the name before the first dot) are one entry.

Invariants: every member belongs to a record or a reject, except for the notes of macOS about others (`._a.jpg`); only
the members of one entry that a record is made of are in memory.
"""

import gzip
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from data_pipelines.inputs import entries, files, media
from data_pipelines.inputs.account import NOT_USED, edited, is_input
from data_pipelines.inputs.files import short
from data_pipelines.inputs.keys import record_key, safe_key
from data_pipelines.inputs.tar_stream import DamagedTarError, Member, TarStream
from data_pipelines.inputs.values import parsed, utf8
from data_pipelines.record import Picture, Record, Unit
from janus_dist.config.pipeline import InputConfig
from janus_dist.data import images
from janus_dist.data.sample import TAR_BLOCK
from janus_dist.errors import DataError, RecordError
from janus_dist.inspection.inspect import Reject

ENDINGS = (".tar", ".tar.gz", ".tgz")
LONGEST_ENTRY_BYTES = 2**30
"""Most bytes of the members of an entry that are read."""
USUAL_BYTES = 50_000
"""Bytes of an entry, assumed where none could be read: a photograph as img2dataset stores it."""
NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
"""Key and ending of a member, as webdataset splits them."""
NUMBER = re.compile(r"(\d{1,9})\.")
SHOWN_ENDINGS = 8
GZIP = b"\x1f\x8b"
USTAR = slice(257, 262)
"""Bytes of a tar's header that identify it as a tar."""
CODECS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of compressed files that are not read."""


@dataclass
class _Entry:
    """The members of one key."""

    key: str
    fault: RecordError | None = None
    """The first error of a member."""
    is_last: bool = False
    """Whether nothing that follows can be read, since the tar is damaged in this entry or behind it."""
    endings: list[str] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)
    """Contents of the members that a record is made of, by ending."""


def units(config: InputConfig, shard_samples: int) -> list[Unit]:
    """Return each tar as one unit: it has no index."""
    return [Unit(file.path, file.size, stem=file.stem) for file in files.find(config, ENDINGS)]


def records(config: InputConfig, unit: Unit) -> Iterator[Record | Reject]:
    """Yield the records of a tar in their order, and a Reject for each entry that is not a record."""
    with files.open_stream(unit.path) as opened:
        head = opened.peek(TAR_BLOCK)[:TAR_BLOCK]
        codec = next((name for magic, name in CODECS.items() if head.startswith(magic)), "")
        if codec:
            yield _unread_codec(unit, codec, head)
            return
        is_gzip = head.startswith(GZIP) or not (unit.path.endswith(".tar") or head[USTAR].startswith(b"ustar"))
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=opened)) if is_gzip else opened
        yield from _TarReader(config, unit, opened, TarStream(stream), is_gzip).records()


def _unread_codec(unit: Unit, codec: str, head: bytes) -> Reject:
    """Return the reject that stands for all entries of a tar in a compression that is not read."""
    lost_records = entries.lost(unit.size, 0, 0, USUAL_BYTES)
    reason = RecordError("not a tar", f"the file is compressed by {codec}; decompress it, or compress it by gzip")
    first_bytes = head[: entries.HEAD_BYTES]
    return Reject(unit.path, safe_key(unit.stem), reason.kind, reason.message, first_bytes, lost_records)


@dataclass
class _TarReader:
    """Reads the records of one tar."""

    config: InputConfig
    unit: Unit
    opened: BinaryIO
    """The file as it is stored."""
    tar: TarStream
    """Its decompressed content."""
    is_gzip: bool
    seen: dict[str, list[str]] = field(default_factory=dict)
    """Endings of the members by the key of their entry."""

    def records(self) -> Iterator[Record | Reject]:
        """Yield a record or a Reject for each entry, in their order."""
        for index, entry in enumerate(_entries(self.tar, lambda ending: _limit(self.config, ending))):
            yield self._record(index, entry)
            self.seen.setdefault(entry.key, entry.endings)

    def _record(self, index: int, entry: _Entry) -> Record | Reject:
        unit = self.unit
        source = f"{unit.path}:{entry.key}" if entry.key else unit.path
        key = record_key(unit.stem, entry.key) if entry.key else safe_key(unit.stem)
        try:
            if entry.fault:
                raise entry.fault
            if entry.key in self.seen:
                raise _repeated(entry, self.seen[entry.key])
            return _record(self.config, entry, key, source, files.image_folder(self.config, unit))
        except DataError as error:
            first_bytes = next(iter(entry.contents.values()), b"")[: entries.HEAD_BYTES]
            loss = self._loss(index, entry)
            reason = f"{error.message}{loss.words}"
            return Reject(source, key, error.kind, reason, first_bytes, loss.records, loss.at_least)

    def _loss(self, records_before: int, entry: _Entry) -> entries.Loss:
        """Return how many records a refused entry costs: those that follow it, too, where the tar cannot be read on."""
        if not entry.is_last:
            return entries.Loss(1)
        read_bytes = min(self.unit.size, self.opened.tell() if self.is_gzip else self.tar.offset)
        if read_bytes < self.unit.size:
            unread_bytes = self.unit.size - read_bytes
            return entries.Loss(entries.lost(unread_bytes, read_bytes, records_before, USUAL_BYTES))
        is_between = not self.is_gzip and not entry.key and self.tar.offset % TAR_BLOCK == 0
        return entries.lost_at_end(self.config, ENDINGS, self.unit, records_before, is_between)


def _repeated(entry: _Entry, before: list[str]) -> RecordError:
    """Return why a key that occurs again is refused: two entries have it, or the members of one entry are apart."""
    if set(before) & set(entry.endings):
        return RecordError("duplicate key", f"{short(entry.key)} occurs twice")
    return RecordError(
        "torn apart",
        f"{short(entry.key)} has {', '.join(before)} in one place of the tar and "
        f"{', '.join(entry.endings)} in another; "
        "members of one key must be adjacent, as `tar --sort=name` writes them",
    )


def _record(config: InputConfig, entry: _Entry, key: str, source: str, folder: str) -> Record:
    """Return the record of an entry; raises DataError when its members do not form one."""
    values: dict[str, Any] = {}
    if "json" in entry.contents:
        content = parsed(entry.contents["json"], short(f"{entry.key}.json"))
        values = content if isinstance(content, dict) else {config.columns.get("turns", "messages"): content}
    ignored: dict[str, str] = {}
    for name in {config.columns.get("caption", "txt"), config.columns.get("text")} & set(entry.contents):
        text = utf8(entry.contents[name], short(f"{entry.key}.{name}"))
        target = "caption" if name == "txt" else name
        if media.has_value(values.get(target)) and values[target] != text:
            ignored[f"json: {target}"] = f".{name} is used"
        values[target] = text
    images = sorted((ending for ending in entry.contents if _is_image(config, ending)), key=_image_order)
    has_turns = bool(entries.named(config, values, "turns"))
    if not images and not has_turns:
        raise RecordError("no image", f"{short(entry.key)} has {', '.join(entry.endings[:SHOWN_ENDINGS])}")
    ignored |= _ignored_members(config, entry, has_images=bool(images))
    columns: Any = {what: name for what, name in config.columns.items() if what != "image"}  # here it is an ending
    if images:
        ignored |= _take_image_names(config, values, len(images))
        values["image"] = [Picture(f"{source}.{ending}", entry.contents[ending]) for ending in images]
    return entries.record(config.model_copy(update={"columns": columns}), values, key, source, folder, ignored)


def _ignored_members(config: InputConfig, entry: _Entry, has_images: bool) -> dict[str, str]:
    """Return the reasons for members that are not used, by ending.

    Raises DataError for an image to be changed, and for video or sound without an image.
    """
    ignored: dict[str, str] = {}
    for ending in entry.endings:
        if ending in entry.contents:
            continue
        name, _, last = ending.rpartition(".")
        medium = media.SUFFIXES.get(last)
        if medium == "image" and config.stream == "generation" and is_input(name):
            raise edited(f".{ending}")
        if medium in ("video", "audio") and not has_images:
            raise media.refused(medium, f"{short(entry.key)} has a member .{ending}")
        ignored[f".{ending}"] = "the recipe's columns.image names another" if medium == "image" else NOT_USED
    return ignored


def _take_image_names(config: InputConfig, values: dict[str, Any], image_count: int) -> dict[str, str]:
    """Remove the names of images from the JSON of an entry whose images are members; return why they are ignored.

    Raises DataError when their number is not that of the members.
    """
    ignored: dict[str, str] = {}
    for name in entries.NAMES["image"]:
        value = values.pop(name, None)
        if not media.has_value(value):
            continue
        count = len(value) if isinstance(value, list) else 1
        if count != image_count and "image" not in config.columns:
            raise RecordError(
                "images", f"{name} in the JSON has {count}, the entry has {image_count} members that are images"
            )
        ignored[f"json: {name}"] = "members of the tar are the images"
    return ignored


def _entries(tar: TarStream, limit_of: Callable[[str], int]) -> Iterator[_Entry]:
    """Yield the members grouped by key, in their order; a damage between entries is an entry of its own."""
    current: _Entry | None = None
    fault: DamagedTarError | None = None
    try:
        while (member := tar.next()) is not None:
            if member.kind == "folder" or _is_metadata(member.name):
                continue
            key, ending = split_name(member.name)
            if current is None or current.key != key:
                if current is not None:
                    yield current
                current = _Entry(key)
            limit = limit_of(ending)
            current.fault = current.fault or _fault(current, member, ending, limit)
            current.endings.append(ending)
            if limit and not current.fault:
                current.contents[ending] = tar.read(member)
    except DamagedTarError as error:
        if current is not None and error.inside:
            current.fault, current.is_last = error, True
        else:
            fault = error
    if current is not None:
        yield current
    if fault:
        yield _Entry("", fault, is_last=True)


def _is_metadata(name: str) -> bool:
    """Return whether a member holds the notes of macOS about another: `._a.jpg`, `.DS_Store`, `__MACOSX/a.jpg`."""
    *folders, last = name.split("/")
    return last.startswith("._") or last == ".DS_Store" or "__MACOSX" in folders


def split_name(name: str) -> tuple[str, str]:
    """Return (key, ending) of the name of a member; the ending may be empty."""
    match = NAME.fullmatch(name.removeprefix("./"))
    return (match[1], match[2].lower()) if match else (name, "")


def _fault(entry: _Entry, member: Member, ending: str, limit: int) -> RecordError | None:
    """Return why a member cannot be used with those before it; None when it can."""
    name = short(member.name)
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return RecordError("unsafe name", name)
    if member.kind != "file":
        return RecordError("not a file", f"{name} is {member.kind}")
    if any("\ud800" <= char <= "\udfff" for char in member.name):
        return RecordError("not UTF-8", f"the name {name}")
    if not ending:
        return RecordError("no key", f"{name} has no ending behind a dot")
    if ending in entry.endings:
        return RecordError("duplicate key", f"{name} occurs twice")
    before = sum(map(len, entry.contents.values()))
    if limit and (member.size > limit or before + member.size > LONGEST_ENTRY_BYTES):
        return RecordError("too large", f"{name} has {member.size} bytes after {before}, at most {limit} are read")
    return None


def _limit(config: InputConfig, ending: str) -> int:
    """Return how many bytes of a member may be read; 0 when records are not made of it."""
    if _is_image(config, ending):
        return LONGEST_ENTRY_BYTES
    is_text = ending in ("json", config.columns.get("caption", "txt"), config.columns.get("text"))
    return entries.LONGEST_TEXT_BYTES if is_text else 0


def _is_image(config: InputConfig, ending: str) -> bool:
    """Return whether a member with this ending is an image of the record."""
    named, last = config.columns.get("image"), ending.rpartition(".")[2]
    return named in (last, ending) if named else last in images.ENDINGS


def _image_order(ending: str) -> tuple[int, str]:
    """Return the key that sorts images by their numbers: `jpg`, `1.jpg`, `2.jpg`, `10.jpg`."""
    number = NUMBER.match(ending)
    return (int(number[1]) if number else 0, ending)
