"""The text stream: documents, cut where they are longer than the recipe allows.

Invariant: the pieces of a document hold all of its text, and only its two ends look like ends.
"""

import numpy as np

from data_pipelines.record import Made, Record
from data_pipelines.steps import keep
from data_pipelines.steps.words import check_words
from janus_dist.config.pipeline import InputConfig
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data import chat
from janus_dist.data.sample import TextSample
from janus_dist.data.tokenizer import Tokenizer


class Text:
    """From records with a text to text samples."""

    def __init__(self, recipe: BaseRecipe, source: InputConfig, tokenizer: Tokenizer):
        self.source, self.tokenizer = source, tokenizer
        self.max_tokens = min(recipe.pipeline.text_document_tokens, recipe.model.text.max_positions)

    def check(self, record: Record) -> None:
        """DataError or Dropped when the record cannot be used."""
        check_words("the text", record.text)
        keep.check_columns(self.source.where, record)

    def make(self, record: Record) -> Made:
        """One sample, or one for each piece: `KEY-000`, `KEY-001` and so on."""
        pieces = chat.text_ids(self.tokenizer, record.text, self.max_tokens)
        keys = [record.key] if len(pieces) == 1 else [f"{record.key}-{part:03d}" for part in range(len(pieces))]
        samples = [TextSample(np.array(ids, dtype=np.uint32)) for ids in pieces]
        return Made(list(zip(keys, samples, strict=True)), (("text_chars", len(record.text)),))
