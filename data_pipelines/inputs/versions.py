"""Versions of the files that work is cut from: an input that changes while it is read fails its jobs.

Invariant: a job reads the same versions of files that its units were cut from. Images that a file names by their paths
are read as a whole at one moment and are not compared; nor are the images of a class in a store, since that would take
a request for each.
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
    """Return the units with the versions of their files, which have just been listed."""
    known: dict[str, str] = {}
    for path in dict.fromkeys(path for unit in units for path in _files(config, unit)):
        known[path] = _version(path, fresh=False)
    return [replace(unit, versions=tuple((path, known[path]) for path in _files(config, unit))) for unit in units]


def check_unchanged(units: Sequence[Unit]) -> None:
    """Raise DataError when a file has changed since the work was cut, OSError when it cannot be reached."""
    for path, version_at_cut in dict.fromkeys(pair for unit in units for pair in unit.versions):
        version = _version(path)
        if version != version_at_cut:
            raise DataError(
                f"{path} has changed since the work was cut: it had {version_at_cut}, now it has {version}",
                "do not change a source while it is tokenized; run the same command again to read the changed files",
            )


def digest(units: Sequence[Unit]) -> str:
    """Return the sha256 of the versions of the units' files; empty where no version is known."""
    pairs = sorted({pair for unit in units for pair in unit.versions})
    return hashlib.sha256(json.dumps(pairs).encode(errors="backslashreplace")).hexdigest() if pairs else ""


def _version(path: str, fresh: bool = True) -> str:
    """Return the version of a file; `no file` for a broken link, which its reader refuses."""
    try:
        return fs.version(path, fresh)
    except FileNotFoundError:
        return "no file"


def _files(config: InputConfig, unit: Unit) -> list[str]:
    """Return the files that determine a unit's records."""
    match config.format:
        case "webdataset" | "parquet" | "jsonl":
            return [unit.path]
        case "folders":
            images = [f"{unit.path.rstrip('/')}/{name}" for name in unit.names] if fs.is_local(unit.path) else []
            return [*images, *([config.class_names] if config.class_names else [])]
        case _:
            return []
