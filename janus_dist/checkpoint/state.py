"""Checkpoints: each rank writes its own file, a marker commits them, and any number of ranks can load them.

    SAVED_IN/step-00000100/{.metadata, __R_0.distcp, ...}   torch.distributed.checkpoint, keyed by parameter name

A save has two parts: a snapshot, for which the step waits, and its writing, which saver.py does in the background.
Invariant: the marker (commits.py) is written after every rank's file is on disk, and describes all files.
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
from janus_dist.engine.shares import ShareLoadPlanner, ShareSavePlanner, alone
from janus_dist.engine.world import BackgroundGroup
from janus_dist.engine.zero import ZeroEngine
from janus_dist.model.size import check_shapes
from janus_dist.storage import fs


class WeightSource(Protocol):
    """One parameter in files of another layout, of which a rank reads only its own elements."""

    def read(self, first: int, last: int) -> Tensor:
        """Return elements [first, last) of the flattened parameter: [last - first], fewer if the files have fewer."""
        ...


@dataclass(frozen=True)
class Snapshot:
    """Copy of this rank's share of the state after a step, in host memory, and the content of its marker."""

    path: str
    """Folder of the checkpoint."""
    state: dict[str, Any]
    """Shares of weights and moments by key."""
    commit: Commit
    """Content of the marker, without files."""


class HostBuffers:
    """Host memory for one snapshot, allocated once and reused, so that saves need no further memory."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        """Buffers in host memory, in the order of the tensors that are copied."""

    def copy(self, flats: Sequence[Tensor]) -> dict[int, Tensor]:
        """Copy tensors to host memory and return the copies, of the same shapes, by `id` of their originals.

        Every call must pass the same tensors in the same order.
        """
        if not self.tensors:
            self.tensors = [torch.empty_like(flat, device="cpu", pin_memory=flat.is_cuda) for flat in flats]
        for host, flat in zip(self.tensors, flats, strict=True):
            host.copy_(flat.detach(), non_blocking=True)
        if any(flat.is_cuda for flat in flats):
            torch.cuda.synchronize()
        return {id(flat): host for flat, host in zip(flats, self.tensors, strict=True)}


def snapshot(engine: ZeroEngine, saved_in: str, step: int, identity: dict[str, Any], hosts: HostBuffers) -> Snapshot:
    """Copy the state after `step` steps and return the copy; all ranks call it.

    `identity` has the fields of the marker that do not come from the engine.
    """
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


def write(snapshot: Snapshot, ranks: BackgroundGroup, check: Callable[[], None] = lambda: None) -> None:
    """Write and commit a snapshot; all ranks call it, from any thread.

    `check` raises when another job owns the folder by now; rank 0 calls it before it deletes or commits.
    Raises OSError on every rank when a rank cannot write; the files of the checkpoint are deleted then.
    """

    def clear_folder() -> None:
        check()
        fs.remove_folder(snapshot.path)  # remains of a run that was killed during a save

    def commit() -> None:
        check()
        commits.write_marker(snapshot.path, replace(snapshot.commit, files=files))

    ranks.run_on_rank0(clear_folder)
    writer = HashedWriter(snapshot.path)
    try:
        dcp.save(snapshot.state, storage_writer=writer, planner=ShareSavePlanner(), process_group=ranks.group)
    except CheckpointException as error:  # the same on every rank
        rank, (cause, _) = min(error.failures.items())
        full_disk = _full_disk(snapshot)
        if ranks.world.is_first:
            with suppress(*fs.FAILURES):
                fs.remove_folder(snapshot.path)
        raise OSError(full_disk or f"rank {rank}: {cause}") from error
    files = {name: file for rank_files in ranks.gather(writer.written) for name, file in rank_files.items()}
    ranks.run_on_rank0(commit)


def _full_disk(snapshot: Snapshot) -> str | None:
    """Return the message for a full disk, or None when the disk has enough space.

    torch reports a full disk as an unexpected position in a file. Call this before the written files are deleted: the
    disk had enough space if written and free bytes are at least the minimum bytes of a checkpoint.
    """
    folder = snapshot.path.rpartition("/")[0]
    if not fs.is_local(folder):
        return None
    commit, trainable = snapshot.commit, set(snapshot.commit.trainable)
    needed = sum(math.prod(shape) * (12 if name in trainable else 2) for name, shape in commit.shapes.items())
    written, free = sum(fs.sizes(snapshot.path).values()), shutil.disk_usage(folder).free
    if written + free >= needed:
        return None
    return (
        f"the disk is full: {folder} has {free:,} bytes free besides {written:,} bytes already written of a checkpoint "
        f"that needs at least {needed:,}; free space (janus ckpt prune), or choose another run.checkpoints"
    )


def restore(engine: ZeroEngine, path: str) -> Commit:
    """Load weights, moments and optimizer steps of a checkpoint into `engine` and return the marker; all ranks call it.

    The number of ranks may differ from that of the checkpoint. Raises CheckpointError when the checkpoint is of another
    model or its marker cannot be read.
    """
    commit = engine.world.run_on_rank0(lambda: commits.read(path))
    _check_same_parameters(engine, path, commit)
    _load(engine, path, with_moments=True)
    partitions.set_optimizer_steps(engine, commit.optimizer_steps)
    return commit


def restore_weights(engine: ZeroEngine, path: str) -> None:
    """Load only the weights, by name, to start a stage from another run's checkpoint; all ranks call it.

    Raises CheckpointError when the checkpoint is of another model or its marker cannot be read.
    """
    _check_same_parameters(engine, path, engine.world.run_on_rank0(lambda: commits.read(path)))
    _load(engine, path, with_moments=False)


def fill(engine: ZeroEngine, weights: Mapping[str, WeightSource]) -> None:
    """Load published weights by parameter name; each rank reads its own elements.

    Parameters that are not in `weights` keep their random values.
    """
    partitions.begin(engine)
    for piece in partitions.pieces(engine):
        if piece.name in weights:
            values = weights[piece.name].read(piece.first, piece.first + piece.valid)
            piece.view(piece.flat)[: len(values)].copy_(values)
    partitions.end(engine, restored=True)


def latest_to_resume(engine: ZeroEngine, saved_in: str, say: Callable[[str], None]) -> str | None:
    """Return `latest_verified` of the engine's own run, and set aside the damaged checkpoints that are newer.

    Otherwise those would remain the newest by their markers, and pruning would keep them instead of the checkpoints
    that are saved from here on. Raises CheckpointError when all checkpoints are damaged.
    """
    path = commits.latest_verified(engine.world, saved_in, say)
    if path is not None:
        for newer in engine.world.run_on_rank0(lambda: commits.set_aside_from(saved_in, path, commits.step_of(path))):
            say(f"set aside {newer}: the run resumes from {path}")
    return path


def _load(engine: ZeroEngine, path: str, with_moments: bool) -> None:
    """Load weights, and moments of trainable parameters if asked for, into the engine's partitions."""
    partitions.begin(engine)
    reader = StoredReader(path)  # a single one: it keeps the metadata, which has hundreds of MB for a thousand ranks
    stored = reader.read_metadata().state_dict_metadata
    state: dict[str, Any] = {}
    converted: list[tuple[Tensor, Tensor]] = []
    for piece in partitions.pieces(engine):
        flats = {WEIGHTS + piece.name: piece.flat}
        if with_moments and piece.trainable:
            flats |= {f"{moment}/{piece.name}": flat for moment, flat in partitions.moments(engine, piece).items()}
        for key, flat in flats.items():
            target, dtype = piece.view(flat), stored[key].properties.dtype
            if dtype != target.dtype:  # a part that was frozen is stored in its low precision
                converted.append((target, torch.empty_like(target, dtype=dtype)))
                target = converted[-1][1]
            state[key] = piece.share(target)
    dcp.load(state, storage_reader=reader, planner=ShareLoadPlanner())
    for target, values in converted:
        target.copy_(values)
    partitions.end(engine, restored=True)


def _check_same_parameters(engine: ZeroEngine, path: str, commit: Commit) -> None:
    """Raise CheckpointError unless the checkpoint has the names and shapes of the engine's parameters."""
    check_shapes({piece.name: piece.shape for piece in partitions.pieces(engine)}, commit.shapes, path)
