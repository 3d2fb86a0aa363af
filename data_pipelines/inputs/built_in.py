"""Sources without a path: easy-vqa's training split, Python's own help texts, and generated scenes.

Invariant: the list of records and the order of an image's questions depend only on the package, or the generator.
A test split never becomes a record.
"""

import hashlib
import pydoc_data.topics
from collections.abc import Iterator

from PIL import Image

from data_pipelines.record import Picture, Record, Turn, Unit
from janus_dist.config.pipeline import InputConfig
from janus_dist.data import images
from janus_dist.datasets import easy_vqa, scene_words, scenes
from janus_dist.inspection.inspect import Reject


def units(config: InputConfig, shard_samples: int) -> list[Unit]:
    """Return slices of `shard_samples` records."""
    if config.format == "scenes":
        total = scenes.NUMBERS["train"]
    else:
        total = len(pydoc_data.topics.topics) if config.format == "pydoc" else len(easy_vqa.load("train"))
    stops = [min(start + shard_samples, total) for start in range(0, total, shard_samples)]
    return [
        Unit(config.format, stop - start, start, stop, stop - start)
        for start, stop in zip(range(0, total, shard_samples), stops, strict=True)
    ]


def records(config: InputConfig, unit: Unit) -> Iterator[Record | Reject]:
    """Yield the records of a slice."""
    if config.format == "pydoc":
        topics = pydoc_data.topics.topics
        for index, name in list(enumerate(sorted(topics)))[unit.start : unit.stop]:
            yield Record(f"topic-{index:05d}", f"pydoc_data.topics:{name}", text=topics[name])
        return
    if config.format == "scenes":
        yield from (_scene(index) for index in range(unit.start, unit.stop or 0))
        return
    for image in easy_vqa.load("train")[unit.start : unit.stop]:
        path = str(image.path)
        turns = in_fixed_order(image.key, image.questions)
        yield Record(image.key, path, (Picture(path),), turns, caption=image.caption)


def _scene(index: int) -> Record:
    """Return a scene of the training split, with a caption of what is drawn and the questions of the scene."""
    scene = scenes.scene(0, "train", index)
    source = f"scenes:{scene.key}"
    picture = Picture(source, images.encode(Image.fromarray(scenes.draw(scene)), None))
    turns = tuple((question.question, question.answer) for question in scene_words.questions(scene))
    return Record(scene.key, source, (picture,), turns, caption=scene_words.caption(scene))


def in_fixed_order(key: str, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Return turns in a pseudo-random order that depends only on the key; data sets list similar questions together."""

    def hash_of(index: int) -> bytes:
        return hashlib.sha256(f"{key}/{index}".encode()).digest()

    return tuple(turns[index] for index in sorted(range(len(turns)), key=hash_of))
