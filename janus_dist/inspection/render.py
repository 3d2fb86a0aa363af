"""Documents for people: ids as text, with what each piece is and when it is learned.

Invariant: the pieces of a document, in their order, stand for each of its stored ids once, and a piece is learned as a
whole or not at all.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from janus_dist.data.sample import GenerationSample, Sample, learned
from janus_dist.data.tokenizer import Tokenizer

Kind = Literal["text", "special", "image", "vq ids", "unknown"]
Learned = Literal["always", "all text", "never"]


@dataclass(frozen=True)
class Piece:
    """Some ids of a document that stand together and are of one kind."""

    text: str
    kind: Kind
    learned: Learned
    """`all text`: only where all text is supervised, not with `train.answers_only`."""

    def counts(self, answers_only: bool) -> bool:
        """Return whether the loss counts this piece."""
        return self.learned == "always" or (self.learned == "all text" and not answers_only)


def pieces(sample: Sample, tokenizer: Tokenizer, image_tokens: int) -> list[Piece]:
    """Return a document as training sees it: special tokens by name, images and VQ ids by their number."""
    ids = (sample.prompt_ids if isinstance(sample, GenerationSample) else sample.ids).astype(np.int64).tolist()
    special_ids = (tokenizer.boi, tokenizer.image, tokenizer.eoi)
    all_text, answers = (learned(sample, special_ids, answers_only).tolist() for answers_only in (False, True))
    names = special_names(tokenizer)
    tagged: list[tuple[int, Kind, Learned]] = [
        (number, kind_of(number, tokenizer, names), "always" if answer else "all text" if text else "never")
        for number, text, answer in zip(ids, all_text, answers, strict=True)
    ]
    found = []
    for (kind, when), run in groupby(tagged, key=lambda one: one[1:]):
        run_ids = [one[0] for one in run]
        images = [f"<image {image_tokens} tokens>"] * len(run_ids)
        texts = images if kind == "image" else text_of(kind, run_ids, tokenizer)
        found += [Piece(text, kind, when) for text in texts]
    if isinstance(sample, GenerationSample):
        follows = bool(all_text) and all_text[-1]  # an id that stands behind the image
        found.insert(len(found) - follows, Piece(f"<{len(sample.vq_ids)} VQ ids>", "vq ids", "always"))
    return found


def marked(found: list[Piece], answers_only: bool) -> str:
    """Return the document as plain text, with [[ ]] around all that the loss counts."""
    parts = []
    for counts, run in groupby(found, key=lambda piece: piece.counts(answers_only)):
        text = "".join(piece.text for piece in run)
        parts.append(f"[[{text}]]" if counts else text)
    return "".join(parts)


def visible(text: str) -> str:
    """Return the text whose characters that move a terminal's cursor or change its colors are written out, as \x1b."""
    return "".join(
        character if character in "\n\t" or character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def head(content: bytes) -> str:
    """Return the first bytes of something refused: as text where they are text, else as hexadecimal numbers."""
    try:
        return visible(content.decode())
    except UnicodeDecodeError:
        return content.hex(" ")


def special_names(tokenizer: Tokenizer) -> set[int]:
    """Return the ids that are shown by their name."""
    return {number for number, token in tokenizer.inner.get_added_tokens_decoder().items() if token.special}


def kind_of(number: int, tokenizer: Tokenizer, names: set[int]) -> Kind:
    """Return what an id of a document is; `names` are the `special_names`."""
    if number == tokenizer.image:
        return "image"
    if number in names:
        return "special"
    return "text" if number < tokenizer.size else "unknown"


def text_of(kind: Kind, ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """Return the texts that stand for ids of one kind, which is no kind of image: one for all of a text, else one for
    each."""
    match kind:
        case "text":
            return [visible(tokenizer.inner.decode(ids, skip_special_tokens=False))]
        case "special":
            return [tokenizer.inner.id_to_token(number) or f"<id {number}?>" for number in ids]
        case _:
            return [f"<id {number}?>" for number in ids]
