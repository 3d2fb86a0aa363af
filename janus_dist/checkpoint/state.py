"""Checkpoints: each rank writes its own shard, a commit marker makes them count, any world reads them back.

    SAVED_IN/step-00000100/{.metadata, __R_0.distcp, ...}   torch.distributed.checkpoint, keyed by parameter name

Saving has two halves: a snapshot, which the step waits for, and the writing of it, which saver.py does beside the
training. Invariant: the marker is written (commits.py) after every rank's file is on disk and described in it.
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.commits import Commit
from janus_dist.checkpoint.files import HashedWriter, StoredReader
from janus_dist.checkpoint.stored import WEIGHTS
from janus_dist.engine import partitions
from janus_dist.engine.shares import SharesToLoad, SharesToSave, alone
from janus_dist.engine.world import Background
from janus_dist.engine.zero import ZeroEngine
from janus_dist.model.size import check_shapes
from janus_dist.storage import fs


class WeightSource(Protocol):
    """One parameter in files of another layout, which a rank reads as far as it needs."""

    def read(self, first: int, last: int) -> Tensor:
        """Return the elements [first, last) of the flattened parameter; fewer where the files have fewer."""
        ...


@dataclass(frozen=True)
class Snapshot:
    """This rank's share of the state after a step, in host memory of its own, and what the marker will say."""

    path: str
    state: dict[str, Any]
    commit: Commit


class Hosts:
    """Host memory for one snapshot, taken once and used again, so that saving needs no more than that."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def copy(self, flats: Sequence[Tensor]) -> dict[int, Tensor]:
        """Copies of tensors, by their `id`; always of the same tensors in the same order."""
        if not self.tensors:
            self.tensors = [torch.empty_like(flat, device="cpu", pin_memory=flat.is_cuda) for flat in flats]
        for host, flat in zip(self.tensors, flats, strict=True):
            host.copy_(flat.detach(), non_blocking=True)
        if any(flat.is_cuda for flat in flats):
            torch.cuda.synchronize()
        return {id(flat): host for flat, host in zip(flats, self.tensors, strict=True)}


def snapshot(engine: ZeroEngine, saved_in: str, step: int, identity: dict[str, Any], hosts: Hosts) -> Snapshot:
    """Copy the state after `step` steps; all ranks call it. `identity` fills the marker's own fields."""
    partitions.begin(engine)
    pieces = partitions.pieces(engine)
    flats = {WEIGHTS + piece.name: (piece, piece.flat) for piece in pieces}
    for piece in pieces:
        if piece.trainable:
            for moment, flat in partitions.moments(engine, piece).items():
                flats[f"{moment}/{piece.name}"] = (piece, flat)
    copies = hosts.copy(list({id(flat): flat for _, flat in flats.values()}.values()))
    commit = Commit(
        version=commits.VERSION,
        step=step,
        world=engine.world.size,
        optimizer_steps=partitions.optimizer_steps(engine),
        shapes={piece.name: list(piece.shape) for piece in pieces},
        trainable=engine.trainable,
        files={},
        **identity,
    )
    partitions.end(engine, restored=False)
    state = {name: piece.share(alone(piece.view(copies[id(flat)]))) for name, (piece, flat) in flats.items()}
    return Snapshot(commits.folder(saved_in, step), state, commit)


def write(taken: Snapshot, ranks: Background, check: Callable[[], None] = lambda: None) -> None:
    """Write and commit a snapshot; all ranks call it, in a thread beside the training or not.

    `check` raises where the folder is another job's by now; the first rank calls it before it deletes or commits.
    OSError, on every rank, when a rank cannot write; what was written is gone then.
    """

    def begin() -> None:
        check()
        fs.remove_folder(taken.path)  # left behind by a run that was killed while it wrote

    def commit() -> None:
        check()
        commits.write_marker(taken.path, replace(taken.commit, files=files))

    ranks.run_on_rank0(begin)
    writer = HashedWriter(taken.path)
    try:
        dcp.save(taken.state, storage_writer=writer, planner=SharesToSave(), process_group=ranks.group)
    except CheckpointException as error:  # the same on every rank
        rank, (cause, _) = min(error.failures.items())
        full = _full_disk(taken)
        if ranks.world.is_first:
            with suppress(*fs.FAILURES):
                fs.remove_folder(taken.path)
        raise OSError(full or f"rank {rank}: {cause}") from error
    files = {name: described for part in ranks.gather(writer.written) for name, described in part.items()}
    ranks.run_on_rank0(commit)


def _full_disk(taken: Snapshot) -> str | None:
    """Return that the disk is full, which torch reports as an unexpected position in a file; None where it is not.

    Called while what was written is still there: a checkpoint has fewer bytes than are counted here if it had room.
    """
    folder = taken.path.rpartition("/")[0]
    if not fs.is_local(folder):
        return None
    commit, learns = taken.commit, set(taken.commit.trainable)
    needed = sum(math.prod(shape) * (12 if name in learns else 2) for name, shape in commit.shapes.items())
    written, free = sum(fs.sizes(taken.path).values()), shutil.disk_usage(folder).free
    if written + free >= needed:
        return None
    return (
        f"the disk is full: {folder} has {free:,} bytes free beside {written:,} of a checkpoint, which takes at least "
        f"{needed:,}; make room (janus ckpt prune), or choose another run.checkpoints"
    )


def restore(engine: ZeroEngine, path: str) -> Commit:
    """Load weights, moments and optimizer steps of a whole checkpoint into `engine`, which may have another world; all
    ranks call it."""
    commit = engine.world.run_on_rank0(lambda: commits.read(path))
    _check_same_parameters(engine, path, commit)
    _load(engine, path, with_moments=True)
    partitions.set_optimizer_steps(engine, commit.optimizer_steps)
    return commit


def restore_weights(engine: ZeroEngine, path: str) -> None:
    """Load weights only, by name: the start of a stage from another run's checkpoint."""
    _check_same_parameters(engine, path, engine.world.run_on_rank0(lambda: commits.read(path)))
    _load(engine, path, with_moments=False)


def fill(engine: ZeroEngine, weights: Mapping[str, WeightSource]) -> None:
    """Load weights of others; each rank reads what it owns. What `weights` has not keeps its random values."""
    partitions.begin(engine)
    for piece in partitions.pieces(engine):
        if piece.name in weights:
            values = weights[piece.name].read(piece.first, piece.first + piece.valid)
            piece.view(piece.flat)[: len(values)].copy_(values)
    partitions.end(engine, restored=True)


def latest_to_resume(engine: ZeroEngine, saved_in: str, say: Callable[[str], None]) -> str | None:
    """Return `latest_verified` of the engine's own run, and set aside the damaged checkpoints that are newer.

    Left as they are, those would still be the newest by their markers, and pruning would keep them rather than what is
    saved from here on. Raises CheckpointError when all checkpoints are damaged.
    """
    path = commits.latest_verified(engine.world, saved_in, say)
    if path is not None:
        for newer in engine.world.run_on_rank0(lambda: commits.set_aside_from(saved_in, path, commits.step_of(path))):
            say(f"set aside {newer}: the run goes on from {path}")
    return path


def _load(engine: ZeroEngine, path: str, with_moments: bool) -> None:
    partitions.begin(engine)
    reader = StoredReader(path)  # one: it keeps the metadata, which is hundreds of MB of a thousand ranks
    stored = reader.read_metadata().state_dict_metadata
    state: dict[str, Any] = {}
    converted: list[tuple[Tensor, Tensor]] = []
    for piece in partitions.pieces(engine):
        flats = {WEIGHTS + piece.name: piece.flat}
        if with_moments and piece.trainable:
            flats |= {f"{moment}/{piece.name}": flat for moment, flat in partitions.moments(engine, piece).items()}
        for key, flat in flats.items():
            target, dtype = piece.view(flat), stored[key].properties.dtype
            if dtype != target.dtype:  # a part that was frozen is stored in the low precision that it had
                converted.append((target, torch.empty_like(target, dtype=dtype)))
                target = converted[-1][1]
            state[key] = piece.share(target)
    dcp.load(state, storage_reader=reader, planner=SharesToLoad())
    for target, values in converted:
        target.copy_(values)
    partitions.end(engine, restored=True)


def _check_same_parameters(engine: ZeroEngine, path: str, commit: Commit) -> None:
    check_shapes({piece.name: piece.shape for piece in partitions.pieces(engine)}, commit.shapes, path)
