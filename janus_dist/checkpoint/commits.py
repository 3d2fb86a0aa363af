"""Commits: which checkpoints of a run are complete, the content of their markers, and which checkpoints are kept.

    SAVED_IN/step-00000100/COMMIT.json   written last, by one rename or PUT: sizes, checksums, identity

Invariant: a checkpoint is either complete or absent. A folder without a marker, or with files that differ from its
marker, is skipped. SAVED_IN is a folder or an `s3://` URL (`run.saved_in`). This module does not need torch, so that a
driver can list checkpoints quickly; listing takes two requests per checkpoint, for any number of files.

Three levels of checks: a checkpoint is marked when its folder has a marker, committed when its files also have the
sizes in the marker, and verified when they also have the checksums.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from janus_dist.config.paths import expanded
from janus_dist.errors import CheckpointError
from janus_dist.storage import fs

VERSION = 2
MARKER = "COMMIT.json"
ASIDE_MARKER = MARKER + ".aside"
"""Name of the marker of a checkpoint that was set aside and no longer counts."""
FOLDER_PATTERN = re.compile(r"step-\d{8,}")
"""Pattern of the names of checkpoint folders; a copy that a user made under another name does not count."""
READ_BYTES = 16 << 20
"""Bytes of each read while a file is hashed."""
T = TypeVar("T")


class Ranks(Protocol):
    """Ranks that read a checkpoint together, such as `World`; all of them call these methods in the same order."""

    @property
    def rank(self) -> int:
        """Return the rank of this process."""
        ...

    @property
    def size(self) -> int:
        """Return the number of ranks."""
        ...

    def run_on_rank0(self, do: Callable[[], T]) -> T:
        """Call `do` on rank 0 and return its result on every rank."""
        ...

    def run_on_all_ranks(self, do: Callable[[], T]) -> T:
        """Call `do` on every rank and return this rank's result."""
        ...


class DamagedCheckpointError(CheckpointError):
    """A file of a checkpoint differs from what was written."""


class NoMarkerError(CheckpointError):
    """A folder is not a checkpoint, because it has no marker."""


@dataclass(frozen=True)
class Commit:
    """Content of a checkpoint's marker."""

    version: int
    """Version of the checkpoint format."""
    step: int
    """Number of optimizer steps done, which is also the next step to train, counted from 0."""
    plan_digest: str
    """Digest of `plan`."""
    plan: dict[str, Any]
    """Identity of the plan, from which differences between plans are reported."""
    cursors: dict[str, Any]
    """Position of each source, from which it continues under another plan."""
    recipe: dict[str, Any]
    """Recipe of the run, with absolute paths."""
    world: int
    """Number of ranks that wrote the checkpoint."""
    optimizer_steps: int
    """Number of steps that AdamW has taken; skipped steps do not count."""
    tokens: int
    """Number of tokens trained on so far."""
    losses: list[float]
    """Losses of the last steps that were not skipped, with which loss spikes are detected."""
    left_out: list[list[int]]
    """Ranges [first, stop) of the plan's steps that are not trained."""
    shapes: dict[str, list[int]]
    """Shape of every parameter by name; the tensors are stored flat."""
    trainable: list[str]
    """Names of the trainable parameters."""
    files: dict[str, dict[str, Any]]
    """Bytes and sha256 of every file by name."""


def folder(saved_in: str, step: int) -> str:
    """Return the folder of the checkpoint of a step."""
    return f"{saved_in}/step-{step:08d}"


def step_of(path: str) -> int:
    """Return the step of a checkpoint, from the name of its folder, or from its marker if a user renamed the folder.

    Raises the errors of `read`.
    """
    name = name_of(path)
    return int(name.removeprefix("step-")) if FOLDER_PATTERN.fullmatch(name) else read(path).step


def name_of(path: str) -> str:
    """Return the last part of the path of a checkpoint's folder: step-XXXXXXXX."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def folders(saved_in: str) -> list[str]:
    """Return the folders of all checkpoints, complete or not, oldest first.

    Raises CheckpointError when `saved_in` cannot be read.
    """
    with fs.reached(saved_in, CheckpointError):
        paths = [f"{saved_in}/{name}" for name in fs.names(saved_in) if FOLDER_PATTERN.fullmatch(name)]
    return sorted(paths, key=step_of)


def with_marker(saved_in: str) -> list[str]:
    """Return the folders of checkpoints that have a marker, oldest first; neither markers nor files are checked.

    Raises CheckpointError when a folder cannot be read.
    """
    return [path for path in folders(saved_in) if is_marked(path)]


def is_marked(path: str) -> bool:
    """Return whether a folder has a marker, valid or not, and thus is a checkpoint.

    Raises CheckpointError when the folder cannot be read.
    """
    with fs.reached(path, CheckpointError):
        return MARKER in fs.names(path)


def committed(saved_in: str) -> list[str]:
    """Return the folders of committed checkpoints, oldest first; sizes are compared, checksums are not.

    Raises CheckpointError when a folder cannot be read or a checkpoint has another format version.
    """
    return [path for path in folders(saved_in) if is_committed(path)]


def latest_committed(saved_in: str) -> str | None:
    """Return the newest committed checkpoint, or None; only its marker is read.

    Raises CheckpointError when a folder cannot be read or the checkpoint has another format version.
    """
    return next((path for path in reversed(folders(saved_in)) if is_committed(path)), None)


def latest_verified(ranks: Ranks, saved_in: str, say: Callable[[str], None]) -> str | None:
    """Return the newest checkpoint whose files match its marker, or None without a checkpoint; all ranks call it.

    Every byte is read, and `say` gets a line about each damaged checkpoint. Raises CheckpointError when all checkpoints
    are damaged, or a folder cannot be read.
    """
    paths = ranks.run_on_rank0(lambda: with_marker(saved_in))
    for path in reversed(paths):
        try:
            verify_on_ranks(ranks, path)
            return path
        except DamagedCheckpointError as error:
            say(f"passed over {path}: {error.message}")
    if paths:
        raise CheckpointError(
            f"all {len(paths)} checkpoints under {saved_in} are damaged",
            "restore one from a copy, or start anew under another name (run.name=...)",
        )
    return None


def is_committed(path: str) -> bool:
    """Return whether a folder has a valid marker and files of the sizes in the marker.

    Raises CheckpointError when the folder cannot be read or the checkpoint has another format version.
    """
    with fs.reached(path, CheckpointError):
        sizes = fs.sizes(path)
    try:
        return MARKER in sizes and all(sizes.get(name) == file["bytes"] for name, file in read(path).files.items())
    except (DamagedCheckpointError, NoMarkerError):  # `janus ckpt prune` may delete the marker at the same time
        return False


def identity(path: str) -> str:
    """Return the sha256 of a checkpoint's marker, which contains the checksums of all its files."""
    return hashlib.sha256(fs.read(f"{path}/{MARKER}")).hexdigest()


def read(path: str) -> Commit:
    """Return the content of a checkpoint's marker.

    Raises NoMarkerError when the folder has no marker, DamagedCheckpointError when the marker differs from what was
    written, CheckpointError when it has another version or cannot be read.
    """
    marker = f"{path}/{MARKER}"
    try:
        with fs.reached(marker, CheckpointError):
            content = fs.read(marker)
    except FileNotFoundError as error:
        raise NoMarkerError(
            f"{path} is not a checkpoint: it has no {MARKER}", f"name a folder that contains {MARKER}"
        ) from error
    try:
        values: dict[str, Any] = json.loads(content)
        version, digest = values["version"], values.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(marker, "it is not the JSON that was written") from error
    if version != VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this program reads {VERSION}",
            "use the version of janus-dist that wrote it",
        )
    if digest != _digest(values):
        raise _damaged(marker, "its contents do not match the sha256 that it states")
    return Commit(**values)


def verify(path: str, commit: Commit, names: Sequence[str] | None = None) -> None:
    """Compare size and checksum of files with the marker: all files of a checkpoint, or those in `names`.

    Raises DamagedCheckpointError when a file differs or is missing, CheckpointError when it cannot be read.
    """
    for name in names if names is not None else sorted(commit.files):
        expected = commit.files[name]
        try:
            with fs.reached(f"{path}/{name}", CheckpointError):
                actual = describe(f"{path}/{name}")
        except FileNotFoundError as error:
            raise _damaged(f"{path}/{name}", "it is missing") from error
        if actual != expected:
            raise _damaged(
                f"{path}/{name}",
                f"{actual['bytes']} bytes, sha256 {actual['sha256'][:12]}; "
                f"the marker says {expected['bytes']} bytes, {expected['sha256'][:12]}",
            )


def verify_on_ranks(ranks: Ranks, path: str) -> None:
    """Verify all files of a checkpoint, each rank its share; all ranks call it.

    Raises the errors of `read` and `verify` on every rank.
    """
    commit = ranks.run_on_rank0(lambda: read(path))
    ranks.run_on_all_ranks(lambda: verify(path, commit, sorted(commit.files)[ranks.rank :: ranks.size]))


def _damaged(file: str, reason: str) -> DamagedCheckpointError:
    """Return the error for a damaged file of a checkpoint."""
    path = file.rsplit("/", 1)[0]
    return DamagedCheckpointError(
        f"{file} is damaged: {reason}", f"delete {path} to fall back on the previous checkpoint"
    )


def _digest(values: dict[str, Any]) -> str:
    """Return the sha256 of a marker's values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class RetentionPolicy:
    """Rule that selects the checkpoints of a run to keep."""

    last: int
    """Number of the newest checkpoints to keep."""
    every_steps: int | None = None
    """Keep also every checkpoint whose step is a multiple of this; None keeps only the newest."""

    def chosen(self, paths: Sequence[str]) -> set[str]:
        """Return the checkpoints to keep of the committed checkpoints `paths`, oldest first."""
        period = self.every_steps
        return {*paths[-self.last :], *(path for path in paths if period and step_of(path) % period == 0)}


def prunable(saved_in: str, keep: RetentionPolicy) -> list[str]:
    """Return the checkpoints older than the newest committed one that `keep` does not select, oldest first.

    They include older folders that are not committed. Raises CheckpointError when a folder cannot be read.
    """
    complete = committed(saved_in)
    if not complete:
        return []
    kept, newest_step = keep.chosen(complete), step_of(complete[-1])
    return [path for path in folders(saved_in) if path not in kept and step_of(path) < newest_step]


def delete(path: str) -> None:
    """Delete a checkpoint, first its marker, so that a partly deleted checkpoint does not count.

    Raises CheckpointError when it cannot be deleted.
    """
    with fs.reached(path, CheckpointError):
        with suppress(FileNotFoundError):  # another process may have pruned it at the same time
            fs.remove(f"{path}/{MARKER}")
        fs.remove_folder(path)


def prune(saved_in: str, keep: RetentionPolicy) -> list[str]:
    """Delete the checkpoints that `keep` does not select, and return their folders.

    Raises CheckpointError when one cannot be deleted.
    """
    paths = prunable(saved_in, keep)
    for path in paths:
        delete(path)
    return paths


def write_marker(path: str, commit: Commit) -> None:
    """Commit the checkpoint in `path` by writing its marker."""
    values = json.loads(json.dumps(asdict(commit)))  # the same values that a reader gets, for the digest
    content = json.dumps({"sha256": _digest(values), **values}, indent=1, sort_keys=True)
    fs.write_whole(f"{path}/{MARKER}", content.encode())


def saved_since(saved_in: str, path: str) -> str | None:
    """Return the newest committed checkpoint if it was saved by a run with `run.resume=path`, else None.

    Raises CheckpointError when a folder cannot be read.
    """
    newest = latest_committed(saved_in)
    resume = None if newest is None else read(newest).recipe.get("run", {}).get("resume")
    return newest if resume is not None and expanded(resume).rstrip("/") == path else None


def set_aside_from(saved_in: str, path: str, step: int) -> list[str]:
    """Set aside the checkpoints from `step` on, except the one at `path`; return their folders.

    Their markers are renamed, so that they no longer count; their files remain until the run reaches their steps again.
    Raises CheckpointError when a marker cannot be renamed.
    """
    others = [other for other in with_marker(saved_in) if step_of(other) >= step and not _is_same(other, path)]
    for other in others:
        with fs.reached(other, CheckpointError):
            fs.rename(f"{other}/{MARKER}", f"{other}/{ASIDE_MARKER}")
    return others


def _is_same(path: str, other: str) -> bool:
    """Return whether two paths lead to the same folder, also through links."""
    if not (fs.is_local(path) and fs.is_local(other)):
        return path == other
    return Path(path).resolve() == Path(other).resolve()


def describe(path: str) -> dict[str, Any]:
    """Return the bytes and sha256 of a file, as stored in a marker."""
    with fs.open_binary(path, READ_BYTES) as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}
