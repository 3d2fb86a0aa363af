"""Checkpoints: each rank writes its own shard, a commit marker makes them count, any world reads them back.

    RUN/checkpoints/step-00000100/{.metadata, __R_0.distcp, ...}   torch.distributed.checkpoint, keyed by parameter name

Invariant: the marker is written (commits.py) after every rank's file is on disk and described in it.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.device_mesh import init_device_mesh

from janus_dist.engine import commits, partitions
from janus_dist.engine.commits import Commit
from janus_dist.engine.stored import WEIGHTS
from janus_dist.engine.zero import ZeroEngine
from janus_dist.errors import CheckpointError


def save(engine: ZeroEngine, run_dir: Path, step: int, identity: dict[str, Any]) -> Path:
    """Write and commit the state after `step` steps; all ranks call it. `identity` fills the marker's own fields."""
    path = commits.folder(run_dir, step)
    if engine.world.is_first:
        shutil.rmtree(path, ignore_errors=True)  # left behind by a run that was killed while it wrote
        path.mkdir(parents=True)
    engine.world.barrier()
    partitions.begin(engine)
    state, shapes = _state(engine)
    dcp.save(state, storage_writer=dcp.FileSystemWriter(path, sync_files=True))
    partitions.end(engine, restored=False)
    own = {name: commits.describe(path / name) for name in _own_files(path, engine.world.rank)}
    every: list[Any] = engine.world.gather(own)
    if engine.world.is_first:
        files = {name: described for part in every for name, described in part.items()}
        commit = Commit(
            version=commits.VERSION,
            step=step,
            world=engine.world.size,
            optimizer_steps=partitions.optimizer_steps(engine),
            shapes=shapes,
            trainable=engine.trainable,
            files=files,
            **identity,
        )
        commits.write_marker(path, commit)
    engine.world.barrier()
    return path


def restore(engine: ZeroEngine, path: Path) -> Commit:
    """Load weights, moments and optimizer steps into `engine`, which may have another world; all ranks call it."""
    commit = _checked(engine, path)
    _load(engine, path, with_moments=True)
    partitions.set_optimizer_steps(engine, commit.optimizer_steps)
    return commit


def restore_weights(engine: ZeroEngine, path: Path) -> None:
    """Load weights only, by name: the start of a stage from another run's checkpoint."""
    _checked(engine, path)
    _load(engine, path, with_moments=False)


def _checked(engine: ZeroEngine, path: Path) -> Commit:
    """The marker of a checkpoint that is whole and of this model; CheckpointError on every rank when it is not."""
    commit = commits.read(path)
    _verify_together(engine, path, commit)
    _check_same_parameters(engine, path, commit)
    return commit


def _verify_together(engine: ZeroEngine, path: Path, commit: Commit) -> None:
    """Verify with every rank reading its share of the files, and all of them raising what one of them finds."""
    fault: CheckpointError | None = None
    try:
        commits.verify(path, commit, sorted(commit.files)[engine.world.rank :: engine.world.size])
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
    differing = [
        name for name in sorted(mine.keys() | commit.shapes.keys()) if mine.get(name) != commit.shapes.get(name)
    ]
    name = differing[0]
    raise CheckpointError(
        f"{path} holds a model of another size: {len(differing)} parameters differ, the first is {name}: "
        f"{commit.shapes.get(name, 'absent')} in the checkpoint, {mine.get(name, 'absent')} in this recipe",
        "use the recipe that the checkpoint was made with (config.json in its run folder), or another run.name",
    )


def _own_files(path: Path, rank: int) -> list[str]:
    names = [file.name for file in path.glob(f"__{rank}_*.distcp")]
    return [*names, ".metadata"] if rank == 0 else names
