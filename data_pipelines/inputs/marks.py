"""Marks of images in texts, as the tools that make such data write them.

Invariant: a known mark never remains in a text as characters: it becomes `<image>`, or the record is refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from data_pipelines.inputs import media
from data_pipelines.inputs.media import Medium, Origin
from data_pipelines.record import Picture
from janus_dist.data.chat import IMAGE_MARK
from janus_dist.errors import RecordError

IMAGE = re.compile(
    r"""
      <img>(?P<path>[^<>]*)</img>                                           # Qwen-VL; empty: InternVL
    | <Img><ImageHere></Img> | <ImageHere>                                  # MiniGPT-4, InternLM-XComposer
    | (?:<img>)(?:<IMG_CONTEXT>)+</img> | <IMG_CONTEXT>                     # InternVL
    | <\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|> | <\|image_pad\|>  # Qwen2-VL
    | \(<image>\./</image>\) | <image>\./</image>                           # MiniCPM-V
    | <fake_token_around_image><image>(?:<fake_token_around_image>)?        # IDEFICS
    | <\|?(?:image|img)[ _-]?(?P<number>\d{1,4})\|?>                        # MMMU, Phi-3: by its number
    | <image> | <image_placeholder> | <image_token> | <image_soft_token> | <start_of_image>
    | <\|image\|> | <\|image_placeholder\|>
    """,
    re.VERBOSE,
)
MEDIA = re.compile(r"<\|?(?P<medium>video|audio|VIDEO|AUDIO)(?P<more>(?:_pad|_placeholder|_token|[ _-]?\d{1,4})?\|?)>")
VIDEO_HERE = "<VideoHere>"


@dataclass(frozen=True)
class Mark:
    """The mark of an image in a text."""

    text: str
    """The mark as written, or the kind of part that it comes from."""
    number: int | None = None
    """Number of the image in the record, if the mark has one."""
    picture: Picture | None = None
    """The image that the mark itself names."""


def read(text: str, origin: Origin) -> tuple[str, list[Mark]]:
    """Return (the text with `<image>` for each mark, the marks in their order).

    Raises DataError when a mark names a path that is not below the folder of images.
    """
    if "<" not in text:
        return text, []
    marks: list[Mark] = []

    def replace(match: re.Match[str]) -> str:
        path, number = (match["path"] or "").strip(), match["number"]
        if path and media.medium_of_text(path, "image") is None:
            return match[0]  # an element of HTML
        marks.append(
            Mark(match[0], None if number is None else int(number), media.picture(path, origin) if path else None)
        )
        return IMAGE_MARK

    return IMAGE.sub(replace, text), marks


def check_media(text: str) -> None:
    """Raise DataError when a text has a mark of a video or a sound; an HTML element `<video>...</video>` is none."""
    for match in MEDIA.finditer(text):
        end = text.find(f"</{match['medium']}>", match.end())
        content = text[match.end() : end].strip() if end >= 0 else ""
        if match["more"] or not content or media.medium_of_text(content):
            medium: Medium = "video" if match["medium"].lower() == "video" else "audio"
            raise media.refused(medium, f"the text has the mark {match[0]}")
    if VIDEO_HERE in text:
        raise media.refused("video", f"the text has the mark {VIDEO_HERE}")


def arrange(marks: Sequence[Mark], own: Sequence[Picture]) -> list[Picture]:
    """Return the pictures of a record in the order of its marks.

    `own`: pictures that the record lists next to its text. Without marks they keep their order; marks without a number
    take them in turn. When the number of marks that name no image differs from that of the pictures, the pictures keep
    their order, too: the step refuses the record. Raises DataError when numbers, or two ways to name images, disagree.
    """
    named = [mark.picture for mark in marks if mark.picture is not None]
    open_marks = [mark for mark in marks if mark.picture is None]
    if not named:
        return _by_number(open_marks, own)
    if not open_marks and own and not media.same(own, named):
        raise RecordError(
            "images",
            f"the record lists {_names(own)} and its text names {_names(named)}; "
            "name the same images in both, or in one of them",
        )
    if not open_marks:
        return list(own) or named
    if len(open_marks) != len(own):
        raise RecordError(
            "images", f"of {len(marks)} marks {len(named)} name an image, the record lists {len(own)} for the others"
        )
    listed = iter(_by_number(open_marks, own))
    return [next(listed) if mark.picture is None else mark.picture for mark in marks]


def _by_number(marks: Sequence[Mark], own: Sequence[Picture]) -> list[Picture]:
    """Return the pictures in the order of the marks' numbers; raises DataError when the numbers do not fit them."""
    numbers = [mark.number for mark in marks if mark.number is not None]
    if not numbers or not own:
        return list(own)
    first = min(numbers)
    if len(numbers) != len(marks) or first > 1 or sorted(numbers) != list(range(first, first + len(own))):
        raise RecordError(
            "images",
            f"the text has the marks {', '.join(mark.text for mark in marks[:8])} for {len(own)} images; "
            "each image has one mark, all with a number or none",
        )
    return [own[number - first] for number in numbers]


def _names(pictures: Sequence[Picture]) -> str:
    """Return the names of pictures, for a message."""
    names = ["/".join(picture.source.split("/")[-2:]) if picture.content is None else "bytes" for picture in pictures]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
