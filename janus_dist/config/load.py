"""Loading of recipes from YAML files and overrides: typed, with all faults at once and the origin of every value.

Invariant: `load` either returns a recipe that passed every rule or raises one ConfigError with all faults, each with
its file, its line and a suggestion. Nothing is started before that.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from janus_dist.config.diff import flatten
from janus_dist.config.explain import located_faults, report
from janus_dist.config.fields import close_matches, section_of
from janus_dist.config.recipe import BaseRecipe, StageRecipe
from janus_dist.config.settings import LocatedFault, Setting, read, shown
from janus_dist.errors import ConfigError
from janus_dist.storage.local import write_whole

R = TypeVar("R", bound=BaseRecipe)
R_co = TypeVar("R_co", bound=BaseRecipe, covariant=True)

SUBMITTED_FROM = "JANUS_SUBMITTED_FROM"
"""Environment variable with the folder from which this job was submitted; the job runs in a copy of it without data and
weights. It cannot be an override, which would also apply to earlier stages; these mix other sources and have paths of
their own."""
KEY = re.compile(r"[\w-]+")
"""Keys that can be written in an override."""


class RecipeError(ConfigError):
    """All faults of a recipe."""

    def __init__(self, message: str, hint: str | None = None, faults: Sequence[LocatedFault] = ()):
        super().__init__(message, hint)
        self.faults = tuple(faults)
        """Faults in the order of the message."""


@dataclass(frozen=True)
class Loaded(Generic[R_co]):
    """Recipe with its files and overrides and the origin of each value."""

    recipe: R_co
    origin: dict[str, str]
    """Origins by dotted key: `file:line`, `override` or `default`."""
    files: tuple[Path, ...]
    overrides: tuple[str, ...]

    def beside(self, key: str) -> tuple[Path, list[str]]:
        """Return the folder of the file that sets `key`, and all later settings as overrides.

        For a key set by an override this is the current folder. Later settings are those of the files after that file
        and of the overrides.
        """
        name = self.origin[key].rpartition(":")[0]
        names = [shown(path) for path in self.files]
        index = names.index(name) if name in names else None
        later = read(self.files[index + 1 :] if index is not None else (), self.overrides).root
        return self.files[index].parent if index is not None else Path(), list(_as_overrides(later))


def load(kind: type[R], files: Iterable[Path | str], overrides: Sequence[str] = ()) -> Loaded[R]:
    """Merge `files` left to right, apply `key.path=value` overrides and check the result.

    In a job that runs in a copy of the folder from which it was submitted, paths that the copy lacks are resolved in
    that folder. Raises RecipeError with all faults of the recipe.
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
            # A file that could not be read may contain the settings that seem to be missing.
            is_uncertain = not settings.complete and detail["type"] in ("missing", "value_error")
            if not is_uncertain and not _follows_from_others(detail, details):
                faults += located_faults(kind, root, detail)
    else:
        if not faults:
            resolved = recipe.with_paths(place_of_a_copy)
            return Loaded(resolved, _origin(recipe, root), paths, tuple(overrides))
    raise RecipeError(report(faults), _base_hint(paths, faults), faults=sorted(faults))


def load_any(files: Sequence[Path | str], overrides: Sequence[str] = ()) -> Loaded[BaseRecipe]:
    """Load a stage's recipe, or a base recipe if it has no setting of a stage.

    Raises RecipeError with all faults of the recipe.
    """
    stage_fields = set(StageRecipe.model_fields) - set(BaseRecipe.model_fields)
    if stage_fields & set(read(map(Path, files), overrides).root.section or {}):
        return load(StageRecipe, files, overrides)
    return load(BaseRecipe, files, overrides)


def save(loaded: Loaded[Any], folder: Path) -> None:
    """Write `config.json` (every value, including defaults) and `origin.json` (the origin of each) into `folder`."""
    for name, content in (("config.json", loaded.recipe.model_dump(mode="json")), ("origin.json", loaded.origin)):
        write_whole(folder / name, json.dumps(content, indent=1) + "\n")


def place_of_a_copy(path: str) -> str:
    """Return the path in the folder from which the job was submitted, unless the path exists here.

    Ray runs the job in a copy of that folder and deletes the copy afterwards.
    """
    folder = os.environ.get(SUBMITTED_FROM)
    return path if folder is None or Path(path).exists() else str(Path(folder) / path)


def _base_hint(paths: Sequence[Path], faults: Iterable[LocatedFault]) -> str | None:
    """Return the hint to load base.yaml too, if settings are missing and it is in the folder of a recipe."""
    for path in paths:
        base = path.parent / "base.yaml"
        if base not in paths and base.is_file() and any(fault.kind == "missing" for fault in faults):
            return f"{path.name} builds on {base}: give {' '.join(map(str, (base, *paths)))}"
    return None


def _without_removed(annotation: Any, setting: Setting, name: str, faults: list[LocatedFault]) -> Setting:
    """Return the setting without the keys that a null removes; a null for a missing key of a mapping is a fault.

    `name` is the dotted path of the setting with a final dot, and empty for the root.
    """
    if setting.section is None or annotation is None:
        return setting
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is dict:
        kept = _remaining_entries(get_args(annotation)[1], setting.section, name, faults)
    elif section_of(annotation) is annotation:
        kept = _remaining_fields(annotation, setting.section, name, faults)
    else:
        return setting
    return replace(setting, section=kept)


def _remaining_entries(
    annotation: Any, section: dict[str, Setting], name: str, faults: list[LocatedFault]
) -> dict[str, Setting]:
    """Return the entries of a mapping without those that a null removes; `annotation` is that of its values."""
    kept: dict[str, Setting] = {}
    for key, child in section.items():
        if not _is_removal(child):
            kept[key] = _without_removed(annotation, child, f"{name}{key}.", faults)
        elif child.removed is None:
            others = [other for other, sibling in section.items() if not sibling.is_null]
            message = f"{name}{key}: cannot be removed, it does not exist; {_suggest_entry(key, others)}"
            faults.append(LocatedFault(child.place, message))
    return kept


def _remaining_fields(
    kind: type[BaseModel], section: dict[str, Setting], name: str, faults: list[LocatedFault]
) -> dict[str, Setting]:
    """Return the settings of a section without those that a null resets: they have a default and do not take null."""
    kept: dict[str, Setting] = {}
    for key, child in section.items():
        field = kind.model_fields.get(key)
        has_reset = field is not None and not field.is_required() and NoneType not in get_args(field.annotation)
        if not (has_reset and _is_removal(child)):
            kept[key] = _without_removed(field.annotation if field else None, child, f"{name}{key}.", faults)
    return kept


def _is_removal(setting: Setting) -> bool:
    return setting.is_null and not setting.is_empty


def _suggest_entry(key: str, names: Sequence[str]) -> str:
    close = close_matches(key, names)
    return f"did you mean '{close[0]}'?" if close else f"the entries are {', '.join(names) or '(none)'}"


def _as_overrides(setting: Setting, name: str = "") -> Iterator[str]:
    """Yield the overrides that have the same effect on other files as a section."""
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


def _follows_from_others(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Return whether a list is too short only because its items are wrong, which is reported already."""
    return detail["type"] == "too_short" and any(other["loc"][:-1] == detail["loc"] for other in details)
