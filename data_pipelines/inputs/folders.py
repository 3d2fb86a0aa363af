"""A folder of images for each class, as ImageNet comes; the name of the class is the caption.

Invariant: a class without a name stops the run before it begins.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from data_pipelines.inputs import files
from data_pipelines.record import Picture, Record, Unit
from janus_dist.config.pipeline import InputConfig
from janus_dist.data import storage
from janus_dist.data.inspect import Reject
from janus_dist.errors import DataError


def units(of: InputConfig, shard_samples: int) -> list[Unit]:
    """Up to `shard_samples` files of one class each; DataError at a class that `class_names` does not name."""
    found: dict[str, dict[str, int]] = {}
    for root in files.paths(of):
        for path, size in files.find(of.model_copy(update={"path": root}), ("",)).items():
            folder, _, name = path.rpartition("/")
            if not name.startswith("."):
                found.setdefault(folder, {})[name] = size
    nameless = [folder for folder in found if _caption(of, folder) is None]
    if nameless:
        raise DataError(
            f"{of.class_names} has no name for {len(nameless)} of {len(found)} folders, as {nameless[0]}",
            "name every folder, or leave class_names out: folders are then captions themselves",
        )
    cut: list[Unit] = []
    for folder in sorted(found):
        names = sorted(found[folder])
        for start in range(0, len(names), shard_samples):
            part = tuple(names[start : start + shard_samples])
            size = sum(found[folder][name] for name in part)
            cut.append(Unit(folder, size, start, start + len(part), len(part), part))
    return cut


def records(of: InputConfig, unit: Unit) -> Iterator[Record | Reject]:
    """An image each, with the name of its class."""
    caption = _caption(of, unit.path) or ""
    for name in unit.names:
        path = f"{unit.path}/{name}"
        yield Record(files.key_of_file(of, path), path, (Picture(path),), caption=caption)


def _caption(of: InputConfig, folder: str) -> str | None:
    name = folder.rpartition("/")[2]
    return name.replace("_", " ") if of.class_names is None else _class_names(of.class_names).get(name)


@lru_cache(maxsize=4)
def _class_names(path: str) -> dict[str, str]:
    """Names by folder, of JSON `{folder: name}` or `{index: [folder, name]}`, or of lines `folder name, other name`."""
    try:
        text = storage.read(path).decode()
        values: Any = (
            json.loads(text)
            if path.endswith(".json")
            else dict(_line(line) for line in text.split("\n") if line.strip())
        )
        if all(isinstance(value, list) for value in values.values()):
            values = {folder: name for folder, name in values.values()}
        return {str(folder): str(name).split(",")[0].replace("_", " ").strip() for folder, name in values.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"class_names={path} cannot be read: {error}",
            "give JSON {folder: name}, or lines `folder name, other name`",
        ) from error


def _line(line: str) -> tuple[str, str]:
    folder, _, name = line.strip().partition(" ")
    if not name.strip():
        raise ValueError(f"no name in {line!r}")
    return folder, name.strip()
