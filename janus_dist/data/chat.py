"""Documents as token ids: conversations, prompts for images, plain text.

The format is DeepSeek's (`conversation.py` and `processing_vlm.py` of deepseek-ai/Janus, sft_format "deepseek"):
messages are `ROLE: text`; an empty line follows a user message, end-of-sentence follows an assistant message. The mark
of an image becomes begin_of_image, placeholder, end_of_image. Text between two special tokens is encoded in one piece.
Invariants: the prompt built for inference is a prefix of the document built for training; user text never becomes a
special token, only a role whose name is a special token does (`<|User|>` of Janus-Pro).
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from janus_dist.config.data import ChatConfig
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import RecordError

Span = tuple[int, int]
"""First and one-past-last position of an answer in the ids of a document."""
IMAGE_MARK = "<image>"
"""Mark of an image in a text, as in LLaVA."""
ENCODED_CHARS = 16_384
"""Characters encoded by one call: the tokenizer keeps 600 bytes for each, and slows down as their number grows."""
WORD_CHARS = 65_536
"""Characters without white space after which a text is cut between two characters, which changes a few ids there."""
WORD_START = re.compile(r"(?<=\S)\s")
"""White space that follows a word: a place to cut a text."""


def understanding_ids(
    tokenizer: Tokenizer,
    chat: ChatConfig,
    turns: Sequence[tuple[str, str | None]],
    num_images: int,
    system_prompt: str | None = None,
) -> tuple[list[int], list[Span]]:
    """Return (ids, answer spans) of a conversation of (question, answer) turns about `num_images` images.

    Each image is one placeholder id, at its mark in a question or, without marks, before the first question.
    An answer of None ends the ids after `Assistant:`. Spans cover the answer and its end-of-sentence. `system_prompt`
    replaces that of `chat`. Raises RecordError when the numbers of marks and images differ, or an answer has a mark.
    """
    ids: list[int] = []
    spans: list[Span] = []
    system_prompt = chat.system_prompt if system_prompt is None else system_prompt
    parts: list[str | int] = [tokenizer.bos, f"{system_prompt}\n\n" if system_prompt else ""]
    for question, answer in with_marks(turns, num_images):
        question_parts = _with_images(tokenizer, question.strip())
        parts += [tokenizer.role(chat.user), ": ", *question_parts, "\n\n", tokenizer.role(chat.assistant), ":"]
        if answer is not None:
            # The answer's space opens a new word in any byte-level tokenizer, so cutting before it changes no id.
            ids += _encode(tokenizer, parts)
            start = len(ids)
            ids += [*tokenizer.encode(f" {answer.strip()}"), tokenizer.eos]
            spans.append((start, len(ids)))
            parts = []
    return ids + _encode(tokenizer, parts), spans


def with_marks(turns: Sequence[tuple[str, str | None]], num_images: int) -> Sequence[tuple[str, str | None]]:
    """Return the turns with a mark for each image; without any mark, each image gets a line before the first question.

    Raises RecordError when the numbers of marks and images differ, or an answer has a mark, where no image can be.
    """
    for index, (_, answer) in enumerate(turns):
        if IMAGE_MARK in (answer or ""):
            raise RecordError("images", f"the mark {IMAGE_MARK} is in answer {index}")
    (question, answer), *others = turns
    if _marks_are_missing((question for question, _ in turns), num_images):
        return [(f"{IMAGE_MARK}\n" * num_images + question.strip(), answer), *others]
    return turns


def plain_ids(tokenizer: Tokenizer, text: str, num_images: int) -> tuple[list[int], list[Span]]:
    """Return (ids, answer spans) of a text with images between begin- and end-of-sentence, without roles.

    Images are at their marks or, without marks, before the text (`<image><text>` in Janus, section 3.2). Spans cover
    all text and end-of-sentence. Raises RecordError when the numbers of marks and images differ.
    """
    text = text.strip()
    if _marks_are_missing([text], num_images):
        text = IMAGE_MARK * num_images + text
    ids: list[int] = [tokenizer.bos]
    spans: list[Span] = []
    *parts, last = _with_images(tokenizer, text)
    for part in parts:
        start = len(ids)
        ids += _encode(tokenizer, [part])
        if isinstance(part, str) and part:
            spans.append((start, len(ids)))
    start = len(ids)
    ids += [*_encode(tokenizer, [last]), tokenizer.eos]
    return ids, [*spans, (start, len(ids))]


def generation_prompt_ids(tokenizer: Tokenizer, chat: ChatConfig, caption: str) -> list[int]:
    """Return the ids of a prompt for an image; its VQ ids follow the last id, begin_of_image."""
    user, assistant = tokenizer.role(chat.user), tokenizer.role(chat.assistant)
    return _encode(tokenizer, [tokenizer.bos, user, f": {caption.strip()}\n\n", assistant, ":", tokenizer.boi])


def image_end_ids(tokenizer: Tokenizer, chat: ChatConfig) -> list[int]:
    """Return the ids that follow the last VQ id of an image: one or none."""
    return {"none": [], "end_of_image": [tokenizer.eoi], "end_of_sentence": [tokenizer.eos]}[chat.image_end]


def text_ids(tokenizer: Tokenizer, text: str, max_tokens: int) -> list[NDArray[np.uint32]]:
    """Return the ids of a document with begin- and end-of-sentence, in pieces of at most `max_tokens` (2 or more).

    Each piece: [token] uint32; an empty text has none. A piece begins with the id that the one before ends with, as
    context without a label (the plan cuts text in the same way), so every id but begin-of-sentence is a label once,
    and end-of-sentence is learned only where the document ends.
    """
    assert max_tokens > 1, f"max_tokens={max_tokens} leaves no room for a token and the one before it"
    if not text:
        return []
    encoded = (np.array(tokenizer.encode(part), dtype=np.uint32) for part in _parts(text))
    ids = np.concatenate([np.array([tokenizer.bos], np.uint32), *encoded, np.array([tokenizer.eos], np.uint32)])
    return [ids[start : start + max_tokens] for start in range(0, len(ids) - 1, max_tokens - 1)]


def exceeds(tokenizer: Tokenizer, texts: Iterable[str], max_tokens: int) -> bool:
    """Return whether texts need more than `max_tokens` in any document; False when it depends on the document.

    Encoding stops as soon as the limit is passed: memory and time do not grow with a text that is far too long. One
    token of each text is not counted, since its ends may merge with the text before and after it.
    """
    texts = list(texts)
    if sum(map(len, texts)) <= ENCODED_CHARS:
        return False
    tokens = 0
    for text in texts:
        tokens -= 1
        for part in _parts(text):
            tokens += len(tokenizer.encode(part))
            if tokens > max_tokens:
                return True
    return False


def _parts(text: str) -> Iterator[str]:
    """Yield a text cut where white space begins, which changes no id of a byte-level tokenizer."""
    start = 0
    while len(text) - start > ENCODED_CHARS:
        space = WORD_START.search(text, start + ENCODED_CHARS, start + WORD_CHARS)
        stop = space.start() if space else min(start + WORD_CHARS, len(text))
        yield text[start:stop]
        start = stop
    yield text[start:]


def _marks_are_missing(texts: Iterable[str], num_images: int) -> bool:
    """Return whether images must be put before the texts, which have no mark.

    Raises RecordError when the texts have marks, but not one for each image.
    """
    marks = sum(text.count(IMAGE_MARK) for text in texts)
    if marks in (0, num_images):
        return marks != num_images
    if num_images == 0:
        raise RecordError("images", f"the text has the mark {IMAGE_MARK} but no image")
    raise RecordError("images", f"{marks} marks in the text for {num_images} images")


def _with_images(tokenizer: Tokenizer, text: str) -> list[str | int]:
    """Return the texts around the marks, possibly empty, and between them the three ids of each image."""
    first, *others = text.split(IMAGE_MARK)
    image = (tokenizer.boi, tokenizer.image, tokenizer.eoi)
    return [first, *(part for other in others for part in (*image, other))]


def _encode(tokenizer: Tokenizer, parts: Sequence[str | int]) -> list[int]:
    """Return the ids of texts and special tokens; adjacent texts are joined before they are encoded."""
    ids: list[int] = []
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
        else:
            ids += [*tokenizer.encode(text), part]
            text = ""
    return ids + tokenizer.encode(text)
