"""Documents as token ids: conversations, images with text, prompts for images, plain text.

The format is DeepSeek's (`conversation.py` and `processing_vlm.py` of deepseek-ai/Janus, sft_format "deepseek"):
messages are `ROLE: text`, an empty line follows the user's, end-of-sentence the assistant's, and an image stands as
begin_of_image, placeholder, end_of_image where a mark is in the text, at the start of the first question when there is
none. Invariant: a prompt built for asking is a prefix of the document built for training.
"""

from collections.abc import Sequence

from janus_dist.config.data import ChatConfig
from janus_dist.data.tokenizer import Tokenizer

IMAGE_MARK = "<image>"
"""Stands for an image in the texts of conversations (LLaVA's format)."""

Span = tuple[int, int]


def understanding_ids(
    tokenizer: Tokenizer,
    chat: ChatConfig,
    turns: Sequence[tuple[str, str | None]],
    num_images: int,
    system_prompt: str | None = None,
) -> tuple[list[int], list[Span]]:
    """(ids, answer spans) of a conversation of (question, answer) turns about `num_images` images.

    One placeholder id stands for each image. Questions hold as many image marks as there are images, or none, which
    puts all images first. An answer of None ends the ids after `Assistant:`. Spans cover the answer and its
    end-of-sentence. `system_prompt` stands in for the chat's own.
    """
    ids = [tokenizer.bos]
    spans: list[Span] = []
    system_prompt = chat.system_prompt if system_prompt is None else system_prompt
    text = f"{system_prompt}\n\n" if system_prompt else ""
    has_marks = count_marks(turns) > 0
    for number, (question, answer) in enumerate(turns):
        # text between two special tokens is encoded in one piece, as the official processor does; the answer's space
        # opens a new word in any byte-level tokenizer, so cutting before it changes no id
        marks = f"{IMAGE_MARK}\n" * num_images if number == 0 and not has_marks else ""
        asked = f"{marks}{question.strip()}\n\n{chat.assistant}:"
        for place, part in enumerate(asked.split(IMAGE_MARK) if num_images else [asked]):
            if place:
                ids += [*tokenizer.encode(text), tokenizer.boi, tokenizer.image, tokenizer.eoi]
                text = ""
            text += part if place else f"{chat.user}: {part}"
        ids += tokenizer.encode(text)
        text = ""
        if answer is not None:
            start = len(ids)
            ids += [*tokenizer.encode(f" {answer.strip()}"), tokenizer.eos]
            spans.append((start, len(ids)))
    return ids, spans


def count_marks(turns: Sequence[tuple[str, str | None]]) -> int:
    """Image marks in the questions of a conversation."""
    return sum(question.count(IMAGE_MARK) for question, _ in turns)


def plain_ids(tokenizer: Tokenizer, text: str, num_images: int) -> tuple[list[int], list[Span]]:
    """(ids, spans) of a text with images at its marks, or images first where it has none, without any roles.

    Spans cover all of the text and its end-of-sentence: `<image><text>` of Janus's stages 1 and 2.
    """
    if num_images and IMAGE_MARK not in text:
        text = IMAGE_MARK * num_images + text
    ids = [tokenizer.bos]
    spans: list[Span] = []
    parts = text.strip().split(IMAGE_MARK) if num_images else [text.strip()]
    for place, part in enumerate(parts):
        if place:
            ids += [tokenizer.boi, tokenizer.image, tokenizer.eoi]
        start = len(ids)
        ids += tokenizer.encode(part)
        if place == len(parts) - 1:
            ids.append(tokenizer.eos)
        if len(ids) > start:
            spans.append((start, len(ids)))
    return ids, spans


def generation_prompt_ids(tokenizer: Tokenizer, chat: ChatConfig, caption: str) -> list[int]:
    """Ids of a prompt for an image; its VQ ids follow the last id, begin_of_image."""
    text = f"{chat.user}: {caption.strip()}\n\n{chat.assistant}:"
    return [tokenizer.bos, *tokenizer.encode(text), tokenizer.boi]


def text_ids(tokenizer: Tokenizer, text: str, max_tokens: int) -> list[list[int]]:
    """A document as pieces of at most `max_tokens` ids (2 or more): begin at the first, end at the last, and each
    piece opening with the id that the one before it ends with, so that every id but the first is predicted once.

    No piece for an empty text.
    """
    ids = tokenizer.encode(text)
    if not ids:
        return []
    ids = [tokenizer.bos, *ids, tokenizer.eos]
    return [ids[start : start + max_tokens] for start in range(0, len(ids) - 1, max_tokens - 1)]
