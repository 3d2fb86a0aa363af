"""Questions and formats of benchmarks: questions about images, or prompts for drawings.

Invariant: a benchmark depends on its published files and the answers only, never on a model.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_dist.errors import DataError
from janus_dist.storage import json_lines

# Instructions that LLaVA appends to a question (haotian-liu/LLaVA docs/Evaluation.md); Janus is evaluated with them in
# open-compass/VLMEvalKit (vlmeval/vlm/janus.py).
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class BenchmarkQuestion:
    """One question, or one prompt to draw."""

    id: str
    """Id, unique within the benchmark."""
    prompt: str
    """Text for the model."""
    images: tuple[Path | bytes, ...]
    """Image files or encoded images, which come before the text."""
    entry: Mapping[str, Any]
    """Published entry, with everything needed to write and score an answer."""


Answered = Sequence[tuple[BenchmarkQuestion, str]]
"""(question, answer) in the published order; answers to prompts of drawings are empty."""


@dataclass(frozen=True)
class Benchmark:
    """Published input and output format of one benchmark."""

    read: Callable[[Path], list[BenchmarkQuestion]]
    """Function from a folder to its questions; raises DataError when files are missing or have another format."""
    write: Callable[[Answered], dict[str, str]]
    """Function from answers to the files for the scorer: text by path."""
    score: Callable[[Answered], dict[str, float]]
    """Function from answers to scores as the scorer counts them; empty when a judge is needed."""
    max_new_tokens: int = 128
    """Largest number of tokens of an answer; LLaVA's limits."""
    is_drawn: bool = False
    """True when the benchmark asks for drawings, not for answers."""


def with_options(question: str, options: Iterable[str]) -> str:
    """Return a multiple-choice question in LLaVA's format: A., B., ... on one line each, and a request for a letter."""
    letters = (f"\n{chr(ord('A') + number)}. {option}" for number, option in enumerate(options))
    return "".join((question, *letters, LETTER))


def load_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises DataError when it is missing or not JSON."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def load_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file. Raises DataError that names the first invalid line."""
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
    """Return the text of a JSONL file with `entries`."""
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def read_text(path: Path) -> str:
    """Return the text of a published file. Raises DataError when it cannot be read or is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from error


def read_bytes(path: Path) -> bytes:
    """Return the content of a published file. Raises DataError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", "see docs/evaluation.md for the expected files"
        ) from error


def fields(entry: Any, names: Sequence[str], where: str) -> list[Any]:
    """Return the values of an entry's fields. Raises DataError when one is missing."""
    missing = [name for name in names if not isinstance(entry, Mapping) or name not in entry]
    if missing:
        raise DataError(f"{where} has no {', '.join(missing)}", "see docs/evaluation.md for the expected format")
    return [entry[name] for name in names]


def share(marks: Iterable[bool]) -> float:
    """Return the share of True; 0 without any marks."""
    values = list(marks)
    return sum(values) / len(values) if values else 0.0
