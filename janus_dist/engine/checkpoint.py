"""Checkpoints: each rank writes its own shard, a commit marker makes them count, any world reads them back.

    RUN/checkpoints/step-00000100/{.metadata, __R_0.distcp, ...}   torch.distributed.checkpoint, keyed by parameter name
    RUN/checkpoints/step-00000100/COMMIT.json                      written last, by one rename: sizes, checksums, identity

Invariant: a checkpoint is either whole or absent. A folder without a marker, or whose files differ from it, is passed over.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.device_mesh import init_device_mesh

from janus_dist.engine import partitions
from janus_dist.engine.zero import ZeroEngine
from janus_dist.errors import CheckpointError

VERSION = 1
MARKER = "COMMIT.json"
WEIGHTS = "weights/"


@dataclass(frozen=True)
class Commit:
    """What the marker of a checkpoint says."""

    version: int
    step: int
    """Optimizer steps done; the next one to train is this one, counted from 0."""
    plan_digest: str
    plan: dict[str, Any]
    """What the digest is of, to say what differs."""
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
    return run_dir / "checkpoints" / f"step-{step:08d}"


def committed(run_dir: Path) -> list[Path]:
    """Folders of whole checkpoints, oldest first; sizes are compared, checksums only when loading."""
    found = []
    for path in sorted((run_dir / "checkpoints").glob("step-*")):
        if (path / MARKER).is_file() and _sizes_match(path, read_commit(path)):
            found.append(path)
    return found


def latest(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = committed(run_dir)
    return found[-1] if found else None


def read_commit(path: Path) -> Commit:
    """The marker of a checkpoint; CheckpointError when it cannot be read or is of another version."""
    try:
        values = json.loads((path / MARKER).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / MARKER} cannot be read: {error}") from error
    if values.get("version") != VERSION:
        raise CheckpointError(f"{path} has format version {values.get('version')}, this program reads {VERSION}")
    return Commit(**values)


def save(engine: ZeroEngine, run_dir: Path, step: int, identity: dict[str, Any]) -> Path:
    """Write and commit the state after `step` steps; all ranks call it. `identity` fills the marker's own fields."""
    path = folder(run_dir, step)
    if engine.world.is_first:
        shutil.rmtree(path, ignore_errors=True)  # left behind by a run that was killed while it wrote
        path.mkdir(parents=True)
    engine.world.barrier()
    partitions.begin(engine)
    state, shapes = _state(engine)
    dcp.save(state, storage_writer=dcp.FileSystemWriter(path, sync_files=True))
    partitions.end(engine, restored=False)
    own = {name: _describe(path / name) for name in _own_files(path, engine.world.rank)}
    every: list[Any] = engine.world.gather(own)
    if engine.world.is_first:
        files = {name: described for part in every for name, described in part.items()}
        commit = Commit(
            version=VERSION,
            step=step,
            world=engine.world.size,
            optimizer_steps=partitions.optimizer_steps(engine),
            shapes=shapes,
            trainable=engine.trainable,
            files=files,
            **identity,
        )
        _write_marker(path, commit)
    engine.world.barrier()
    return path


def restore(engine: ZeroEngine, path: Path) -> Commit:
    """Load weights, moments and optimizer steps into `engine`, which may have another world; all ranks call it."""
    commit = read_commit(path)
    _verify_together(engine, path, commit)
    _check_same_parameters(engine, path, commit)
    _load(engine, path, with_moments=True)
    partitions.set_optimizer_steps(engine, commit.optimizer_steps)
    return commit


def restore_weights(engine: ZeroEngine, path: Path) -> None:
    """Load weights only, by name: the start of a stage from another run's checkpoint."""
    commit = read_commit(path)
    _verify_together(engine, path, commit)
    _check_same_parameters(engine, path, commit)
    _load(engine, path, with_moments=False)


def load_weights(run_dir: Path) -> dict[str, Tensor]:
    """All weights of the newest checkpoint of a run, by name, in this one process; CheckpointError when there is none."""
    path = latest(run_dir)
    if path is None:
        raise CheckpointError(
            f"no committed checkpoint under {run_dir / 'checkpoints'}", "train the run first, or name another with run.name=..."
        )
    commit = read_commit(path)
    verify(path, commit)
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    state = {
        WEIGHTS + name: torch.empty(stored[WEIGHTS + name].size, dtype=stored[WEIGHTS + name].properties.dtype)
        for name in commit.shapes
    }
    dcp.load(state, storage_reader=FileSystemReader(path), no_dist=True)
    return {name: state[WEIGHTS + name].reshape(shape) for name, shape in commit.shapes.items()}


def prune(run_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` whole checkpoints, and whatever is older than them and not whole."""
    whole = committed(run_dir)[-keep:]
    for path in sorted((run_dir / "checkpoints").glob("step-*")):
        if whole and path not in whole and path < whole[-1]:
            (path / MARKER).unlink(missing_ok=True)  # first, so that a half-deleted checkpoint does not count
            shutil.rmtree(path)


def verify(path: Path, commit: Commit, names: Sequence[str] | None = None) -> None:
    """Raise CheckpointError unless the files (all, or those named) have the size and checksum that the marker says."""
    for name in names if names is not None else sorted(commit.files):
        said = commit.files[name]
        try:
            found = _describe(path / name)
        except OSError as error:
            raise CheckpointError(f"{path / name} cannot be read: {error}", f"delete {path} to fall back on the one before") from error
        if found != said:
            raise CheckpointError(
                f"{path / name} is damaged: {found['bytes']} bytes, sha256 {found['sha256'][:12]}; "
                f"the marker says {said['bytes']} bytes, {said['sha256'][:12]}",
                f"delete {path} to fall back on the one before",
            )


def _verify_together(engine: ZeroEngine, path: Path, commit: Commit) -> None:
    """Verify with every rank reading its share of the files, and all of them raising what one of them finds."""
    fault: CheckpointError | None = None
    try:
        verify(path, commit, sorted(commit.files)[engine.world.rank :: engine.world.size])
    except CheckpointError as error:
        fault = error
    for found in engine.world.gather(fault):
        if isinstance(found, CheckpointError):
            raise found


def _state(engine: ZeroEngine) -> tuple[dict[str, Any], dict[str, list[int]]]:
    mesh = init_device_mesh(engine.world.device.type, (engine.world.size,))
    state: dict[str, Any] = {}
    shapes: dict[str, list[int]] = {}
    for piece in partitions.pieces(engine):
        shapes[piece.name] = list(piece.shape)
        state[WEIGHTS + piece.name] = partitions.sharded(piece, piece.view(piece.flat), mesh)
        if piece.trainable:
            for moment, flat in partitions.moments(engine, piece).items():
                state[f"{moment}/{piece.name}"] = partitions.sharded(piece, piece.view(flat), mesh)
    return state, shapes


def _load(engine: ZeroEngine, path: Path, with_moments: bool) -> None:
    partitions.begin(engine)
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    mesh = init_device_mesh(engine.world.device.type, (engine.world.size,))
    state: dict[str, Any] = {}
    targets: list[tuple[Tensor, Tensor]] = []
    for piece in partitions.pieces(engine):
        flats = {WEIGHTS + piece.name: piece.flat}
        if with_moments and piece.trainable:
            flats |= {f"{moment}/{piece.name}": flat for moment, flat in partitions.moments(engine, piece).items()}
        for key, flat in flats.items():
            # read in the stored dtype: a part that was frozen is stored in the low precision that it had
            local = torch.empty(piece.valid, dtype=stored[key].properties.dtype, device=flat.device)
            state[key] = partitions.sharded(piece, local, mesh)
            targets.append((piece.view(flat), local))
    dcp.load(state, storage_reader=FileSystemReader(path))
    for target, local in targets:
        target.copy_(local)
    partitions.end(engine, restored=True)


def _check_same_parameters(engine: ZeroEngine, path: Path, commit: Commit) -> None:
    mine = {piece.name: list(piece.shape) for piece in partitions.pieces(engine)}
    if mine == commit.shapes:
        return
    differing = [name for name in sorted(mine.keys() | commit.shapes.keys()) if mine.get(name) != commit.shapes.get(name)]
    name = differing[0]
    raise CheckpointError(
        f"{path} holds a model of another size: {len(differing)} parameters differ, the first is {name}: "
        f"{commit.shapes.get(name, 'absent')} in the checkpoint, {mine.get(name, 'absent')} in this recipe",
        "use the recipe that the checkpoint was made with (config.json in its run folder), or another run.name",
    )


def _own_files(path: Path, rank: int) -> list[str]:
    names = [file.name for file in path.glob(f"__{rank}_*.distcp")]
    return [*names, ".metadata"] if rank == 0 else names


def _sizes_match(path: Path, commit: Commit) -> bool:
    return all(
        (path / name).is_file() and (path / name).stat().st_size == said["bytes"] for name, said in commit.files.items()
    )


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _write_marker(path: Path, commit: Commit) -> None:
    temporary = path / (MARKER + ".tmp")
    with temporary.open("w") as file:
        json.dump(asdict(commit), file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / MARKER)
