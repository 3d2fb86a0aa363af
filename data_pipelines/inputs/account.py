"""The account of an entry: each of its values is used, ignored for a reported reason, or refused.

Invariant: an unread image is ignored only when the recipe, or the entry itself, says which image counts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.inputs import media
from data_pipelines.inputs.files import short
from data_pipelines.inputs.media import MediaValue
from data_pipelines.record import Picture
from janus_dist.config.streams import Stream
from janus_dist.errors import DataError, RecordError

LONGEST_KEY = 100
"""Characters of a key that are kept."""
SUBJECT = r"[_-]?(?:image|img|picture|photo)s?(?:[_-](?:path|file|url))?"
BEFORE = re.compile(
    rf"(?:input|source|src|original|orig|reference|ref|condition|conditioning|control|before){SUBJECT}", re.IGNORECASE
)
"""Keys of the image that an editing record starts from (InstructPix2Pix, MagicBrush, ShareGPT-4o-Image)."""
AFTER = re.compile(rf"(?:output|target|edited|result|after){SUBJECT}", re.IGNORECASE)
"""Keys of the changed image of an editing record."""
NOT_USED = "not used"
TEXT_ONLY = "the text stream reads texts alone"


@dataclass
class Account:
    """The fate of each value of an entry."""

    stream: Stream | None
    """None when it is unknown; then no value is refused because of the stream."""
    is_tar: bool = False
    is_image_named: bool = False
    """Whether the recipe says which image counts (`columns.image`)."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Reasons why values are ignored, by key."""
    unread: list[tuple[str, str, Any]] = field(default_factory=list)
    """(path of the key in the entry, key, value) of each unread value."""

    def ignore(self, path: str, reason: str) -> None:
        """Note why the value at a path is not used; the first reason for a path is kept."""
        self.ignored.setdefault(path[:LONGEST_KEY], reason)

    def leave(self, path: str, key: str, value: Any) -> None:
        """Note an unread value, which `settle` ignores or refuses."""
        if media.has_value(value):
            self.unread.append((path, key, value))

    def settle(self, pictures: Sequence[Picture], image_key: str) -> None:
        """Ignore the unread values, once the entry's `pictures` are known.

        `image_key`: the key that holds the pictures; empty when no key holds them. Raises DataError when a value
        must not be ignored.
        """
        for path, key, value in self.unread:
            self.ignore(path, self._reason(path, key, value, pictures, image_key))

    def _reason(self, path: str, key: str, value: Any, pictures: Sequence[Picture], image_key: str) -> str:
        """Return the reason why a value is ignored; raises DataError when it must not be."""
        sights = media.look(value, key)
        medium = _medium_of_key(key, value)
        if self.stream == "text":
            return TEXT_ONLY if sights or medium is not None else NOT_USED
        if medium is not None:
            raise media.refused(medium, f"{path} has {sights[0].shown if sights else _shown(value)}")
        self._check_generation(path, key, value)
        others = [sight for sight in sights if sight.medium != "image"]
        if others and not pictures:
            raise media.refused(others[0].medium, f"{path} has {others[0].shown}")
        images = [sight for sight in sights if sight.medium == "image" and not _is_shown_by(sight, pictures)]
        if images:
            return self._image_reason(path, key, images, bool(pictures), image_key)
        return f"{media.SHOWN_MEDIA[sights[0].medium]}, which is not read" if others else NOT_USED

    def _check_generation(self, path: str, key: str, value: Any) -> None:
        """Raise DataError for the image that an editing record of the generation stream starts from."""
        if self.stream == "generation" and BEFORE.fullmatch(key) and not _is_web_address(value) and _may_be_file(value):
            raise edited(path)

    def _image_reason(
        self, path: str, key: str, images: Sequence[MediaValue], has_pictures: bool, image_key: str
    ) -> str:
        """Return the reason why an entry's further images are ignored; raises DataError when nothing says which
        image counts."""
        if self.is_image_named:
            return "an image, but the recipe's columns.image names another"
        if has_pictures and all(image.is_web for image in images):
            return "a web address of an image, which is not read"
        if has_pictures and self.is_tar:
            return "a name of an image, but members of the tar are the images"
        raise RecordError(
            "images", f"{path} has {images[0].shown}, which nothing reads; {self._way_out(path, key, image_key)}"
        )

    def _way_out(self, path: str, key: str, image_key: str) -> str:
        if self.is_tar:
            return "put the image into the tar as a member of the entry"
        if path != key:
            return "name the images of a message `images`, or list them next to the conversation"
        other = f", or columns: {{image: {image_key}}} to leave it out" if image_key else ""
        return f"set columns: {{image: {short(key)[1:-1]}}} to read it{other}"


def check_editing(values: Mapping[str, Any], stream: Stream | None) -> None:
    """Raise DataError when an entry has both an image to change and the changed image: its text captions neither."""
    if stream == "text":
        return
    before, after = (
        [key for key, value in values.items() if keys.fullmatch(key) and media.has_value(value) and _may_be_file(value)]
        for keys in (BEFORE, AFTER)
    )
    if before and after:
        raise edited(before[0])


def shows_editing(key: str) -> bool:
    """Return whether the name of a key is that of an image to be changed or of a changed image."""
    return bool(BEFORE.fullmatch(key) or AFTER.fullmatch(key))


def is_input(name: str) -> bool:
    """Return whether the name of a tar's member is that of an image to be changed: `input.png`, `source_image.jpg`."""
    return bool(name) and bool(BEFORE.fullmatch(name) or BEFORE.fullmatch(f"{name}_image"))


def edited(path: str) -> DataError:
    """Return the error of a record that shows how an image is changed."""
    return RecordError(
        "editing",
        f"{path} is an image to be changed; editing is not supported, an image is learned from its caption "
        "only: leave such records out",
    )


def _medium_of_key(key: str, value: Any) -> media.Medium | None:
    """Return the medium that a key stands for; None for a number, which holds no file."""
    return None if isinstance(value, bool | int | float) else media.KEYS.get(key.lower())


def _is_shown_by(sight: MediaValue, pictures: Sequence[Picture]) -> bool:
    """Return whether a value is a path of one of the pictures."""
    return bool(sight.path) and any(media.is_name_of(sight.path, picture.source) for picture in pictures)


def _is_web_address(value: Any) -> bool:
    return isinstance(value, str) and value.lower().startswith(media.WEB)


def _may_be_file(value: Any) -> bool:
    return isinstance(value, str | bytes | Mapping | list | tuple | Picture)


def _shown(value: Any) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else short(str(value))
