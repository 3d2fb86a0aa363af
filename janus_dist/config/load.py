"""Recipes from YAML files and overrides: typed, with every fault reported at once and the origin of every value.

Invariant: `load` either returns a recipe that passed every rule or raises one ConfigError that names all faults found,
each with its file and line and what would fit. Nothing is started before that.
"""

import difflib
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from janus_dist.config.base import FaultKind, SettingFaults
from janus_dist.config.recipe import BaseRecipe, StageRecipe
from janus_dist.config.settings import LocatedFault, Setting, read, shown
from janus_dist.config.streams import STREAMS
from janus_dist.errors import ConfigError
from janus_dist.storage.local import write_whole

R = TypeVar("R", bound=BaseRecipe)
R_co = TypeVar("R_co", bound=BaseRecipe, covariant=True)

SUBMITTED_FROM = "JANUS_SUBMITTED_FROM"
"""Of the environment: the folder of whoever submitted this job, which runs in a copy of it without data and weights. No
override could say that: it would be one of the stages before as well, where other sources are mixed, and those have
paths of their own."""
LONGEST_SHOWN = 80
"""Characters of a wrong value that a message repeats."""
KEY = re.compile(r"[\w-]+")
"""A key that can be written in an override."""
COLONS = re.compile(r"[-+]?[0-9.]+(:[0-9.]+)+")
"""Numbers with colons between them, as 2:3:5."""
NUMBER_TYPES = ("int_parsing", "float_parsing")
KINDS: dict[str, FaultKind] = {
    "missing": "missing",
    "extra_forbidden": "unknown",
    "model_type": "type",
    "model_attributes_type": "type",
}
"""Kinds of faults by pydantic's types of errors; all others are wrong values."""


class RecipeError(ConfigError):
    """What is wrong with a recipe."""

    def __init__(self, message: str, hint: str | None = None, faults: Sequence[LocatedFault] = ()):
        super().__init__(message, hint)
        self.faults = tuple(faults)
        """One by one, in the message's order."""


@dataclass(frozen=True)
class Loaded(Generic[R_co]):
    """A recipe, what it was made of, and where each of its values came from."""

    recipe: R_co
    origin: dict[str, str]
    """Dotted key -> `file:line`, `override` or `default`."""
    files: tuple[Path, ...]
    overrides: tuple[str, ...]

    def beside(self, key: str) -> tuple[Path, list[str]]:
        """The folder of the file that says `key` (the current one for an override), and all that the files after it
        and the overrides say, as overrides."""
        written = self.origin[key].rpartition(":")[0]
        names = [shown(path) for path in self.files]
        place = names.index(written) if written in names else None
        later = read(self.files[place + 1 :] if place is not None else (), self.overrides).root
        return self.files[place].parent if place is not None else Path(), list(_as_overrides(later))


def load(kind: type[R], files: Iterable[Path | str], overrides: Sequence[str] = ()) -> Loaded[R]:
    """Merge `files` left to right, apply `key.path=value` overrides, check everything. In a job that runs in a copy of
    the folder that it was submitted from, paths that the copy lacks are those of that folder.

    Raises ConfigError with all faults when anything is wrong.
    """
    paths = tuple(Path(file) for file in files)
    settings = read(paths, overrides)
    faults = list(settings.faults)
    root = _without_removed(kind, settings.root, "", faults)
    try:
        recipe = kind.model_validate(root.plain())
    except ValidationError as error:
        details = error.errors(include_url=False)
        for detail in details:
            # What an unreadable file would have said is unknown: its settings are not missed.
            unknown = not settings.complete and detail["type"] in ("missing", "value_error")
            if not unknown and not _follows(detail, details):
                faults += _faults(kind, root, detail)
    else:
        if not faults:
            placed = recipe.with_paths(place_of_a_copy)
            return Loaded(placed, _origin(recipe, root), paths, tuple(overrides))
    raise RecipeError(_report(faults), _base_beside(paths, faults), faults=sorted(faults))


def load_any(files: Sequence[Path | str], overrides: Sequence[str] = ()) -> Loaded[BaseRecipe]:
    """A stage's recipe, or a base recipe when nothing of a stage is in it."""
    of_stages = set(StageRecipe.model_fields) - set(BaseRecipe.model_fields)
    if of_stages & set(read(map(Path, files), overrides).root.section or {}):
        return load(StageRecipe, files, overrides)
    return load(BaseRecipe, files, overrides)


def save(loaded: Loaded[Any], folder: Path) -> None:
    """Write `config.json` (every value, defaults too) and `origin.json` (where each came from) into `folder`."""
    for name, content in (("config.json", loaded.recipe.model_dump(mode="json")), ("origin.json", loaded.origin)):
        write_whole(folder / name, json.dumps(content, indent=1) + "\n")


def keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all settings of `kind`, sections not counted."""
    found: list[str] = []
    for name, field in kind.model_fields.items():
        section = _section(field.annotation)
        inner = f"{prefix}{name}.NAME." if _by_name(field.annotation) else f"{prefix}{name}."
        found += keys(section, inner) if section else [prefix + name]
    return found


def nearest_key(kind: type[BaseModel], key: str) -> str | None:
    """Return the setting that someone may mean by a dotted key or by the last part of one; None when none is near."""
    known = [name for name in keys(kind) if "NAME" not in name]
    key = key.replace("-", "_")
    if key in known:
        return key
    ends = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = _close(key, known) if "." in key else [ends[end] for end in _close(key, list(ends))]
    return near[0] if near else None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings; lists and empty mappings are values."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        else:
            yield prefix + name, value


def place_of_a_copy(path: str) -> str:
    """The path in the folder that the job was submitted from, unless its copy here, in which Ray runs the job and which
    it deletes, has it too."""
    folder = os.environ.get(SUBMITTED_FROM)
    return path if folder is None or Path(path).exists() else str(Path(folder) / path)


def _base_beside(paths: Sequence[Path], faults: Iterable[LocatedFault]) -> str | None:
    """A way out where what all stages share is missed and lies beside the recipe."""
    for path in paths:
        base = path.parent / "base.yaml"
        if base not in paths and base.is_file() and any(fault.kind == "missing" for fault in faults):
            return f"{path.name} goes over {base}: give {' '.join(map(str, (base, *paths)))}"
    return None


def _without_removed(annotation: Any, setting: Setting, name: str, faults: list[LocatedFault]) -> Setting:
    """Return the setting without the keys that a null removes: those of a mapping by name, and those of a section that
    have a default and do not take null themselves. A null for a key that is not in its mapping is a fault."""
    if setting.section is None or annotation is None:
        return setting
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    fields = annotation.model_fields if _section(annotation) is annotation else None
    by_name = get_args(annotation)[1] if get_origin(annotation) is dict else None
    kept: dict[str, Setting] = {}
    for key, child in setting.section.items():
        field = fields.get(key) if fields is not None else None
        if child.is_null and not child.is_empty:
            if field is not None and not field.is_required() and NoneType not in get_args(field.annotation):
                continue
            if by_name is not None and child.removed is not None:
                continue
            if by_name is not None:
                others = [other for other, beside in setting.section.items() if not beside.is_null]
                faults.append(LocatedFault(child.place, f"{name}{key}: there is none to remove; {_meant(key, others)}"))
                continue
        inner = field.annotation if field is not None else by_name
        kept[key] = _without_removed(inner, child, f"{name}{key}.", faults)
    return replace(setting, section=kept)


def _meant(key: str, names: Sequence[str]) -> str:
    close = _close(key, names)
    return f"did you mean '{close[0]}'?" if close else f"there are {', '.join(names) or 'none'}"


def _as_overrides(setting: Setting, name: str = "") -> Iterator[str]:
    """Yield a section as overrides, which laid over other files give what the section would give."""
    section = setting.section
    if name and setting.replaces:
        yield f"{name}=null"
    if section and all(KEY.fullmatch(key) for key in section):
        for key, child in section.items():
            yield from _as_overrides(child, f"{name}.{key}" if name else key)
    elif name:
        yield f"{name}={json.dumps(setting.plain(), default=str, ensure_ascii=False)}"


def _origin(recipe: BaseRecipe, root: Setting) -> dict[str, str]:
    written = dict(_written(root))
    return {key: written.get(key, "default") for key, _ in flatten(recipe.model_dump(mode="json"))}


def _written(setting: Setting, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, child in (setting.section or {}).items():
        if child.section is not None:
            yield from _written(child, f"{prefix}{name}.")
        else:
            yield prefix + name, "override" if child.place.is_override else child.place.text


def _section(annotation: Any) -> type[BaseModel] | None:
    """The settings class of a section, or of each section in a mapping by name."""
    inner = get_args(annotation)[1] if _by_name(annotation) else annotation
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def _by_name(annotation: Any) -> bool:
    return get_origin(annotation) is dict and _section(get_args(annotation)[1]) is not None


def _section_at(kind: type[BaseModel], path: Iterable[str | int]) -> type[BaseModel]:
    names = iter(path)
    for name in names:
        field = kind.model_fields.get(str(name))
        section = _section(field.annotation) if field else None
        if field is None or section is None:
            break
        if _by_name(field.annotation):
            next(names, None)
        kind = section
    return kind


def _follows(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Whether a list is too short only because its items are wrong, which is said already."""
    return detail["type"] == "too_short" and any(other["loc"][:-1] == detail["loc"] for other in details)


def _faults(kind: type[BaseModel], root: Setting, detail: ErrorDetails) -> Iterator[LocatedFault]:
    """The faults that one of pydantic's errors stands for, in our words."""
    path = tuple(part for part in detail["loc"] if part != "[key]")  # pydantic's mark of a key that is wrong itself
    name = ".".join(str(part) for part in path)
    if detail["type"] != "value_error":
        place = root.find(path).place
        message = _message(kind, detail, place.is_override)
        yield LocatedFault(place, f"{name}: {message}", KINDS.get(detail["type"], "value"))
        return
    error = detail.get("ctx", {})["error"]
    if not isinstance(error, SettingFaults):  # of one value
        yield LocatedFault(root.find(path).place, f"{name}: {error}" if name else str(error), "value")
        return
    for fault in error.faults:
        message = f"{name}: {fault.message}" if name else fault.message
        yield LocatedFault(_blamed(root.find(path), fault.paths).place, message, fault.kind)


def _blamed(section: Setting, paths: Sequence[str]) -> Setting:
    """Return the setting to blame: of those that a rule of this section is about, the first, unless it is written and
    an override or a later file wrote another one; the section itself where none of them is written."""
    keys_of = [tuple(path.split(".")) for path in paths]
    named = [(path, section.find(path)) for path in keys_of]
    named = [(path, setting) for path, setting in named if setting is not section]
    if not named:
        return section
    first_path, first = named[0]
    if not section.has(first_path):  # it is absent: what is over it is where it would be
        return first
    return max((setting for path, setting in named if section.has(path)), key=lambda setting: setting.place.order)


def _message(kind: type[BaseModel], detail: ErrorDetails, is_override: bool) -> str:
    what, value, path = detail["type"], detail["input"], detail["loc"]
    if what == "missing":
        return "is required"
    if what == "extra_forbidden":
        return f"no such key; {_suggest(kind, path)}"
    if what in ("model_type", "model_attributes_type"):
        section = _section_at(kind, path)
        return (
            f"is a section with keys {', '.join(section.model_fields)}; got {_shown(value)}"
            f"{_right_form(path, value, is_override)}"
        )
    message = f"{re.sub(r'^[A-Z][a-z]+ should', 'should', detail['msg'])}; got {_shown(value)}"
    if what == "string_type" and not isinstance(value, list | dict | None):
        return f"{message}; put it in quotes{_quoted_for_shell(path, value) if is_override else ''}"
    if what in NUMBER_TYPES:
        return message + _right_form(path, value, is_override)
    if what == "literal_error" and isinstance(value, str):
        options = list(_options(kind, path))
        return message + "".join(f"; did you mean '{option}'?" for option in _close(value, options))
    return message


def _options(annotation: Any, path: Sequence[str | int]) -> Iterator[str]:
    """Yield the texts that the setting at `path` may be, or, where the path ends with "[key]", its key."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from (option for option in arguments if isinstance(option, str))
    elif origin is Annotated:
        yield from _options(arguments[0], path)
    elif origin in (Union, UnionType):
        for argument in arguments:
            yield from _options(argument, path)
    elif path and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(path[0]))
        yield from _options(field.annotation if field else None, path[1:])
    elif path and origin is dict:
        yield from _options(arguments[0], ()) if path[1:] == ("[key]",) else _options(arguments[1], path[1:])
    elif path and origin is tuple:
        yield from _options(arguments[0], path[1:])


def _quoted_for_shell(path: Sequence[str | int], value: Any) -> str:
    """Return an override with the value as a text; a shell takes one pair of quotes away."""
    if any(isinstance(part, int) for part in path) or not isinstance(value, bool | int | float):
        return ""
    return f" that the shell leaves there: \"{'.'.join(map(str, path))}='{json.dumps(value)}'\""


def _right_form(path: Sequence[str | int], value: Any, is_override: bool) -> str:
    """Return how to write a value that YAML 1.1 would have read as a number of base 60."""
    if not isinstance(value, str) or not COLONS.fullmatch(value):
        return ""
    parts = value.split(":")
    if path[0] == "mix" and len(parts) == len(STREAMS):
        ratio = ", ".join(f"{stream}: {part}" for stream, part in zip(STREAMS, parts, strict=True))
        written = shlex.quote(f"mix={{{ratio}}}") if is_override else f"mix: {{{ratio}}}"
        return f"; a ratio is one number for each stream: {written}"
    return "; write one number without colons"


def _suggest(kind: type[BaseModel], path: Sequence[str | int]) -> str:
    """What the user may have meant by a key that does not exist."""
    key = str(path[-1])
    here = list(_section_at(kind, path[:-1]).model_fields)
    meant = (
        [name for name in keys(kind) if name.rpartition(".")[2] == key]  # right, but in another section
        or _close(key, here)
        or [name for name in here if name.startswith(key)]
    )
    if meant:
        return f"did you mean {' or '.join(repr(name) for name in meant)}?"
    return f"there are {', '.join(here)}"


def _close(word: str, words: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(word, words, n=1)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)  # as YAML writes it
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def _report(faults: list[LocatedFault]) -> str:
    lines = [f"{len(faults)} fault{'s' if len(faults) > 1 else ''} in the config; nothing was started."]
    place = None
    for fault in sorted(faults):
        if fault.place != place:
            lines.append(f"  {fault.place.text}")
        place = fault.place
        lines.append(f"    {fault.message}")
    return "\n".join(lines)
