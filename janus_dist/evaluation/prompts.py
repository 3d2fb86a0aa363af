"""Prompt files of users, with prompts to draw and questions to answer. Invariant: reading them needs no model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_dist.errors import ConfigError
from janus_dist.storage import json_lines

KEYS = ({"prompt"}, {"question"}, {"question", "images"}, {"question", "image"})
RULE = 'a line is {"prompt": TEXT} to draw, or {"question": TEXT, "images": [FILE, ...]} to answer'
SHOWN = 100
"""Largest number of characters of a value in a message."""


@dataclass(frozen=True)
class UserPrompt:
    """Caption to draw, or question about some images."""

    caption: str | None = None
    question: str | None = None
    images: tuple[str, ...] = ()


def read_prompts(path: Path) -> list[UserPrompt]:
    """Return the prompts of a JSONL file; a line is {"prompt": TEXT} or {"question": TEXT, "images": [FILE, ...]}.

    Image files are relative to the folder of `path`. Raises ConfigError that names the wrong line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the prompts {path} cannot be read: {error}") from error
    prompts = [_asked(line, f"{path}:{number}", path.parent) for number, line in json_lines.lines(content)]
    if not prompts:
        raise ConfigError(f"the prompts {path} are empty", 'write lines like {"prompt": "a red circle"}')
    return prompts


def _asked(line: bytes, where: str, folder: Path) -> UserPrompt:
    try:
        values = json_lines.parse(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    if not isinstance(values, dict) or set(values) not in KEYS:
        keys = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        raise ConfigError(f"{where} has {keys or 'nothing'}", RULE)
    for key in ("prompt", "question"):
        if key in values and (not isinstance(values[key], str) or not values[key].strip()):
            raise ConfigError(f"{where}: {key} is {json.dumps(values[key])[:SHOWN]}, not a text with words", RULE)
    if "prompt" in values:
        return UserPrompt(caption=values["prompt"])
    return UserPrompt(question=values["question"], images=_files(values, where, folder))


def _files(values: Mapping[str, Any], where: str, folder: Path) -> tuple[str, ...]:
    """Return the paths of a question's images, of which there may be none."""
    key = "image" if "image" in values else "images"
    names = values.get(key, [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{where}: {key} is {json.dumps(values[key])[:SHOWN]}, not a file or a list of files", RULE)
    return tuple(str(folder / name) for name in names)
