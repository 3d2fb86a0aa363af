"""Reading the weights of a checkpoint in one process, without DeepSpeed, for evaluation and export.

Invariant: a checkpoint is only read after its checksums are verified, and only the requested tensors are read.
"""

import math
import warnings
from collections.abc import Iterable, Iterator

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.commits import Commit
from janus_dist.checkpoint.files import StoredReader

WEIGHTS = "weights/"
"""Prefix of the keys of weights among the tensors of a checkpoint."""


class StoredWeights:
    """The weights of one checkpoint, read by name."""

    def __init__(self, path: str):
        """Open the checkpoint at `path`. Raises CheckpointError unless all its files match its marker."""
        self.path = path
        self.commit: Commit = commits.read(path)
        commits.verify(path, self.commit)
        self._reader = StoredReader(path, ahead_bytes=0)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name."""
        return {name: tuple(shape) for name, shape in self.commit.shapes.items()}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return whole parameters by name, on the CPU, in their stored dtype and shape.

        Each rank's file is opened once for all parameters; from a store only their bytes are read.
        """
        stored = self._reader.read_metadata().state_dict_metadata
        state = {
            WEIGHTS + name: torch.empty(stored[WEIGHTS + name].size, dtype=stored[WEIGHTS + name].properties.dtype)
            for name in names
        }
        with warnings.catch_warnings():  # torch warns that a single process loads, which `no_dist` requests
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(state, storage_reader=self._reader, no_dist=True)
        named = {key.removeprefix(WEIGHTS): value for key, value in state.items()}
        return {name: value.reshape(self.commit.shapes[name]) for name, value in named.items()}

    def groups(self, max_elements: int) -> Iterator[dict[str, Tensor]]:
        """Yield all parameters in their shapes, in groups of at most `max_elements` elements or one larger one."""
        names: list[str] = []
        elements = 0
        for name, shape in self.shapes.items():
            if names and elements + math.prod(shape) > max_elements:
                yield self.read(names)
                names, elements = [], 0
            names.append(name)
            elements += math.prod(shape)
        yield self.read(names)
