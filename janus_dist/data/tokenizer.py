"""The tokenizer: a `tokenizer.json` with Janus's special tokens, which are always looked up by name.

Ids of special tokens differ between the published models (pad and begin_of_image of Janus-Pro-1B are not those of
Janus-1.3B), so the code contains no such id. Invariant: `encode` never adds or parses a special token.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from janus_dist.config.recipe import BaseRecipe
from janus_dist.errors import DataError

BOS = "<｜begin▁of▁sentence｜>"  # noqa: RUF001 - the name of the token in the published files
EOS = "<｜end▁of▁sentence｜>"  # noqa: RUF001 - the name of the token in the published files
PAD = "<｜▁pad▁｜>"  # noqa: RUF001 - the name of the token in the published files
IMAGE = "<image_placeholder>"
BOI = "<begin_of_image>"
EOI = "<end_of_image>"
REQUIRED = (BOS, EOS, PAD, IMAGE, BOI, EOI)
SPECIAL = (*REQUIRED, "<|User|>", "<|Assistant|>")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and the ids of its special tokens."""

    inner: tokenizers.Tokenizer
    sha256: str
    bos: int
    eos: int
    pad: int
    image: int
    boi: int
    eoi: int
    added: Mapping[str, int] = field(repr=False, hash=False)
    """Ids of all tokens that were added to the vocabulary, by name."""

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.json`; raise DataError when it is absent, unreadable or lacks a special token."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"data.tokenizer={path} cannot be read: {error.strerror}") from error
        try:
            inner = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises a bare Exception
            raise DataError(f"data.tokenizer={path} is not a tokenizer.json: {error}") from error
        missing = [name for name in REQUIRED if inner.token_to_id(name) is None]
        if missing:
            raise DataError(
                f"data.tokenizer={path} lacks the special tokens {', '.join(missing)}",
                "add them by name with tokenizers' add_special_tokens and save the file again",
            )
        ids = {name: token_id for name in REQUIRED if (token_id := inner.token_to_id(name)) is not None}
        digest = hashlib.sha256(content).hexdigest()
        added = {token.content: token_id for token_id, token in inner.get_added_tokens_decoder().items()}
        return cls(inner, digest, ids[BOS], ids[EOS], ids[PAD], ids[IMAGE], ids[BOI], ids[EOI], added)

    @property
    def size(self) -> int:
        """Return the number of ids, special tokens included."""
        return self.inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; the spelling of a special token is encoded as ordinary characters."""
        self.inner.encode_special_tokens = True
        return self.inner.encode(text, add_special_tokens=False).ids

    def role(self, name: str) -> int | str:
        """Return the id of a role that has its own token (`<|User|>`), else its name, to be encoded as text."""
        return self.added.get(name, name)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids without special tokens."""
        return self.inner.decode(list(ids), skip_special_tokens=True)


def load_tokenizer(recipe: BaseRecipe) -> Tokenizer:
    """Return the recipe's tokenizer; raises DataError when it cannot be read or does not fit the model's vocabulary."""
    tokenizer = Tokenizer.load(recipe.data.tokenizer)
    check_vocabulary(tokenizer, recipe)
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, recipe: BaseRecipe) -> None:
    """Raise DataError when the recipe's tokenizer has ids that the recipe's model does not have."""
    if tokenizer.size > recipe.model.text.vocab:
        raise DataError(
            f"data.tokenizer={recipe.data.tokenizer} has {tokenizer.size} ids, "
            f"more than model.text.vocab={recipe.model.text.vocab}",
            f"use the tokenizer that belongs to this model (config.json in its run folder), or, for a new model, set "
            f"model.text.vocab={tokenizer.size} or more",
        )


def train_tokenizer(texts: Iterable[str], vocab: int, path: Path) -> None:
    """Train a byte-level BPE of `vocab` ids, special tokens included, and write it as `tokenizer.json`."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    inner.save(str(path))
