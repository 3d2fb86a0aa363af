"""Versions of the files that work is cut from: an input that changes while it is read fails its jobs.

Invariant: what a job makes is of the files that its units were cut from, as they were then. Images that a file names by
their paths are read whole, each as it is at that moment, and are not compared; nor are those of a class in a store,
where that would take a request each.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from data_pipelines.record import Unit
from janus_dist.config.pipeline import InputConfig
from janus_dist.errors import DataError
from janus_dist.storage import fs


def with_versions(config: InputConfig, units: Sequence[Unit]) -> list[Unit]:
    """Return the units with the versions of their files, which were listed right before."""
    known: dict[str, str] = {}
    for path in dict.fromkeys(path for unit in units for path in _files(config, unit)):
        known[path] = _version(path, fresh=False)
    return [replace(unit, versions=tuple((path, known[path]) for path in _files(config, unit))) for unit in units]


def check_unchanged(units: Sequence[Unit]) -> None:
    """Raise DataError when a file is not what it was when the work was cut; OSError when it cannot be reached."""
    for path, version_at_cut in dict.fromkeys(pair for unit in units for pair in unit.versions):
        version = _version(path)
        if version != version_at_cut:
            raise DataError(
                f"{path} has changed since the work was cut: it had {version_at_cut}, now it has {version}",
                "leave a source as it is while it is tokenized; the same command again reads anew what has changed",
            )


def digest(units: Sequence[Unit]) -> str:
    """Return what tells the versions of the files of units from others; empty where nothing is known of them."""
    pairs = sorted({pair for unit in units for pair in unit.versions})
    return hashlib.sha256(json.dumps(pairs).encode(errors="backslashreplace")).hexdigest() if pairs else ""


def _version(path: str, fresh: bool = True) -> str:
    """Return the version of a file; of a link that leads nowhere that it is absent, which its reader will refuse."""
    try:
        return fs.version(path, fresh)
    except FileNotFoundError:
        return "no file"


def _files(config: InputConfig, unit: Unit) -> list[str]:
    """Return the files that decide what a unit's records are."""
    match config.format:
        case "webdataset" | "parquet" | "jsonl":
            return [unit.path]
        case "folders":
            images = [f"{unit.path.rstrip('/')}/{name}" for name in unit.names] if fs.is_local(unit.path) else []
            return [*images, *([config.class_names] if config.class_names else [])]
        case _:
            return []
