"""Prompts of one's own: what a checkpoint is to draw and to answer. Invariant: reading them needs no model."""

import json
from dataclasses import dataclass
from pathlib import Path

from janus_dist.errors import ConfigError


@dataclass(frozen=True)
class Asked:
    """What to draw, or what to ask about some images."""

    caption: str | None = None
    question: str | None = None
    images: tuple[str, ...] = ()


def read_prompts(path: Path) -> list[Asked]:
    """Prompts of a JSONL file: lines {"prompt": TEXT} to draw, or {"question": TEXT, "images": [FILE, ...]} to answer.

    Files are relative to the folder of `path`. ConfigError says which line is wrong.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompts {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found.append(_asked(line, f"{path}:{number}", path.parent))
    if not found:
        raise ConfigError(f"the prompts {path} are empty", 'write lines like {"prompt": "a red circle"}')
    return found


def _asked(line: str, where: str, folder: Path) -> Asked:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    if not isinstance(values, dict) or set(values) not in ({"prompt"}, {"question"}, {"question", "images"}):
        keys = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        raise ConfigError(
            f"{where} has {keys or 'nothing'}",
            'a line is {"prompt": TEXT} to draw, or {"question": TEXT, "images": [FILE, ...]} to answer',
        )
    if "prompt" in values:
        return Asked(caption=str(values["prompt"]))
    return Asked(
        question=str(values["question"]), images=tuple(str(folder / name) for name in values.get("images", ()))
    )
