"""Messages about the faults of a recipe: pydantic's errors in our words, with suggestions, by file and line.

Invariant: nothing here decides whether a recipe is valid.
"""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from janus_dist.config.base import FaultKind, InvalidSettings
from janus_dist.config.fields import close_matches, keys, section_at, section_of
from janus_dist.config.mix import STREAMS
from janus_dist.config.settings import LocatedFault, Setting

LONGEST_SHOWN = 80
"""Largest number of characters of a wrong value in a message."""
COLONS = re.compile(r"[-+]?[0-9.]+(:[0-9.]+)+")
"""Numbers separated by colons, such as 2:3:5."""
NUMBER_TYPES = ("int_parsing", "float_parsing")
KINDS: dict[str, FaultKind] = {
    "missing": "missing",
    "extra_forbidden": "unknown",
    "model_type": "type",
    "model_attributes_type": "type",
}
"""Kinds of faults by pydantic's error types; every other error type is a wrong value."""


def located_faults(kind: type[BaseModel], root: Setting, detail: ErrorDetails) -> Iterator[LocatedFault]:
    """Yield the faults in one of pydantic's errors, with our messages."""
    path = tuple(part for part in detail["loc"] if part != "[key]")  # pydantic marks a wrong key by "[key]"
    name = ".".join(str(part) for part in path)
    if detail["type"] != "value_error":
        place = root.find(path).place
        message = _message(kind, detail, place.is_override)
        yield LocatedFault(place, f"{name}: {message}", KINDS.get(detail["type"], "value"))
        return
    error = detail.get("ctx", {})["error"]
    if not isinstance(error, InvalidSettings):  # raised by the validator of a single value
        yield LocatedFault(root.find(path).place, f"{name}: {error}" if name else str(error), "value")
        return
    for fault in error.faults:
        message = f"{name}: {fault.message}" if name else fault.message
        yield LocatedFault(_blamed(root.find(path), fault.paths).place, message, fault.kind)


def _blamed(section: Setting, paths: Sequence[str]) -> Setting:
    """Return the setting to blame for a broken rule that involves the settings at `paths` in this section.

    If the first of them is written, it is the one that was written last, by an override or the latest file; if it is
    absent, it is the section where it belongs. If none of them is written, it is the section itself.
    """
    key_paths = [tuple(path.split(".")) for path in paths]
    candidates = [(path, section.find(path)) for path in key_paths]
    candidates = [(path, setting) for path, setting in candidates if setting is not section]
    if not candidates:
        return section
    first_path, first = candidates[0]
    if not section.has(first_path):
        return first
    return max((setting for path, setting in candidates if section.has(path)), key=lambda setting: setting.place.order)


def _message(kind: type[BaseModel], detail: ErrorDetails, is_override: bool) -> str:
    error_type, value, path = detail["type"], detail["input"], detail["loc"]
    if error_type == "missing":
        return "is required"
    if error_type == "extra_forbidden":
        return f"no such key; {_suggest(kind, path)}"
    if error_type in ("model_type", "model_attributes_type"):
        section = section_at(kind, path)
        return (
            f"is a section with keys {', '.join(section.model_fields)}; got {_shown(value)}"
            f"{_right_form(path, value, is_override)}"
        )
    message = f"{re.sub(r'^[A-Z][a-z]+ should', 'should', detail['msg'])}; got {_shown(value)}"
    if error_type == "string_type" and not isinstance(value, list | dict | None):
        return f"{message}; put it in quotes{_quoted_for_shell(path, value) if is_override else ''}"
    if error_type in NUMBER_TYPES:
        return message + _right_form(path, value, is_override)
    if error_type == "literal_error" and isinstance(value, str):
        options = list(_options(kind, path))
        return message + "".join(f"; did you mean '{option}'?" for option in close_matches(value, options))
    return message


def _options(annotation: Any, path: Sequence[str | int]) -> Iterator[str]:
    """Yield the strings that the setting at `path` may have, or, if the path ends with "[key]", those of its key."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from (option for option in arguments if isinstance(option, str))
    elif origin is Annotated:
        yield from _options(arguments[0], path)
    elif origin in (Union, UnionType):
        for argument in arguments:
            yield from _options(argument, path)
    elif path:
        yield from _options(_annotation_within(annotation, path), () if path[1:] == ("[key]",) else path[1:])


def _annotation_within(annotation: Any, path: Sequence[str | int]) -> Any:
    """Return the annotation of the setting, item or key that the first part of `path` names; None if it is unknown."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return arguments[0] if path[1:] == ("[key]",) else arguments[1]
    if origin is tuple:
        return arguments[0]
    section = section_of(annotation)
    field = section.model_fields.get(str(path[0])) if section else None
    return field.annotation if field else None


def _quoted_for_shell(path: Sequence[str | int], value: Any) -> str:
    """Return an override with the value as a string; the shell removes one pair of quotes."""
    if any(isinstance(part, int) for part in path) or not isinstance(value, bool | int | float):
        return ""
    return f" that the shell keeps: \"{'.'.join(map(str, path))}='{json.dumps(value)}'\""


def _right_form(path: Sequence[str | int], value: Any, is_override: bool) -> str:
    """Return the right way to write a value that YAML 1.1 would have read as a number of base 60."""
    if not isinstance(value, str) or not COLONS.fullmatch(value):
        return ""
    parts = value.split(":")
    if path[0] == "mix" and len(parts) == len(STREAMS):
        ratio = ", ".join(f"{stream}: {part}" for stream, part in zip(STREAMS, parts, strict=True))
        written = shlex.quote(f"mix={{{ratio}}}") if is_override else f"mix: {{{ratio}}}"
        return f"; write a ratio as one number for each stream: {written}"
    return "; write one number without colons"


def _suggest(kind: type[BaseModel], path: Sequence[str | int]) -> str:
    """Return a suggestion for a key that does not exist."""
    key = str(path[-1])
    section_keys = list(section_at(kind, path[:-1]).model_fields)
    suggestions = (
        [name for name in keys(kind) if name.rpartition(".")[2] == key]  # exists, but in another section
        or close_matches(key, section_keys)
        or [name for name in section_keys if name.startswith(key)]
    )
    if suggestions:
        return f"did you mean {' or '.join(repr(name) for name in suggestions)}?"
    return f"the keys are {', '.join(section_keys)}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)  # as YAML writes it
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def report(faults: list[LocatedFault]) -> str:
    """Return the message with all faults, grouped by the places they are at."""
    lines = [f"{len(faults)} fault{'s' if len(faults) > 1 else ''} in the config; nothing was started."]
    place = None
    for fault in sorted(faults):
        if fault.place != place:
            lines.append(f"  {fault.place.text}")
        place = fault.place
        lines.append(f"    {fault.message}")
    return "\n".join(lines)
