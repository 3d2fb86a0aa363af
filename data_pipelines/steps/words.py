"""Checks of records' texts, and the first sentence of a caption.

Invariant: a text that `words` returns has words and can be tokenized.
"""

import re
from collections.abc import Iterable

from janus_dist.config.model import ModelConfig
from janus_dist.data.chat import exceeds
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import RecordError

SURROGATE = re.compile("[\ud800-\udfff]")
EMPTY_LINE = re.compile(r"\n[^\S\n]*\n")
LETTER = re.compile(r"[^\W\d_]")
END = re.compile(
    r"(?P<mark>[.!?\u2026]+|[\u3002\uff01\uff1f\uff61]+)"  # the second: full stops and marks of Chinese and Japanese
    r"(?P<closing>[\"'\u201d\u2019\u00bb)\]\u300d\u300f\uff09]*)"
    r"(?P<space>\s*)(?=(?P<following>.?))",
    re.DOTALL,
)
WIDE = "\u3002\uff01\uff1f\uff61"
LAST_WORD = re.compile(r"[^\s(\[\"'\u201c\u2018]*\Z")
LONGEST_ABBREVIATION = 16
ABBREVIATIONS = re.compile(
    r"m(rs?|s|x|t)|dr|prof|rev|hon|st|ft|gen|col|maj|sgt|capt|lt|cmdr|gov|sen|rep|pres|[js]r|eds?|approx|ca|cf|vs|etc|al"
    r"|inc|ltd|corp?|co|dept|est|ave|blvd|rd|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
)
"""Words before a full stop that is more often within a sentence than at its end."""
OF_NUMBERS = re.compile(r"nos?|figs?|vols?|ch|pp?")
"""Abbreviations only if a number follows."""


def words(text: str, what: str) -> str:
    """Return a text that any tokenizer accepts; raises DataError when it has no words or is not a text.

    Half of a surrogate pair, as JSON has it where a text was cut at a number of characters, becomes U+FFFD. A NUL
    character indicates binary data, or UTF-16 that was read as another encoding.
    """
    if not text.strip():
        raise RecordError("empty", f"{what} has no words")
    if "\0" in text:
        raise RecordError("no text", f"{what} has a NUL character")
    if SURROGATE.search(text):
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def check_length(tokens: int, model: ModelConfig) -> None:
    """Raise DataError when a sample has more tokens than the model has positions; it is refused rather than cut."""
    if tokens > model.text.max_positions:
        raise RecordError("too long", f"{tokens} tokens, the model has {model.text.max_positions} positions")


def check_texts(tokenizer: Tokenizer, texts: Iterable[str], model: ModelConfig) -> None:
    """Raise DataError for texts that alone have more tokens than the model has positions.

    This precedes encoding them as a whole, which takes 600 bytes of memory per character.
    """
    if exceeds(tokenizer, texts, model.text.max_positions):
        positions = model.text.max_positions
        raise RecordError("too long", f"more than {positions} tokens, the model has {positions} positions")


def first_sentence(caption: str) -> str:
    """Return the first sentence of a caption; all of it when no sentence ends earlier.

    A sentence ends at an empty line, at a Chinese or Japanese full stop, and at `.`, `!`, `?` or an ellipsis before
    white space, but not within a number or an abbreviation, before its first letter, or before a lower-case letter
    after an ellipsis, an exclamation, a question or a quotation.
    """
    caption = caption.strip()
    empty_line = EMPTY_LINE.search(caption)
    if empty_line:
        caption = caption[: empty_line.start()].rstrip()
    letter = LETTER.search(caption)
    for end in END.finditer(caption, letter.end() if letter else 0):
        if _is_end(caption, end):
            return caption[: end.end("closing")]
    return caption


def _is_end(caption: str, end: re.Match[str]) -> bool:
    """Return whether a match of END ends a sentence."""
    mark, following = end["mark"], end["following"]
    if not following or mark[0] in WIDE:
        return True
    if not end["space"]:
        return False
    if mark != "." or end["closing"]:
        return not following.islower()
    match = LAST_WORD.search(caption, max(0, end.start() - LONGEST_ABBREVIATION), end.start())
    word = match[0] if match else ""
    is_initial = len(word) == 1 and word.isupper()
    is_abbreviation = is_initial or "." in word or ABBREVIATIONS.fullmatch(word.lower())
    return not (is_abbreviation or (following.isdigit() and OF_NUMBERS.fullmatch(word.lower())))
