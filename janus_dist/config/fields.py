"""Names of the settings of a recipe and the classes of its sections, read from the typed recipe."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel


def keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the dotted names of all settings of `kind`, without sections."""
    names: list[str] = []
    for name, field in kind.model_fields.items():
        section = section_of(field.annotation)
        inner = f"{prefix}{name}.NAME." if is_section_map(field.annotation) else f"{prefix}{name}."
        names += keys(section, inner) if section else [prefix + name]
    return names


def nearest_key(kind: type[BaseModel], key: str) -> str | None:
    """Return the setting that is most similar to a dotted key or to the last part of one, or None."""
    known = [name for name in keys(kind) if "NAME" not in name]
    key = key.replace("-", "_")
    if key in known:
        return key
    ends = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = close_matches(key, known) if "." in key else [ends[end] for end in close_matches(key, list(ends))]
    return near[0] if near else None


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the settings class of a section, or of each section in a mapping; None if it is neither."""
    inner = get_args(annotation)[1] if is_section_map(annotation) else annotation
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def is_section_map(annotation: Any) -> bool:
    """Return whether an annotation is a mapping from names to sections."""
    return get_origin(annotation) is dict and section_of(get_args(annotation)[1]) is not None


def section_at(kind: type[BaseModel], path: Iterable[str | int]) -> type[BaseModel]:
    """Return the class of the section at `path`, or of the last section on the way if the path leads further."""
    names = iter(path)
    for name in names:
        field = kind.model_fields.get(str(name))
        section = section_of(field.annotation) if field else None
        if field is None or section is None:
            break
        if is_section_map(field.annotation):
            next(names, None)
        kind = section
    return kind


def close_matches(word: str, words: Sequence[str]) -> list[str]:
    """Return the word that is most similar to `word` as a list of one, or an empty list."""
    return difflib.get_close_matches(word, words, n=1)
