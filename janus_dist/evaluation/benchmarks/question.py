"""What a benchmark asks and how it is read: questions about images, or prompts for drawings.

Invariant: a benchmark is functions of its published files and of the answers alone; nothing here knows a model.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_dist.errors import DataError
from janus_dist.storage import json_lines

# What LLaVA says after a question (haotian-liu/LLaVA docs/Evaluation.md), and Janus is asked with in
# open-compass/VLMEvalKit (vlmeval/vlm/janus.py).
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Question:
    """One question, or one prompt to draw."""

    id: str
    """No other question of the benchmark has it."""
    prompt: str
    """As it is put to the model."""
    images: tuple[Path | bytes, ...]
    """Files or encoded images that it is about, which come before it."""
    entry: Mapping[str, Any]
    """The published entry, and what else is needed to write and score an answer."""


Answered = Sequence[tuple[Question, str]]
"""Questions in their published order, with answers; those to prompts are empty."""


@dataclass(frozen=True)
class Benchmark:
    """The published format of one benchmark, in and out."""

    read: Callable[[Path], list[Question]]
    """The questions in a folder; DataError when its files are absent or of another format."""
    write: Callable[[Answered], dict[str, str]]
    """Files as its scorer reads them: text by path."""
    score: Callable[[Answered], dict[str, float]]
    """Scores that the answers alone decide, as its scorer counts them; empty where that takes a judge."""
    max_new_tokens: int = 128
    """Of an answer; LLaVA's limits."""
    is_drawn: bool = False
    """Whether images are asked for rather than answers."""


def with_options(question: str, options: Iterable[str]) -> str:
    """Return a multiple-choice question as LLaVA asks it: A., B., ... on a line each, and the request for a letter."""
    letters = (f"\n{chr(ord('A') + number)}. {option}" for number, option in enumerate(options))
    return "".join((question, *letters, LETTER))


def load_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises DataError when it is absent or not JSON."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def load_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file; DataError names the line that is not one."""
    entries: list[dict[str, Any]] = []
    for number, line in json_lines.lines(read_bytes(path)):
        try:
            entry = json_lines.parse(line)
        except ValueError as error:
            raise DataError(f"{path}:{number} is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise DataError(f"{path}:{number} is {type(entry).__name__}, not an object")
        entries.append(entry)
    return entries


def dump_lines(entries: Iterable[Mapping[str, Any]]) -> str:
    """Return entries as the text of a JSON Lines file."""
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def read_text(path: Path) -> str:
    """Return the text of a published file. Raises DataError when it cannot be read."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8: {error}") from error


def read_bytes(path: Path) -> bytes:
    """Return the content of a published file; DataError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", "docs/evaluation.md says what is expected"
        ) from error


def fields(entry: Any, names: Sequence[str], where: str) -> list[Any]:
    """Return the values of an entry's fields. Raises DataError when one is absent."""
    missing = [name for name in names if not isinstance(entry, Mapping) or name not in entry]
    if missing:
        raise DataError(f"{where} has no {', '.join(missing)}", "docs/evaluation.md says which format is expected")
    return [entry[name] for name in names]


def share(marks: Iterable[bool]) -> float:
    """Return the share of true values; 0 when there are none."""
    found = list(marks)
    return sum(found) / len(found) if found else 0.0
