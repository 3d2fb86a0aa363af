"""Encoding of conversations, captions and texts as token ids.

Invariant: no sample takes more tokens than the model has positions; what would is refused, not cut (documents of the
text stream are cut before, into pieces that fit).
"""

from data_pipelines.steps.rows import Row
from janus_dist.config.data import ChatConfig
from janus_dist.config.model import ModelConfig
from janus_dist.data import chat as chat_format
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError


class EncodeConversation:
    """Add `ids` and `answers` (flat pairs of start and end) of a conversation about one image."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatConfig, model: ModelConfig):
        self.tokenizer, self.chat, self.model = tokenizer, chat, model

    def __call__(self, row: Row) -> Row:
        turns = [(question, answer) for question, answer in row["turns"]]
        ids, spans = chat_format.understanding_ids(self.tokenizer, self.chat, turns, num_images=1)
        _check_length(len(ids) - 1 + self.model.image_tokens, self.model)
        return {"ids": ids, "answers": [bound for span in spans for bound in span]}


class EncodeCaption:
    """Add `prompt_ids` of a caption."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatConfig, model: ModelConfig):
        self.tokenizer, self.chat, self.model = tokenizer, chat, model

    def __call__(self, row: Row) -> Row:
        ids = chat_format.generation_prompt_ids(self.tokenizer, self.chat, row["caption"])
        _check_length(len(ids) + self.model.image_ids, self.model)
        return {"prompt_ids": ids}


class EncodeText:
    """Add `pieces`: the ids of a document, cut where it is longer than `max_tokens`."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int):
        self.tokenizer, self.max_tokens = tokenizer, max_tokens

    def __call__(self, row: Row) -> Row:
        return {"pieces": chat_format.text_ids(self.tokenizer, row["text"], self.max_tokens)}


def _check_length(tokens: int, model: ModelConfig) -> None:
    if tokens > model.text.max_positions:
        raise DataError(f"too long: {tokens} tokens, the model has {model.text.max_positions} positions")
