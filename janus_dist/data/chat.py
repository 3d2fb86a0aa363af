"""Documents as token ids: conversations, prompts for images, plain text.

The format is DeepSeek's (`conversation.py` and `processing_vlm.py` of deepseek-ai/Janus, sft_format "deepseek"):
messages are `ROLE: text`, an empty line follows the user's, end-of-sentence the assistant's, and an image stands as
begin_of_image, placeholder, end_of_image at the start of the first question. Invariant: a prompt built for asking is a
prefix of the document built for training.
"""

from collections.abc import Sequence

from janus_dist.config.data import ChatConfig
from janus_dist.data.tokenizer import Tokenizer

Span = tuple[int, int]


def understanding_ids(
    tokenizer: Tokenizer, chat: ChatConfig, turns: Sequence[tuple[str, str | None]], num_images: int
) -> tuple[list[int], list[Span]]:
    """(ids, answer spans) of a conversation of (question, answer) turns about `num_images` images.

    One placeholder id stands for each image. An answer of None ends the ids after `Assistant:`. Spans cover the answer
    and its end-of-sentence.
    """
    ids = [tokenizer.bos]
    spans: list[Span] = []
    text = f"{chat.system_prompt}\n\n" if chat.system_prompt else ""
    for number, (question, answer) in enumerate(turns):
        # text between two special tokens is encoded in one piece, as the official processor does; the answer's space
        # opens a new word in any byte-level tokenizer, so cutting before it changes no id
        text += f"{chat.user}: "
        if number == 0:
            for _ in range(num_images):
                ids += [*tokenizer.encode(text), tokenizer.boi, tokenizer.image, tokenizer.eoi]
                text = "\n"
        ids += tokenizer.encode(f"{text}{question.strip()}\n\n{chat.assistant}:")
        text = ""
        if answer is not None:
            start = len(ids)
            ids += [*tokenizer.encode(f" {answer.strip()}"), tokenizer.eos]
            spans.append((start, len(ids)))
    return ids, spans


def generation_prompt_ids(tokenizer: Tokenizer, chat: ChatConfig, caption: str) -> list[int]:
    """Ids of a prompt for an image; its VQ ids follow the last id, begin_of_image."""
    text = f"{chat.user}: {caption.strip()}\n\n{chat.assistant}:"
    return [tokenizer.bos, *tokenizer.encode(text), tokenizer.boi]


def text_ids(tokenizer: Tokenizer, text: str, max_tokens: int) -> list[list[int]]:
    """Documents of at most `max_tokens` ids (3 or more), begin and end included, that together hold the whole text.

    No document for an empty text.
    """
    ids = tokenizer.encode(text)
    piece = max_tokens - 2
    assert piece > 0, f"max_tokens={max_tokens} leaves no room between begin and end"
    return [[tokenizer.bos, *ids[start : start + piece], tokenizer.eos] for start in range(0, len(ids), piece)]
