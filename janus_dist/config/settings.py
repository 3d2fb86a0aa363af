"""YAML files and overrides merged into one tree of settings, each with the place where it was written.

Invariant: reading does not stop at the first fault; faults are collected and the rest is read. This module does not
know the settings of a recipe: load.py decides which keys exist and which values they may have.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml

from janus_dist.config.base import FaultKind
from janus_dist.config.paths import PASSWORD
from janus_dist.config.yaml12 import Yaml12Loader

OVERRIDE = re.compile(r"[\w-]+(\.[\w-]+)*=")
"""Beginning of an override; every other argument is a file."""
MAX_BYTES = 1 << 20
"""Bytes of the largest file that is read as a recipe; a recipe has a few kilobytes."""
MAX_SETTINGS = 100_000
"""Largest number of values, lists and sections in one file; each use of an anchor counts."""
INTEGERS = range(-(2**63), 2**63)
"""Integers that a setting may hold: those that fit into 64 bits, as numpy and torch require."""
REPLACE = "!replace"
"""Tag of a section that replaces the section of the same key in earlier files instead of being merged into it."""


@dataclass(frozen=True, order=True)
class SettingPlace:
    """Place where a setting was written. Places sort by their order on the command line, then by line."""

    order: int
    line: int
    text: str = field(compare=False)
    """Text shown to the user: `stage2.yaml:3` or `override 'stage=5'`."""
    is_override: bool = field(default=False, compare=False)


@dataclass(frozen=True, order=True)
class LocatedFault:
    """Fault and the place of the setting that causes it."""

    place: SettingPlace
    message: str
    kind: FaultKind = field(default="text", compare=False)


@dataclass(frozen=True)
class Setting:
    """Value, section or list (exactly one of the three) with its place."""

    place: SettingPlace
    value: Any = None
    section: "dict[str, Setting] | None" = None
    items: "list[Setting] | None" = None
    is_empty: bool = False
    """True if nothing is written after the key, which YAML reads as null."""
    replaces: bool = False
    """True if the setting replaces those of the same key in earlier files instead of being merged into them."""
    removed: "Setting | None" = None
    """Setting of an earlier file that this null replaces."""

    @property
    def is_null(self) -> bool:
        """Return whether this is a null, explicit or by an absent value."""
        return self.section is None and self.items is None and self.value is None

    def plain(self) -> Any:
        """Return the value without places."""
        if self.section is not None:
            return {key: setting.plain() for key, setting in self.section.items()}
        if self.items is not None:
            return [setting.plain() for setting in self.items]
        return self.value

    def find(self, path: Iterable[str | int]) -> "Setting":
        """Return the setting at `path`, or its nearest ancestor that exists."""
        setting = self
        for key in path:
            inner: dict[Any, Setting] = setting.section or dict(enumerate(setting.items or []))
            if key not in inner:
                break
            setting = inner[key]
        return setting

    def has(self, path: Iterable[str | int]) -> bool:
        """Return whether a setting exists at `path` itself."""
        *ancestors, last = path
        parent = self.find(ancestors)
        inner: dict[Any, Setting] = parent.section or dict(enumerate(parent.items or []))
        return last in inner and (not ancestors or self.has(ancestors))


@dataclass(frozen=True)
class Settings:
    """Result of merging all files and overrides, with the faults of their text."""

    root: Setting
    faults: list[LocatedFault]
    complete: bool
    """True if every file and override could be read; if not, absent settings may be in those that could not."""


def read(files: Iterable[Path], overrides: Iterable[str]) -> Settings:
    """Merge files left to right, then overrides `key.path=value` with YAML values; lists are replaced as a whole."""
    files, overrides = list(files), list(overrides)
    names = ", ".join(shown(path) for path in files) or "no recipe"
    root = Setting(SettingPlace(len(files), 0, names), section={})
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
    """Yield a fault for each password: recipes are written into run folders, reports and wandb."""
    for key, inner in (setting.section or dict(enumerate(setting.items or []))).items():
        yield from _passwords(f"{path}.{key}" if path else str(key), inner)
    if isinstance(setting.value, str) and PASSWORD.search(setting.value):
        yield LocatedFault(
            setting.place,
            f"{path}: the URL contains a password; set credentials in the environment (AWS_ACCESS_KEY_ID, ...) or use "
            "a role",
        )


def shown(path: Path) -> str:
    """Return a path as a user would type it: relative if it is below the current folder."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else path)


def _merge(earlier: Setting, later: Setting) -> Setting:
    if later.is_null:
        return replace(later, removed=earlier.removed if earlier.is_null else earlier)
    if later.section is None or later.replaces:
        return later
    if earlier.section is None:
        return replace(later, replaces=earlier.is_null)
    merged = dict(earlier.section)
    for key, setting in later.section.items():
        merged[key] = _merge(merged[key], setting) if key in merged else setting
    # A section keeps the place where a file opened it: faults about its missing keys must not point to an override of
    # another key.
    place = earlier.place if later.place.is_override else later.place
    return Setting(place, section=merged, replaces=earlier.replaces)


def _read_file(path: Path, order: int, faults: list[LocatedFault]) -> Setting | None:
    name = shown(path)
    place = SettingPlace(order, 0, name)
    try:
        with path.open("rb") as file:  # not read_text: a device or a pipe may have no end
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8")
    except FileNotFoundError:
        faults.append(LocatedFault(place, f"no such file{_nearest_file(path)}"))
        return None
    except (OSError, UnicodeDecodeError) as error:
        faults.append(LocatedFault(place, f"cannot be read: {error}"))
        return None
    if len(content) > MAX_BYTES:
        faults.append(LocatedFault(place, f"is larger than {MAX_BYTES:,} bytes and cannot be a recipe"))
        return None
    return _Reader(name, order, faults).section(text)


def _nearest_file(path: Path) -> str:
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"; the folder '{shown(folder)}' does not exist"
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{shown(path.with_name(close[0]))}'?"
    return f"; '{shown(folder)}' has {', '.join(names) or 'no YAML file'}"


def _read_override(override: str, order: int, faults: list[LocatedFault]) -> Setting | None:
    place = SettingPlace(order, 0, f"override '{PASSWORD.sub('***', override)}'", is_override=True)
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
    """Reader of one YAML text; appends faults to the list that it gets."""

    def __init__(
        self, name: str, order: int, faults: list[LocatedFault], fixed: SettingPlace | None = None, prefix: str = ""
    ):
        self.name, self.order, self.faults, self.fixed, self.prefix = name, order, faults, fixed, prefix
        self.settings = 0

    def section(self, text: str) -> Setting | None:
        """Return the text as a section, or None after adding a fault if it is not one."""
        setting = self.value(text)
        if setting is None or setting.section is not None:
            return setting
        if setting.value is None and setting.items is None:
            return Setting(setting.place, section={})  # an empty file, or one with only comments
        self.faults.append(LocatedFault(setting.place, "a recipe consists of `key: value` lines"))
        return None

    def value(self, text: str) -> Setting | None:
        """Return the text as any value, or None after adding a fault if it is not YAML."""
        try:
            loader = Yaml12Loader(text)
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

    def _place(self, line: int) -> SettingPlace:
        """Return the place of a line, which counts from 0 as in PyYAML."""
        return self.fixed or SettingPlace(self.order, line + 1, f"{self.name}:{line + 1}")

    def _setting(self, loader: Yaml12Loader, node: yaml.Node, ancestors: tuple[yaml.Node, ...], prefix: str) -> Setting:
        place = self._place(node.start_mark.line)
        self.settings += 1
        if self.settings > MAX_SETTINGS:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_SETTINGS:,} values after expanding every alias", problem_mark=node.start_mark
            )
        if any(node is parent for parent in ancestors):
            raise yaml.MarkedYAMLError(problem="an alias inside its own anchor", problem_mark=node.start_mark)
        ancestors = (*ancestors, node)
        if isinstance(node, yaml.SequenceNode):
            return Setting(place, items=[self._setting(loader, item, ancestors, prefix) for item in node.value])
        if not isinstance(node, yaml.MappingNode):
            value = cast(Any, loader.construct_object(node))  # pyright: ignore[reportUnknownMemberType]
            if type(value) is int and value not in INTEGERS:
                name = prefix.removesuffix(".")
                message = f"an integer must fit into 64 bits, {INTEGERS[0]} to {INTEGERS[-1]}; got {node.value[:40]}"
                self.faults.append(LocatedFault(place, f"{name}: {message}" if name else message))
            is_empty = isinstance(node, yaml.ScalarNode) and value is None and not node.value
            return Setting(place, value, is_empty=is_empty)
        section: dict[str, Setting] = {}
        for key_node, value_node in node.value:
            key_place = self._place(key_node.start_mark.line)
            if not isinstance(key_node, yaml.ScalarNode):
                self.faults.append(LocatedFault(key_place, "a key must be one word"))
                continue
            key = key_node.value  # as written: `on` stays `on` and does not become True
            if key in section:
                message = f"{prefix}{key}: given twice; first at {section[key].place.text}"
                self.faults.append(LocatedFault(key_place, message))
            # The key's line, not the value's: the place of a section or a long list is the line of its name.
            setting = self._setting(loader, value_node, ancestors, f"{prefix}{key}.")
            section[key] = replace(setting, place=key_place)
        return Setting(place, section=section, replaces=node.tag == REPLACE)
