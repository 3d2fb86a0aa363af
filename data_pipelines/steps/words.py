"""Checks on words that all steps share."""

from janus_dist.config.model import ModelConfig
from janus_dist.errors import DataError


def check_words(what: str, text: str) -> None:
    """DataError when a text says nothing or has characters that no UTF-8 file can hold."""
    if not text.strip():
        raise DataError(f"empty: {what} has no words")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"not UTF-8: {what} has half a surrogate pair at character {error.start}") from error


def check_length(tokens: int, model: ModelConfig) -> None:
    """DataError when a sample takes more tokens than the model has positions: such a sample is not cut but refused."""
    if tokens > model.text.max_positions:
        raise DataError(f"too long: {tokens} tokens, the model has {model.text.max_positions} positions")
