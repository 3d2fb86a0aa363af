"""The generation stream: a caption as the prompt, the image as VQ ids.

Invariant: which words of a caption are used depends on the recipe and the record's key, on nothing else.
"""

import hashlib
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.record import Made, Record
from data_pipelines.steps import keep
from data_pipelines.steps.words import check_length, check_words
from janus_dist.config.pipeline import InputConfig
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data import chat, images
from janus_dist.data.sample import GenerationSample
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError

ABBREVIATIONS = (
    "mr",
    "mrs",
    "ms",
    "dr",
    "prof",
    "st",
    "vs",
    "etc",
    "e.g",
    "i.e",
    "no",
    "vol",
    "fig",
    "inc",
    "ltd",
    "jr",
    "u.s",
)
SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?=\s)|[。！？]+[」』”]*|\n+")  # noqa: RUF001 - these are the marks of CJK texts


@dataclass(frozen=True)
class Prepared:
    """A record on its way through the VQ tokenizer."""

    key: str
    prompt_ids: NDArray[np.uint32]
    pixels: NDArray[np.uint8]
    """[side, side, 3]"""
    facts: keep.Facts


class Generation:
    """From records with a picture and a caption to generation samples, in two halves."""

    def __init__(self, recipe: BaseRecipe, source: InputConfig, tokenizer: Tokenizer):
        self.model, self.pipeline, self.chat = recipe.model, recipe.pipeline, recipe.data.chat
        self.source, self.tokenizer = source, tokenizer

    def check(self, record: Record) -> None:
        """DataError or Dropped when the record cannot be used, whatever its picture is."""
        check_words("the caption", record.caption)
        if len(record.pictures) != 1:
            raise DataError(f"images: {len(record.pictures)} of them, a caption draws one")
        keep.check_columns(self.source.where, record)

    def prepare(self, record: Record) -> Prepared:
        """Prompt and crop of a record whose picture has its bytes."""
        caption = record.caption.strip()
        if draw(record.key) < self.source.first_sentence_share:
            caption = first_sentence(caption)
        ids = chat.generation_prompt_ids(self.tokenizer, self.chat, caption)
        check_length(len(ids) + self.model.image_ids, self.model)
        content = record.pictures[0].content
        assert content is not None, "pictures are read before"
        facts = keep.check_picture(self.source.where, content)
        image = images.load(content, self.pipeline.max_image_pixels)
        pixels = np.asarray(images.resize_and_crop(image, self.model.image_size))
        facts += ((keep.CAPTION_CHARS, len(record.caption.strip())),)
        return Prepared(record.key, np.array(ids, dtype=np.uint32), pixels, facts)

    def finish(self, prepared: Prepared, vq_ids: NDArray[np.uint16]) -> Made:
        """The sample, with the VQ ids of its crop."""
        return Made([(prepared.key, GenerationSample(prepared.prompt_ids, vq_ids))], prepared.facts)


def draw(key: str) -> float:
    """A number in [0, 1) for a key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") / 2**56


def first_sentence(caption: str) -> str:
    """What stands before the first end of a sentence: not an abbreviation's point, nor one inside a number."""
    for end in SENTENCE_END.finditer(caption):
        said = caption[: end.end()].strip()
        last_word = re.split(r"[\s(\"']", caption[: end.start()])[-1].lower()
        is_point = caption[end.start()] == "." and end.group().count(".") == 1
        if said and not (is_point and (last_word in ABBREVIATIONS or re.fullmatch(r"[a-z]", last_word))):
            return said
    return caption
