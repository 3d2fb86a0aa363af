"""The tokenizer of the embedded default: a byte-level BPE of 2,048 ids, trained on the texts of the streams.

    python -m data_pipelines.tokenizer [PATH]        # jobs/recipes/tiny/tokenizer.json when absent

Invariant: the same texts give the same bytes; `pydoc_data.topics` differs between patch versions of Python, so the
version is recorded next to the file.
"""

import hashlib
import json
import platform
import pydoc_data.topics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from janus_dist.config.data import ChatConfig
from janus_dist.config.shipped import TINY
from janus_dist.data.tokenizer import train_tokenizer
from janus_dist.datasets import easy_vqa
from janus_dist.storage.fs import write_whole

PATH = TINY / "tokenizer.json"
VOCAB = 2_048


def texts() -> Iterator[str]:
    """Yield the training texts: Python's documentation by topic, and the conversations and captions of easy-vqa."""
    yield from (text for _, text in sorted(pydoc_data.topics.topics.items()))
    for image in easy_vqa.load("train"):
        yield from conversation_texts(image.questions, image.caption)


def conversation_texts(questions: Iterable[tuple[str, str]], caption: str) -> Iterator[str]:
    """Yield an image's questions and caption in the chat format, so that words are preceded by the usual space."""
    chat = ChatConfig()
    for question, answer in questions:
        yield f"{chat.user}: {question}\n\n{chat.assistant}: {answer}"
    yield f"{chat.user}: {caption}\n\n{chat.assistant}:"


def main(path: Path = PATH) -> None:
    """Train the tokenizer; write `PATH`, and its origin to `PATH.origin.json`."""
    train_tokenizer(texts(), VOCAB, path)
    write_whole(path.with_suffix(".origin.json"), json.dumps(origin(path), indent=1, sort_keys=True).encode() + b"\n")


def origin(path: Path) -> dict[str, str | int]:
    """Return command, Python version and digests of the texts and of the file at `path`."""
    read = hashlib.sha256()
    for text in texts():
        read.update(text.encode() + b"\0")
    return {
        "command": "python -m data_pipelines.tokenizer",
        "python": platform.python_version(),
        "vocab": VOCAB,
        "texts_sha256": read.hexdigest(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
