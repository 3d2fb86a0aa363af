"""Reading the weights of a checkpoint in one process, without DeepSpeed: for evaluation and export.

Invariant: only a whole checkpoint whose checksums hold is read, and of it only the tensors that are asked for.
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
"""Prefix of the weights among the tensors of a checkpoint."""


class StoredWeights:
    """The weights of one checkpoint, read by name."""

    def __init__(self, path: str):
        """Open the checkpoint at `path`; CheckpointError unless all its files are as its marker says."""
        self.path = path
        self.commit: Commit = commits.read(path)
        commits.verify(path, self.commit)
        self._reader = StoredReader(path, ahead_bytes=0)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, by name."""
        return {name: tuple(shape) for name, shape in self.commit.shapes.items()}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Whole parameters on the CPU, in the type that they were stored in.

        Each rank's file is opened once for all of them, and of a store exactly their pieces are asked for.
        """
        stored = self._reader.read_metadata().state_dict_metadata
        state = {
            WEIGHTS + name: torch.empty(stored[WEIGHTS + name].size, dtype=stored[WEIGHTS + name].properties.dtype)
            for name in names
        }
        with warnings.catch_warnings():  # torch remarks that one process loads, which is what `no_dist` asks for
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(state, storage_reader=self._reader, no_dist=True)
        named = {key.removeprefix(WEIGHTS): value for key, value in state.items()}
        return {name: value.reshape(self.commit.shapes[name]) for name, value in named.items()}

    def groups(self, max_elements: int) -> Iterator[dict[str, Tensor]]:
        """All parameters, read at most so many elements at a time; a larger one by itself."""
        names: list[str] = []
        elements = 0
        for name, shape in self.shapes.items():
            if names and elements + math.prod(shape) > max_elements:
                yield self.read(names)
                names, elements = [], 0
            names.append(name)
            elements += math.prod(shape)
        yield self.read(names)
