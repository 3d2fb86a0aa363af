"""A rank's shares of flattened tensors, as torch.distributed.checkpoint is told of them.

Invariant: nothing here takes memory of the size of a share: what is written is read from a share's own elements, what
is loaded goes straight into them. torch's DTensor describes the same shares, and so the same files, but finds where
one begins by an index of all its elements: twice the bytes of the state, at every save and load (torch 2.13).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


@dataclass(frozen=True)
class Share:
    """Consecutive elements of a flattened tensor; it has the methods that torch asks for under these names."""

    values: Tensor
    """[own elements], maybe none."""
    first: int
    """The tensor's element that they begin with."""
    elements: int
    """Of the whole tensor."""

    def size(self) -> torch.Size:
        """Of the whole tensor."""
        return torch.Size([self.elements])

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        size = self.values.size()
        return [ChunkStorageMetadata(torch.Size([self.first]), size)] if size.numel() else []

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.values)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, self.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]


class SharesToSave(DefaultSavePlanner):
    """Plans the writing of shares."""

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].values


class SharesToLoad(DefaultLoadPlanner):
    """Plans the reading into shares."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False)

    def set_up_planner(self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        # torch's own goes through the state for tensors on `meta`, and leaves None where it finds anything unknown
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].values


def alone(view: Tensor) -> Tensor:
    """The same memory of a CPU, as a tensor with nothing else in its storage: of a view torch writes a clone, and keeps
    all clones until the file is whole."""
    return torch.from_numpy(view.view(torch.uint8).numpy()).view(view.dtype)
