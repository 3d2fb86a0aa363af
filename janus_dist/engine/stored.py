"""Reading the weights of a checkpoint in one process, without DeepSpeed: for evaluation and export.

Invariant: only a whole checkpoint whose checksums hold is read.
"""

import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader

from janus_dist.engine import commits
from janus_dist.errors import CheckpointError

WEIGHTS = "weights/"
"""Prefix of the weights among the tensors of a checkpoint."""


def load_weights(run_dir: Path) -> dict[str, Tensor]:
    """All weights of the newest checkpoint of a run, by name; CheckpointError when there is none."""
    path = commits.latest(run_dir)
    if path is None:
        raise CheckpointError(
            f"no committed checkpoint under {run_dir / 'checkpoints'}",
            "train the run first, or name another with run.name=...",
        )
    commit = commits.read(path)
    commits.verify(path, commit)
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    state = {
        WEIGHTS + name: torch.empty(stored[WEIGHTS + name].size, dtype=stored[WEIGHTS + name].properties.dtype)
        for name in commit.shapes
    }
    with warnings.catch_warnings():  # torch remarks that one process loads, which is what `no_dist` asks for
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(state, storage_reader=FileSystemReader(path), no_dist=True)
    return {name: state[WEIGHTS + name].reshape(shape) for name, shape in commit.shapes.items()}
