"""Step of the understanding stream: conversations and captions as token ids, with the images as padded squares.

Invariants: a sample has as many images as placeholders; a sample of more tokens than the model has positions is
refused, not cut.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from data_pipelines.inputs.conversation import IMAGES
from data_pipelines.record import Record, StepResult, Turn
from data_pipelines.steps import keep
from data_pipelines.steps.words import check_length, check_texts, words
from janus_dist.config.pipeline import InputConfig
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data import chat, images
from janus_dist.data.sample import UnderstandingSample
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import RecordError

DESCRIBE = "Describe the image in detail."
"""Question that a caption answers (Janus, section 3.2)."""


class Understanding:
    """The step of the understanding stream."""

    def __init__(self, recipe: BaseRecipe, config: InputConfig, tokenizer: Tokenizer):
        self.tokenizer, self.chat, self.model = tokenizer, recipe.data.chat, recipe.model
        self.max_pixels, self.jpeg_quality = recipe.pipeline.max_image_pixels, recipe.pipeline.jpeg_quality
        self.is_plain = config.layout == "plain"
        columns = config.columns.get("image") or " or ".join(IMAGES)
        self.image_places = (
            f"{columns}, nor in a message" if config.format != "webdataset" else "the members of the tar"
        )
        self.rules, self.picture_rules = keep.split(config.where)

    def check(self, record: Record) -> None:
        """Check all but the pictures and the length in tokens; raises DataError or DroppedByRule."""
        keep.check(self.rules, {**record.columns, keep.CAPTION_CHARS: _char_count(record)})
        if self.is_plain:
            _plain_text(record)
        else:
            turns = _turns(record)
            self._check_has_image(record, turns)
            chat.with_marks(turns, len(record.pictures))

    def _check_has_image(self, record: Record, turns: Sequence[Turn]) -> None:
        """Raise DataError when a question has the mark of an image and the record has no image."""
        if not record.pictures and any(chat.IMAGE_MARK in question for question, _ in turns):
            places = self.image_places
            raise RecordError(
                "images", f"the text has the mark {chat.IMAGE_MARK}, but the record has no image for it in {places}"
            )

    def make(self, record: Record) -> StepResult:
        """Return the sample of a record, under the same key, which is safe as the name of a tar's member.

        Raises DataError for bad pictures and for more tokens than positions, DroppedByRule when a picture breaks a
        rule.
        """
        ids, spans = self._ids(record)
        check_length(len(ids) + len(record.pictures) * (self.model.image_tokens - 1), self.model)
        encoded = [content.content or b"" for content in record.pictures]
        measures = [keep.measures(images.peek(content, self.max_pixels)) for content in encoded]
        for values in measures:
            keep.check(self.picture_rules, values)
        crops = [self._crop(content) for content in encoded]
        context = set() if self.is_plain else set(record.context)
        learned, unlearned = (
            np.array([span for turn, span in enumerate(spans) if (turn in context) == is_context], np.int64)
            for is_context in (False, True)
        )
        sample = UnderstandingSample(np.array(ids, dtype=np.uint32), learned, crops, unlearned.reshape(-1, 2))
        facts = [fact for values in measures for fact in values.items()]
        return StepResult([(record.key, sample)], (*facts, (keep.CAPTION_CHARS, _char_count(record))))

    def _crop(self, encoded: bytes) -> bytes:
        """Return an image padded to a square of the model's size, encoded."""
        square = images.pad_to_square(images.load(encoded, self.max_pixels), self.model.image_size)
        return images.encode(square, self.jpeg_quality)

    def _ids(self, record: Record) -> tuple[list[int], list[chat.Span]]:
        """Return (token ids with one placeholder for each image, spans of labels by turn)."""
        if self.is_plain:
            text = _plain_text(record)
            check_texts(self.tokenizer, [text], self.model)
            return chat.plain_ids(self.tokenizer, text, len(record.pictures))
        system = words(record.system, "the system message").strip() if record.system.strip() else None
        turns = _turns(record)
        check_texts(self.tokenizer, [system or "", *itertools.chain(*turns)], self.model)
        return chat.understanding_ids(self.tokenizer, self.chat, turns, len(record.pictures), system)


def _turns(record: Record) -> list[Turn]:
    """Return questions and answers; a caption is the answer to DESCRIBE. Raises DataError without any to learn."""
    if not record.turns and record.caption.strip():
        if not record.pictures:
            raise RecordError("images", "a caption without an image")
        return [(DESCRIBE, words(record.caption, "the caption"))]
    if not record.turns:
        raise RecordError("empty", "no question")
    if len(set(record.context)) == len(record.turns):
        raise RecordError("loss", "the source marks every answer as not learned")
    return [
        (words(question, f"question {number}"), words(answer, f"answer {number}"))
        for number, (question, answer) in enumerate(record.turns)
    ]


def _plain_text(record: Record) -> str:
    """Return the text around the images: a document, a caption, or the answer of a conversation's only turn.

    Raises DataError without images or words, for several turns, or when the marks do not match the images.
    """
    if not record.pictures:
        raise RecordError("images", "a plain text without an image belongs to the text stream")
    text = record.text if record.text.strip() else record.caption
    if record.turns and not text.strip():
        if len(record.turns) > 1:
            raise RecordError("turns", f"{len(record.turns)} turns, but the plain layout uses the answer of one")
        turns = _turns(record)
        chat.with_marks(turns, len(record.pictures))
        return turns[0][1]
    words(text.replace(chat.IMAGE_MARK, ""), "the text")
    chat.with_marks([(text, None)], len(record.pictures))
    return words(text, "the text")


def _char_count(record: Record) -> int:
    """Return the number of characters of the turns, else of the caption or text."""
    turns = sum(len(question.strip()) + len(answer.strip()) for question, answer in record.turns)
    return turns or len(record.caption.strip() or record.text.strip())
