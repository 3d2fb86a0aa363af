"""Checkpoints for tests, written synchronously and with a placeholder identity."""

from pathlib import Path
from typing import Any

from torch import Tensor

from janus_dist.checkpoint import commits, state
from janus_dist.checkpoint.find import require_checkpoint
from janus_dist.checkpoint.stored import StoredWeights
from janus_dist.engine.world import BackgroundGroup
from janus_dist.engine.zero import ZeroEngine

IDENTITY = {"plan_digest": "p", "plan": {}, "cursors": {}, "recipe": {}, "tokens": 7, "losses": [], "left_out": []}


def saved_in(run_dir: Path) -> str:
    """Return the folder of the checkpoints of a run on disk."""
    return f"{run_dir}/checkpoints"


def folder_of(run_dir: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return Path(commits.folder(saved_in(run_dir), step))


def mark(saved_in: str, step: int, **identity: Any) -> str:
    """Write a checkpoint that consists only of its marker, and return its folder."""
    path = commits.folder(saved_in, step)
    Path(path).mkdir(parents=True)
    fields = IDENTITY | identity
    commits.write_marker(
        path,
        commits.Commit(
            commits.VERSION, step, world=1, optimizer_steps=step, shapes={}, trainable=[], files={}, **fields
        ),
    )
    return path


def load_weights(saved_in: str) -> dict[str, Tensor]:
    """Return all weights of the newest checkpoint by name."""
    stored = StoredWeights(require_checkpoint(saved_in))
    return stored.read(stored.shapes)


def save(engine: ZeroEngine, run_dir: Path, step: int, **identity: Any) -> None:
    """Save and commit the state of all ranks."""
    snapshot = state.snapshot(engine, saved_in(run_dir), step, IDENTITY | identity, state.HostBuffers())
    state.write(snapshot, BackgroundGroup.of(engine.world))
