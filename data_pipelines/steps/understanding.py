"""The understanding stream: images and what is said about them.

Invariant: a sample has one placeholder id for each of its images, in the order of the images.
"""

import numpy as np

from data_pipelines.record import Made, Record
from data_pipelines.steps import keep
from data_pipelines.steps.words import check_length, check_words
from janus_dist.config.pipeline import InputConfig
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data import chat, images
from janus_dist.data.sample import UnderstandingSample
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError

DESCRIBE = "Describe the image in detail."
"""The question to a caption that comes without one (Janus, section 4)."""


class Understanding:
    """From records with pictures and words to understanding samples."""

    def __init__(self, recipe: BaseRecipe, source: InputConfig, tokenizer: Tokenizer):
        self.model, self.pipeline, self.chat = recipe.model, recipe.pipeline, recipe.data.chat
        self.source, self.tokenizer = source, tokenizer

    def check(self, record: Record) -> None:
        """DataError or Dropped when the record cannot be used, whatever its pictures are."""
        if self.source.layout == "plain":
            check_words("the text", self._plain_text(record).replace(chat.IMAGE_MARK, ""))
            marks = self._plain_text(record).count(chat.IMAGE_MARK)
        else:
            turns = self._turns(record)
            if not turns:
                raise DataError("empty: no question")
            for number, (question, answer) in enumerate(turns):
                check_words(f"question {number}", question.replace(chat.IMAGE_MARK, " "))
                check_words(f"answer {number}", answer)
            marks = chat.count_marks(turns)
        if marks and marks != len(record.pictures):
            raise DataError(f"images: {marks} marks in the text for {len(record.pictures)} images")
        keep.check_columns(self.source.where, record)

    def make(self, record: Record) -> Made:
        """One sample of a record whose pictures have their bytes."""
        ids, spans = self._ids(record)
        check_length(len(ids) + len(record.pictures) * (self.model.image_tokens - 1), self.model)
        facts: keep.Facts = (("caption_chars", len(record.caption)),) if record.caption else ()
        crops: list[bytes] = []
        for picture in record.pictures:
            assert picture.content is not None, "pictures are read before"
            facts += keep.check_picture(self.source.where, picture.content)
            image = images.load(picture.content, self.pipeline.max_image_pixels)
            crops.append(images.encode(images.pad_to_square(image, self.model.image_size), self.pipeline.jpeg_quality))
        answers = np.array(spans, dtype=np.int64).reshape(-1, 2)
        return Made([(record.key, UnderstandingSample(np.array(ids, dtype=np.uint32), answers, crops))], facts)

    def _ids(self, record: Record) -> tuple[list[int], list[chat.Span]]:
        if self.source.layout == "plain":
            return chat.plain_ids(self.tokenizer, self._plain_text(record), len(record.pictures))
        system = record.system.strip() or None
        return chat.understanding_ids(self.tokenizer, self.chat, self._turns(record), len(record.pictures), system)

    def _turns(self, record: Record) -> list[tuple[str, str]]:
        if record.turns or not record.caption.strip():
            return list(record.turns)
        return [(DESCRIBE, record.caption)]

    def _plain_text(self, record: Record) -> str:
        return record.text or record.caption
