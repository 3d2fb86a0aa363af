"""Commits: which checkpoints of a run are whole, what their markers say, and which are kept.

    RUN/checkpoints/step-00000100/COMMIT.json   written last, by one rename: sizes, checksums, identity

Invariant: a checkpoint is either whole or absent. A folder without a marker, or whose files differ from it, is passed
over. Nothing here needs torch, so that a driver can look for checkpoints in a moment.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from janus_dist.errors import CheckpointError

VERSION = 1
MARKER = "COMMIT.json"


@dataclass(frozen=True)
class Commit:
    """What the marker of a checkpoint says."""

    version: int
    step: int
    """Optimizer steps done; the next one to train is this one, counted from 0."""
    plan_digest: str
    plan: dict[str, Any]
    """What the digest is of, to say what differs."""
    cursors: dict[str, Any]
    """Where each source stands, to go on from under another plan."""
    model: dict[str, Any]
    """The model section of the recipe."""
    world: int
    optimizer_steps: int
    tokens: int
    """Tokens trained on so far."""
    shapes: dict[str, list[int]]
    """Shape of every parameter; the tensors are stored flat."""
    trainable: list[str]
    files: dict[str, dict[str, Any]]
    """Bytes and sha256 of every file."""


def folder(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def committed(run_dir: Path) -> list[Path]:
    """Folders of whole checkpoints, oldest first; sizes are compared, checksums only when loading."""
    found = []
    for path in sorted((run_dir / "checkpoints").glob("step-*")):
        if (path / MARKER).is_file() and _sizes_match(path, read(path)):
            found.append(path)
    return found


def latest(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = committed(run_dir)
    return found[-1] if found else None


def read(path: Path) -> Commit:
    """The marker of a checkpoint; CheckpointError when it cannot be read or is of another version."""
    try:
        values = json.loads((path / MARKER).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / MARKER} cannot be read: {error}") from error
    if values.get("version") != VERSION:
        raise CheckpointError(f"{path} has format version {values.get('version')}, this program reads {VERSION}")
    return Commit(**values)


def verify(path: Path, commit: Commit, names: Sequence[str] | None = None) -> None:
    """Raise CheckpointError unless the files (all, or those named) have the size and checksum that the marker says."""
    for name in names if names is not None else sorted(commit.files):
        said = commit.files[name]
        try:
            found = describe(path / name)
        except OSError as error:
            raise CheckpointError(
                f"{path / name} cannot be read: {error}", f"delete {path} to fall back on the one before"
            ) from error
        if found != said:
            raise CheckpointError(
                f"{path / name} is damaged: {found['bytes']} bytes, sha256 {found['sha256'][:12]}; "
                f"the marker says {said['bytes']} bytes, {said['sha256'][:12]}",
                f"delete {path} to fall back on the one before",
            )


def prune(run_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` whole checkpoints, and whatever is older than them and not whole."""
    whole = committed(run_dir)[-keep:]
    for path in sorted((run_dir / "checkpoints").glob("step-*")):
        if whole and path not in whole and path < whole[-1]:
            (path / MARKER).unlink(missing_ok=True)  # first, so that a half-deleted checkpoint does not count
            shutil.rmtree(path)


def write_marker(path: Path, commit: Commit) -> None:
    """Make the checkpoint in `path` count."""
    temporary = path / (MARKER + ".tmp")
    with temporary.open("w") as file:
        json.dump(asdict(commit), file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / MARKER)


def describe(path: Path) -> dict[str, Any]:
    """Bytes and sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _sizes_match(path: Path, commit: Commit) -> bool:
    return all(
        (path / name).is_file() and (path / name).stat().st_size == said["bytes"] for name, said in commit.files.items()
    )
