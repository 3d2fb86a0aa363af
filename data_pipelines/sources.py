"""What the streams are made of: the items of a source, before anything of them was read but their list.

Invariant: the list of items and the order of an image's questions are functions of the source alone, so that a job
which is cut again after a crash is the same job. The test split of a source never becomes an item.
"""

import hashlib
import pydoc_data.topics
from dataclasses import asdict, dataclass
from typing import Any

from janus_dist.config.data import PipelineConfig
from janus_dist.config.mix import Stream
from janus_dist.data import easy_vqa

Turn = tuple[str, str]


@dataclass(frozen=True)
class Conversation:
    """An image and the questions and answers about it (understanding)."""

    key: str
    source: str
    image: str
    """Path or s3:// URL of the encoded image."""
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Caption:
    """An image and the words it is to be drawn from (generation)."""

    key: str
    source: str
    image: str
    caption: str


@dataclass(frozen=True)
class Document:
    """A text (text)."""

    key: str
    source: str
    text: str


Item = Conversation | Caption | Document


def items(stream: Stream, config: PipelineConfig) -> list[Item]:
    """All items of a stream, in their fixed order."""
    assert config.source == "easy-vqa"
    match stream:
        case "understanding":
            return [
                Conversation(image.key, str(image.path), str(image.path), in_fixed_order(image.key, image.questions))
                for image in easy_vqa.load("train")
            ]
        case "generation":
            return [
                Caption(image.key, str(image.path), str(image.path), image.caption) for image in easy_vqa.load("train")
            ]
        case "text":
            topics = pydoc_data.topics.topics
            return [
                Document(f"topic-{number:05d}", f"pydoc_data.topics:{name}", topics[name])
                for number, name in enumerate(sorted(topics))
            ]


def in_fixed_order(key: str, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Turns in a pseudo-random order that depends on the key alone; data sets list like questions side by side."""

    def place(number: int) -> bytes:
        return hashlib.sha256(f"{key}/{number}".encode()).digest()

    return tuple(turns[number] for number in sorted(range(len(turns)), key=place))


def to_row(item: Item) -> dict[str, Any]:
    """An item as a row of a table."""
    row = asdict(item)
    if "turns" in row:
        row["turns"] = [list(turn) for turn in row["turns"]]
    return row
