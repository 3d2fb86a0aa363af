"""Commits: which checkpoints of a run are whole, what their markers say, and which are kept.

    SAVED_IN/step-00000100/COMMIT.json   written last, by one rename or PUT: sizes, checksums, identity

Invariant: a checkpoint is either whole or absent. A folder without a marker, or whose files differ from it, is passed
over. SAVED_IN is a folder or an `s3://` URL (`run.saved_in`). Nothing here needs torch, so that a driver can look for
checkpoints in a moment; a look takes two requests a checkpoint, however many files it has.
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
ASIDE = MARKER + ".aside"
"""The marker of a checkpoint that does not count any more."""
NAME = re.compile(r"step-\d{8,}")
"""Of a checkpoint's folder; a copy beside it that a user made is none."""
READ_BYTES = 16 << 20
T = TypeVar("T")


class Ranks(Protocol):
    """The ranks that share the reading of a checkpoint, as `World` does; all of them call these methods in step."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def run_on_rank0(self, do: Callable[[], T]) -> T: ...

    def run_on_all_ranks(self, do: Callable[[], T]) -> T: ...


class DamagedError(CheckpointError):
    """A file of a checkpoint is not what was written."""


class NoMarkerError(CheckpointError):
    """A folder is no checkpoint, or not any more."""


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
    recipe: dict[str, Any]
    """As it was trained, with absolute paths."""
    world: int
    optimizer_steps: int
    tokens: int
    """Tokens trained on so far."""
    losses: list[float]
    """Of the last steps that were taken: what a spike is measured by."""
    left_out: list[list[int]]
    """Steps of the plan that are not trained: [first, one past the last] of each range."""
    shapes: dict[str, list[int]]
    """Shape of every parameter; the tensors are stored flat."""
    trainable: list[str]
    files: dict[str, dict[str, Any]]
    """Bytes and sha256 of every file."""


def folder(saved_in: str, step: int) -> str:
    """Where the checkpoint of a step is."""
    return f"{saved_in}/step-{step:08d}"


def step_of(path: str) -> int:
    """The step of a checkpoint, by the name of its folder; by its marker where a user has given it another."""
    name = name_of(path)
    return int(name.removeprefix("step-")) if NAME.fullmatch(name) else read(path).step


def name_of(path: str) -> str:
    """The last part of a checkpoint's folder: step-XXXXXXXX."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def folders(saved_in: str) -> list[str]:
    """Folders of checkpoints, whole or not, oldest first."""
    with fs.reached(saved_in, CheckpointError):
        found = [f"{saved_in}/{name}" for name in fs.names(saved_in) if NAME.fullmatch(name)]
    return sorted(found, key=step_of)


def with_marker(saved_in: str) -> list[str]:
    """Return the folders of checkpoints that have a marker, oldest first; neither markers nor files are checked."""
    return [path for path in folders(saved_in) if is_marked(path)]


def is_marked(path: str) -> bool:
    """Whether a folder has a marker, whatever it is worth: then it is a checkpoint."""
    with fs.reached(path, CheckpointError):
        return MARKER in fs.names(path)


def committed(saved_in: str) -> list[str]:
    """Folders of whole checkpoints, oldest first; sizes are compared, checksums only when loading."""
    return [path for path in folders(saved_in) if is_committed(path)]


def latest_committed(saved_in: str) -> str | None:
    """Return the newest checkpoint whose files have the sizes that its marker says, or None; no file is read."""
    return next((path for path in reversed(folders(saved_in)) if is_committed(path)), None)


def latest_verified(ranks: Ranks, saved_in: str, say: Callable[[str], None]) -> str | None:
    """Return the newest checkpoint whose files are as its marker says, or None without a checkpoint; all ranks call it.

    Every byte is read and `say` takes a line about each checkpoint that is passed over. Raises CheckpointError when
    there are checkpoints and all of them are damaged.
    """
    found = ranks.run_on_rank0(lambda: with_marker(saved_in))
    for path in reversed(found):
        try:
            verify_on_ranks(ranks, path)
            return path
        except DamagedError as error:
            say(f"passed over {path}: {error.message}")
    if found:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints under {saved_in} is whole",
            "bring one back, or start anew under another name (run.name=...)",
        )
    return None


def is_committed(path: str) -> bool:
    """Whether a folder has a marker, and files of the sizes that it says."""
    with fs.reached(path, CheckpointError):
        there = fs.sizes(path)
    try:
        return MARKER in there and all(there.get(name) == said["bytes"] for name, said in read(path).files.items())
    except (DamagedError, NoMarkerError):  # the marker may go while this looks: `janus ckpt prune`
        return False


def identity(path: str) -> str:
    """sha256 of the marker of a checkpoint, which has the sums of all its files."""
    return hashlib.sha256(fs.read(f"{path}/{MARKER}")).hexdigest()


def read(path: str) -> Commit:
    """The marker of a checkpoint; DamagedError when it is not as it was written, NoMarkerError when there is none,
    CheckpointError when it is of another version."""
    marker = f"{path}/{MARKER}"
    try:
        with fs.reached(marker, CheckpointError):
            content = fs.read(marker)
    except FileNotFoundError as error:
        raise NoMarkerError(f"{path} is no checkpoint: it has no {MARKER}", "name one that has") from error
    try:
        values: dict[str, Any] = json.loads(content)
        version, digest = values["version"], values.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(marker, "it is not the JSON that was written") from error
    if version != VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this program reads {VERSION}",
            "go on with the version of janus-dist that wrote it",
        )
    if digest != _digest(values):
        raise _damaged(marker, "its contents have another sha256 than it says")
    return Commit(**values)


def verify(path: str, commit: Commit, names: Sequence[str] | None = None) -> None:
    """Raise DamagedError unless the files (all, or those named) have the size and checksum that the marker says."""
    for name in names if names is not None else sorted(commit.files):
        said = commit.files[name]
        try:
            with fs.reached(f"{path}/{name}", CheckpointError):
                found = describe(f"{path}/{name}")
        except FileNotFoundError as error:
            raise _damaged(f"{path}/{name}", "it is gone") from error
        if found != said:
            raise _damaged(
                f"{path}/{name}",
                f"{found['bytes']} bytes, sha256 {found['sha256'][:12]}; "
                f"the marker says {said['bytes']} bytes, {said['sha256'][:12]}",
            )


def verify_on_ranks(ranks: Ranks, path: str) -> None:
    """Read all files of a checkpoint, each rank its share; raises DamagedError on every rank when one is damaged."""
    commit = ranks.run_on_rank0(lambda: read(path))
    ranks.run_on_all_ranks(lambda: verify(path, commit, sorted(commit.files)[ranks.rank :: ranks.size]))


def _damaged(file: str, how: str) -> DamagedError:
    path = file.rsplit("/", 1)[0]
    return DamagedError(f"{file} is damaged: {how}", f"delete {path} to fall back on the one before")


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Keep:
    """Which checkpoints of a run stay: the newest `last`, and those of every `every_steps`-th step."""

    last: int
    every_steps: int | None = None

    def chosen(self, whole: Sequence[str]) -> set[str]:
        """Those of whole checkpoints, oldest first, that stay."""
        every = self.every_steps
        return {*whole[-self.last :], *(path for path in whole if every and step_of(path) % every == 0)}


def prunable(saved_in: str, keep: Keep) -> list[str]:
    """Return the whole checkpoints that `keep` does not choose, and all older than the newest that are not whole."""
    whole = committed(saved_in)
    chosen = keep.chosen(whole)
    return [path for path in folders(saved_in) if whole and path not in chosen and step_of(path) < step_of(whole[-1])]


def delete(path: str) -> None:
    """Delete a checkpoint; one that is half deleted does not count."""
    with fs.reached(path, CheckpointError):
        with suppress(FileNotFoundError):  # who prunes at the same time was first
            fs.remove(f"{path}/{MARKER}")
        fs.remove_folder(path)


def prune(saved_in: str, keep: Keep) -> list[str]:
    """Delete what need not stay, and say what that was."""
    gone = prunable(saved_in, keep)
    for path in gone:
        delete(path)
    return gone


def write_marker(path: str, commit: Commit) -> None:
    """Make the checkpoint in `path` count."""
    values = json.loads(json.dumps(asdict(commit)))  # as it will be read
    content = json.dumps({"sha256": _digest(values), **values}, indent=1, sort_keys=True)
    fs.write_whole(f"{path}/{MARKER}", content.encode())


def saved_since(saved_in: str, path: str) -> str | None:
    """The newest whole checkpoint, if it was saved by a run that was told to go on from the one at `path`."""
    newest = latest_committed(saved_in)
    told = None if newest is None else read(newest).recipe.get("run", {}).get("resume")
    return newest if told is not None and expanded(told).rstrip("/") == path else None


def set_aside_from(saved_in: str, path: str, step: int) -> list[str]:
    """Make the checkpoints from `step` on not count any more, but for the one at `path`, wherever it is; their files
    stay until the run comes to their steps."""
    others = [other for other in with_marker(saved_in) if step_of(other) >= step and not _is_same(other, path)]
    for other in others:
        with fs.reached(other, CheckpointError):
            fs.rename(f"{other}/{MARKER}", f"{other}/{ASIDE}")
    return others


def _is_same(path: str, other: str) -> bool:
    """Whether two names are of one folder, by whatever way they lead there."""
    if not (fs.is_local(path) and fs.is_local(other)):
        return path == other
    return Path(path).resolve() == Path(other).resolve()


def describe(path: str) -> dict[str, Any]:
    """Bytes and sha256 of a file."""
    with fs.open_binary(path, READ_BYTES) as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}
