"""Step of the text stream: documents as token ids, cut where they are too long for a sample.

Invariant: every id of a document, except begin-of-sentence, is a label of exactly one sample.
"""

from data_pipelines.record import Record, StepResult
from data_pipelines.steps import keep
from data_pipelines.steps.words import words
from janus_dist.config.pipeline import InputConfig
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data.chat import text_ids
from janus_dist.data.sample import TextSample
from janus_dist.data.tokenizer import Tokenizer


class Text:
    """The step of the text stream."""

    def __init__(self, recipe: BaseRecipe, config: InputConfig, tokenizer: Tokenizer):
        self.rules, self.tokenizer = config.where, tokenizer
        self.max_tokens = min(recipe.pipeline.text_document_tokens, recipe.model.text.max_positions)

    def check(self, record: Record) -> None:
        """Raise DataError for a record without words, DroppedByRule for one that breaks a rule."""
        keep.check(self.rules, {**record.columns, keep.TEXT_CHARS: len(record.text)})
        words(record.text, "the text")

    def make(self, record: Record) -> StepResult:
        """Return the sample `KEY`, or `KEY-000`, `KEY-001`, ... when `pipeline.text_document_tokens` are exceeded.

        Raises DataError for a document without words.
        """
        pieces = text_ids(self.tokenizer, words(record.text, "the text"), self.max_tokens)
        keys = [record.key] if len(pieces) == 1 else [f"{record.key}-{index:03d}" for index in range(len(pieces))]
        samples = [(key, TextSample(piece)) for key, piece in zip(keys, pieces, strict=True)]
        return StepResult([*samples], (("text_chars", len(record.text)),))
