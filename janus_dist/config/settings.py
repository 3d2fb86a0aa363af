"""YAML files and overrides as one tree of settings, each with the place it came from.

Invariant: reading never stops at the first fault; what is wrong goes into a list and the rest is read on. Nothing here
knows what a recipe is: which keys exist and what they may hold is decided in load.py.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml

from janus_dist.config.base import FaultKind
from janus_dist.config.yaml12 import Loader

OVERRIDE = re.compile(r"[\w-]+(\.[\w-]+)*=")
"""What an override begins with; every other argument is a file."""
PASSWORD = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*(?=@)")
"""A name and a password in a URL."""
MAX_BYTES = 1 << 20
"""Size of the largest file that is read as a recipe; a recipe has a few kilobytes."""
MAX_SETTINGS = 100_000
"""Most values, lists and sections of one file, each use of an anchor counted."""
INTEGERS = range(-(2**63), 2**63)
"""Integers that a setting may hold: those that numpy and torch take."""
REPLACE = "!replace"
"""Tag of a section that takes the place of what files before it say of the same key, rather than being merged."""


@dataclass(frozen=True, order=True)
class Place:
    """Where a setting was written. Places sort by their order on the command line, then by line."""

    order: int
    line: int
    text: str = field(compare=False)
    """As it is shown: `stage2.yaml:3` or `override 'stage=5'`."""
    is_override: bool = field(default=False, compare=False)


@dataclass(frozen=True, order=True)
class LocatedFault:
    """One thing that is wrong, and where."""

    place: Place
    message: str
    kind: FaultKind = field(default="text", compare=False)


@dataclass(frozen=True)
class Setting:
    """A value, a section or a list (one of the three), with its place."""

    place: Place
    value: Any = None
    section: "dict[str, Setting] | None" = None
    items: "list[Setting] | None" = None
    is_empty: bool = False
    """Nothing is written after the key, which YAML reads as null."""
    replaces: bool = False
    """What files before say of the same key is dropped, not merged."""
    removed: "Setting | None" = None
    """What a null took the place of."""

    @property
    def is_null(self) -> bool:
        """Whether this is a null, written out or by leaving the value away."""
        return self.section is None and self.items is None and self.value is None

    def plain(self) -> Any:
        """The value without places."""
        if self.section is not None:
            return {key: setting.plain() for key, setting in self.section.items()}
        if self.items is not None:
            return [setting.plain() for setting in self.items]
        return self.value

    def find(self, path: Iterable[str | int]) -> "Setting":
        """The setting at `path`, or the nearest one above it."""
        found = self
        for key in path:
            inner: dict[Any, Setting] = found.section or dict(enumerate(found.items or []))
            if key not in inner:
                break
            found = inner[key]
        return found

    def has(self, path: Iterable[str | int]) -> bool:
        """Whether there is a setting at `path` itself."""
        *above, last = path
        over = self.find(above)
        inner: dict[Any, Setting] = over.section or dict(enumerate(over.items or []))
        return last in inner and (not above or self.has(above))


@dataclass(frozen=True)
class Settings:
    """All files and overrides merged, and what was wrong with them as text."""

    root: Setting
    faults: list[LocatedFault]
    complete: bool
    """Whether every file and override could be read; if not, absent settings say nothing."""


def read(files: Iterable[Path], overrides: Iterable[str]) -> Settings:
    """Merge files left to right, lists replaced whole, then overrides `key.path=value` with YAML values."""
    files, overrides = list(files), list(overrides)
    names = ", ".join(shown(path) for path in files) or "no recipe"
    root = Setting(Place(len(files), 0, names), section={})
    faults: list[LocatedFault] = []
    complete = True
    for order, path in enumerate(files):
        setting = _read_file(path, order, faults)
        complete &= setting is not None
        if setting is not None:
            root = replace(_merge(root, setting), place=root.place)
    for order, override in enumerate(overrides, start=len(files) + 1):
        setting = _read_override(override, order, faults)
        complete &= setting is not None
        if setting is not None:
            root = replace(_merge(root, setting), place=root.place)
    return Settings(root, faults + list(_passwords("", root)), complete)


def _passwords(path: str, setting: Setting) -> Iterator[LocatedFault]:
    """Recipes are written into run folders, reports and wandb, so none may hold a secret."""
    for key, inner in (setting.section or dict(enumerate(setting.items or []))).items():
        yield from _passwords(f"{path}.{key}" if path else str(key), inner)
    if isinstance(setting.value, str) and PASSWORD.search(setting.value):
        yield LocatedFault(
            setting.place,
            f"{path}: a URL with a password in it; give credentials by the environment (AWS_ACCESS_KEY_ID, ...) or "
            "a role",
        )


def shown(path: Path) -> str:
    """A path as a person would type it: relative where it lies below the current folder."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else path)


def _merge(under: Setting, over: Setting) -> Setting:
    if over.is_null:
        return replace(over, removed=under.removed if under.is_null else under)
    if over.section is None or over.replaces:
        return over
    if under.section is None:
        return replace(over, replaces=under.is_null)
    merged = dict(under.section)
    for key, setting in over.section.items():
        merged[key] = _merge(merged[key], setting) if key in merged else setting
    # A section stays where a file opened it: an override of one of its keys is not where the others are missing.
    place = under.place if over.place.is_override else over.place
    return Setting(place, section=merged, replaces=under.replaces)


def _read_file(path: Path, order: int, faults: list[LocatedFault]) -> Setting | None:
    name = shown(path)
    whole = Place(order, 0, name)
    try:
        with path.open("rb") as file:  # not read_text: a device or a pipe may have no end
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8")
    except FileNotFoundError:
        faults.append(LocatedFault(whole, f"no such file{_nearest_file(path)}"))
        return None
    except (OSError, UnicodeDecodeError) as error:
        faults.append(LocatedFault(whole, f"cannot be read: {error}"))
        return None
    if len(content) > MAX_BYTES:
        faults.append(LocatedFault(whole, f"is larger than {MAX_BYTES:,} bytes, which no recipe is"))
        return None
    return _Reader(name, order, faults).section(text)


def _nearest_file(path: Path) -> str:
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"; there is no folder '{shown(folder)}'"
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{shown(path.with_name(close[0]))}'?"
    return f"; '{shown(folder)}' has {', '.join(names) or 'no YAML file'}"


def _read_override(override: str, order: int, faults: list[LocatedFault]) -> Setting | None:
    place = Place(order, 0, f"override '{PASSWORD.sub('***', override)}'", is_override=True)
    if not OVERRIDE.match(override):
        faults.append(LocatedFault(place, "is not of the form key.path=value"))
        return None
    key, _, text = override.partition("=")
    setting = _Reader(place.text, order, faults, place, f"{key}.").value(text)
    for part in reversed(key.split(".")):
        if setting is not None:
            setting = Setting(place, section={part: setting})
    return setting


class _Reader:
    """Turns one YAML text into settings; its faults go to the list it was given."""

    def __init__(self, name: str, order: int, faults: list[LocatedFault], fixed: Place | None = None, prefix: str = ""):
        self.name, self.order, self.faults, self.fixed, self.prefix = name, order, faults, fixed, prefix
        self.settings = 0

    def section(self, text: str) -> Setting | None:
        """The text as a section; None (and a fault) when it is not one."""
        setting = self.value(text)
        if setting is None or setting.section is not None:
            return setting
        if setting.value is None and setting.items is None:
            return Setting(setting.place, section={})  # an empty file, or one of comments only
        self.faults.append(LocatedFault(setting.place, "a recipe is made of `key: value` lines"))
        return None

    def value(self, text: str) -> Setting | None:
        """The text as any value; None (and a fault) when it is not YAML."""
        try:
            loader = Loader(text)
            node = loader.get_single_node()
            if node is None:
                return Setting(self._place(0), is_empty=True)
            return self._setting(loader, node, (), self.prefix)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.faults.append(LocatedFault(self._place(mark.line if mark else 0), f"is not YAML: {error.problem}"))
        except (yaml.YAMLError, ValueError) as error:
            self.faults.append(LocatedFault(self._place(0), f"is not YAML: {' '.join(str(error).split())}"))
        return None

    def _place(self, line: int) -> Place:
        """`line` counts from 0, as PyYAML does."""
        return self.fixed or Place(self.order, line + 1, f"{self.name}:{line + 1}")

    def _setting(self, loader: Loader, node: yaml.Node, above: tuple[yaml.Node, ...], prefix: str) -> Setting:
        place = self._place(node.start_mark.line)
        self.settings += 1
        if self.settings > MAX_SETTINGS:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_SETTINGS:,} values once every alias is followed", problem_mark=node.start_mark
            )
        if any(node is parent for parent in above):
            raise yaml.MarkedYAMLError(problem="an alias inside its own anchor", problem_mark=node.start_mark)
        above = (*above, node)
        if isinstance(node, yaml.SequenceNode):
            return Setting(place, items=[self._setting(loader, item, above, prefix) for item in node.value])
        if not isinstance(node, yaml.MappingNode):
            value = cast(Any, loader.construct_object(node))  # pyright: ignore[reportUnknownMemberType]
            if type(value) is int and value not in INTEGERS:
                name = prefix.removesuffix(".")
                message = f"an integer may have 64 bits, {INTEGERS[0]} to {INTEGERS[-1]}; got {node.value[:40]}"
                self.faults.append(LocatedFault(place, f"{name}: {message}" if name else message))
            is_empty = isinstance(node, yaml.ScalarNode) and value is None and not node.value
            return Setting(place, value, is_empty=is_empty)
        found: dict[str, Setting] = {}
        for key_node, value_node in node.value:
            key_place = self._place(key_node.start_mark.line)
            if not isinstance(key_node, yaml.ScalarNode):
                self.faults.append(LocatedFault(key_place, "a key must be one word"))
                continue
            key = key_node.value  # as written: `on` stays `on` and does not become True
            if key in found:
                self.faults.append(
                    LocatedFault(key_place, f"{prefix}{key}: given twice; first at {found[key].place.text}")
                )
            # The key's line, not the value's: a section's own line is its name, a long list's is where it begins.
            found[key] = replace(self._setting(loader, value_node, above, f"{prefix}{key}."), place=key_place)
        return Setting(place, section=found, replaces=node.tag == REPLACE)
