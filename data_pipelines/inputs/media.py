"""Images, video and sound in the values of an entry: how they are recognised, and how images are read.

Invariant: a value that names or holds an image becomes a Picture or a DataError; it is never skipped.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from data_pipelines.inputs.files import LONGEST_PATH, inside, short
from data_pipelines.record import Picture
from janus_dist.errors import DataError, RecordError

Medium = Literal["image", "video", "audio"]

IMAGE_SUFFIXES = (
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "mpo",
    "png",
    "webp",
    "gif",
    "bmp",
    "tif",
    "tiff",
    "avif",
    "heic",
    "jp2",
)
VIDEO_SUFFIXES = ("mp4", "m4v", "webm", "mkv", "mov", "avi", "wmv", "flv", "mpg", "mpeg", "3gp", "ogv")
AUDIO_SUFFIXES = ("wav", "mp3", "flac", "ogg", "oga", "opus", "m4a", "aac", "wma", "aiff")
SUFFIXES: Mapping[str, Medium] = {
    **dict.fromkeys(IMAGE_SUFFIXES, "image"),
    **dict.fromkeys(VIDEO_SUFFIXES, "video"),
    **dict.fromkeys(AUDIO_SUFFIXES, "audio"),
}
"""The medium of a file, by the end of its name."""
BEGINNINGS: tuple[tuple[bytes, int, bytes, Medium], ...] = (
    (b"\xff\xd8\xff", 0, b"", "image"),
    (b"\x89PNG\r\n\x1a\n", 0, b"", "image"),
    (b"GIF8", 0, b"", "image"),
    (b"RIFF", 8, b"WEBP", "image"),
    (b"II*\0", 0, b"", "image"),
    (b"MM\0*", 0, b"", "image"),
    (b"BM", 6, b"\0\0\0\0", "image"),
    (b"", 4, b"ftypavif", "image"),
    (b"", 4, b"ftyphei", "image"),
    (b"", 4, b"ftypmif1", "image"),
    (b"\0\0\0\x0cjP  ", 0, b"", "image"),
    (b"", 4, b"ftyp", "video"),
    (b"\x1aE\xdf\xa3", 0, b"", "video"),
    (b"RIFF", 8, b"AVI ", "video"),
    (b"RIFF", 8, b"WAVE", "audio"),
    (b"ID3", 0, b"", "audio"),
    (b"fLaC", 0, b"", "audio"),
    (b"OggS", 0, b"", "audio"),
)
"""(first bytes, offset, bytes at the offset, medium) of encoded files."""
SHOWN_MEDIA: Mapping[Medium, str] = {"image": "an image", "video": "video", "audio": "sound"}
KEYS: Mapping[str, Medium] = {
    **dict.fromkeys(("video", "videos", "video_path", "video_url", "video_file", "input_video"), "video"),
    **dict.fromkeys(("audio", "audios", "audio_path", "audio_url", "audio_file", "input_audio"), "audio"),
}
"""Keys of entries, messages and parts, and types of parts, that mean a medium for any value."""
ABOUT_IMAGES = re.compile(r"image|img|photo|picture|frame", re.IGNORECASE)
"""Keys under which names of files may have spaces; elsewhere, a text with spaces that ends in `.jpg` is a sentence."""
FILE_KEYS = ("path", "url", "image_url", "image", "file", "file_path", "image_path", "source", "data")
"""Keys under which an object names or holds its file."""
WEB = ("http://", "https://")
BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
SHORTEST_BASE64 = 64
"""Least characters of base64; a shorter text is a name."""
LONGEST_LOOK = 10_000
"""Most values inside a nested value that are searched."""


def has_value(value: Any) -> bool:
    """Return whether a value is not null, an empty text or list, or an object of null and empty texts."""
    if value is None:
        return False
    if isinstance(value, str | list | tuple):  # before the test for Mapping, which takes ten times as long
        return len(value) > 0
    if isinstance(value, Mapping) and value:
        return any(item is not None and item != "" for item in value.values())
    return True


@dataclass(frozen=True)
class MediaValue:
    """A value that names or holds a file of a medium."""

    medium: Medium
    shown: str
    """The value, shortened for a message."""
    path: str = ""
    """The path or address; empty for bytes and base64."""
    is_web: bool = False
    """Whether it is a web address, at which the file was once."""


def look(value: Any, key: str = "") -> list[MediaValue]:
    """Return all images, videos and sounds that a value names or holds; lists and objects are searched.

    `key`: the key of the value.
    """
    sights: list[MediaValue] = []
    pending, count = [value], 0
    while pending and count < LONGEST_LOOK:
        item, count = pending.pop(), count + 1
        if isinstance(item, Mapping):
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item[:LONGEST_LOOK]
        elif isinstance(item, bytes) and (medium := _medium_of_bytes(item)):
            sights.append(MediaValue(medium, f"{len(item)} bytes"))
        elif isinstance(item, str) and (medium := medium_of_text(item, key)):
            is_file = len(item) <= LONGEST_PATH and not item.lower().startswith("data:")
            sights.append(MediaValue(medium, short(item), item if is_file else "", item.lower().startswith(WEB)))
    return sights


def medium_of_text(text: str, key: str = "") -> Medium | None:
    """Return the medium that a text names (by the end of a path) or holds (as base64); None for all other texts."""
    if text[:5].lower() == "data:":
        return next((medium for medium in SHOWN_MEDIA if text[5:].lower().startswith(f"{medium}/")), None)
    if len(text) > LONGEST_PATH:
        return _base64_medium(text)
    path = (re.split(r"[?#]", text, maxsplit=1)[0] if text.lower().startswith(WEB) else text).strip()
    stem, dot, suffix = path.rpartition("/")[2].rpartition(".")
    if dot and stem and "\n" not in path and (" " not in path or ABOUT_IMAGES.search(key)):
        return SUFFIXES.get(suffix.lower())
    return _base64_medium(text)


def is_name_of(text: str, source: str) -> bool:
    """Return whether a text is the path of a file or its end: `1.jpg` or `coco/1.jpg` for `/data/coco/1.jpg`."""
    parts, source_parts = (
        [part for part in path.strip().replace("\\", "/").split("/") if part not in ("", ".")]
        for path in (text, source)
    )
    return bool(parts) and source_parts[-len(parts) :] == parts


@dataclass(frozen=True)
class Origin:
    """The location of an entry."""

    source: str
    """File and position in the file, for people."""
    folder: str
    """Folder that paths of images are relative to."""


def pictures(value: Any, origin: Origin) -> tuple[Picture, ...]:
    """Return the pictures of a value, which is a picture or a list; raises DataError for a list with an empty item."""
    if not has_value(value):
        return ()
    if not isinstance(value, list | tuple):
        return (picture(value, origin),)
    missing = [number for number, item in enumerate(value) if not has_value(item)]
    if missing:
        raise RecordError("images", f"number {missing[0] + 1} of {len(value)} is empty; leave it out, or name its file")
    return tuple(picture(item, origin) for item in value)


def picture(value: Any, origin: Origin) -> Picture:
    """Return the picture of a value: bytes, a path below the folder, base64, or an object that holds one of these.

    Objects are the hub's `{bytes, path}`, OpenAI's `{url}` and Anthropic's `{type: base64, media_type, data}`. Raises
    DataError for any other value.
    """
    match value:
        case Picture():
            return value
        case bytes():
            return Picture(origin.source, value)
        case str():
            return _picture_of_text(value, origin)
        case {"bytes": bytes() as content}:
            return Picture(origin.source, content)
        case {"bytes": str() as text} if text:
            return Picture(origin.source, _decode_base64(text, "the value of bytes"))
        case {"type": "base64", "data": str() as text}:
            _check_type(str(value.get("media_type") or ""))
            return Picture(origin.source, _decode_base64(text, "the value of data"))
        case Mapping():
            return _picture_of_object(value, origin)
    raise RecordError("images", f"{type(value).__name__} is neither bytes nor a path")


def refused(medium: Medium, what: str) -> DataError:
    """Return the error of a record with a medium that Janus does not read."""
    return RecordError(medium, f"{what}; Janus reads text and images: leave such records out, or give images of them")


def _picture_of_object(value: Mapping[str, Any], origin: Origin) -> Picture:
    """Return the picture of an object that names its file under one or more of FILE_KEYS."""
    files = [value[key] for key in FILE_KEYS if has_value(value.get(key))]
    if files:
        first, *others = (picture(file, origin) for file in files)
        if any(not same([first], [other]) for other in others):
            raise RecordError("images", f"an object names several files: {', '.join(map(short, map(str, files)))}")
        return first
    if value.get("file_id"):
        raise RecordError(
            "images", f"{short(str(value['file_id']))} is a file of an API; name a file, or give its bytes"
        )
    raise RecordError("images", f"{type(value).__name__} is neither bytes nor a path")


def _picture_of_text(text: str, origin: Origin) -> Picture:
    """Return the picture of a data URI, a path or base64; raises DataError for a web address."""
    if text[:5].lower() == "data:":
        header, comma, content = text.partition(",")
        kind, *options = header[5:].lower().split(";")
        _check_type(kind)
        if not comma or "base64" not in (option.strip() for option in options):
            raise RecordError(
                "images", f"{short(text)} is a data URI without base64; write it as `data:TYPE;base64,DATA`"
            )
        return Picture(origin.source, _decode_base64(content, "a data URI"))
    if text.lower().startswith("file://"):
        text = unquote(urlsplit(text).path)
    elif text.lower().startswith(WEB) and not text.startswith(f"{origin.folder.rstrip('/')}/"):
        raise RecordError(
            "web address", f"{short(text)}; the pipelines read files: download images first (img2dataset)"
        )
    elif _base64_medium(text) or len(text) > LONGEST_PATH:
        return Picture(origin.source, _decode_base64(text, short(text)))
    return Picture(inside(origin.folder, text), root=origin.folder)


def _check_type(kind: str) -> None:
    """Raise DataError when a media type is not that of an image; it may be empty, as many writers leave it out."""
    general = kind.partition("/")[0]
    if general in ("video", "audio"):
        raise refused("video" if general == "video" else "audio", f"a value is of type {kind[:100]}")
    if kind and general != "image" and kind != "application/octet-stream":
        raise RecordError("images", f"a value is of type {kind[:100]!r}, not of an image")


def _decode_base64(text: str, what: str) -> bytes:
    """Return the bytes of base64, also in its URL form and without padding; raises DataError when it is not base64."""
    joined = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        content = base64.b64decode(joined + "=" * (-len(joined) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordError("images", f"{what} has {len(text)} characters, neither a path nor base64: {error}") from error
    if not content:
        raise RecordError("images", f"{what} holds no bytes")
    return content


def _medium_of_bytes(content: bytes) -> Medium | None:
    """Return the medium of an encoded file by its first bytes; None when they are unknown."""
    for first, offset, later, medium in BEGINNINGS:
        if content.startswith(first) and content[offset : offset + len(later)] == later:
            return medium
    return None


def _base64_medium(text: str) -> Medium | None:
    """Return the medium that a long text holds as base64, by its first bytes; None for all other texts."""
    if len(text) < SHORTEST_BASE64 or not BASE64.match(text):
        return None
    try:
        return _medium_of_bytes(base64.b64decode(text[:SHORTEST_BASE64].replace("-", "+").replace("_", "/")))
    except (binascii.Error, ValueError):
        return None


def same(first: Sequence[Picture], second: Sequence[Picture]) -> bool:
    """Return whether two lists are the same pictures, by their bytes or by the paths of their files.

    Bytes and a path count as the same picture, since the file of the bytes is unknown.
    """
    if len(first) != len(second):
        return False
    return all(
        (a.content is None) != (b.content is None)
        or (a.content == b.content if a.content is not None else a.source == b.source)
        for a, b in zip(first, second, strict=True)
    )


def stand_for(value: Any, own: Sequence[Picture]) -> bool:
    """Return whether a value describes the same pictures as those read from another key, without reading files.

    Names describe pictures of bytes when there are as many of both.
    """
    items = value if isinstance(value, list | tuple) else [value]
    if len(items) != len(own):
        return False
    for picture, item in zip(own, items, strict=True):
        content = item.get("bytes") if isinstance(item, Mapping) else item if isinstance(item, bytes) else None
        name = item.get("path") if isinstance(item, Mapping) else item
        if content is not None and picture.content is not None and content != picture.content:
            return False
        is_path = content is None and picture.content is None
        if is_path and not (isinstance(name, str) and is_name_of(name, picture.source)):
            return False
    return True
