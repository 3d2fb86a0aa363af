"""A rank's shares of flattened tensors, in the form that torch.distributed.checkpoint saves and loads.

Invariant: no copy of a share is made: a save reads the share's own elements, a load writes straight into them. torch's
DTensor describes the same shares, and so the same files, but finds where a share begins by an index of all its
elements: twice the bytes of the state, at every save and load (torch 2.13).
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
    """Consecutive elements of a flattened tensor; torch.distributed.checkpoint requires the names of its methods."""

    values: Tensor
    """[own elements]: elements of this rank, possibly none."""
    first: int
    """Index of the first own element in the whole tensor."""
    elements: int
    """Number of elements of the whole tensor."""

    def size(self) -> torch.Size:
        """Return the size of the whole tensor: [elements]."""
        return torch.Size([self.elements])

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """Return the position and size of the own elements in the whole tensor; an empty list without elements."""
        size = self.values.size()
        return [ChunkStorageMetadata(torch.Size([self.first]), size)] if size.numel() else []

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        """Return the items that write the own elements of the tensor `name`."""
        properties = TensorProperties.create_from_tensor(self.values)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, self.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]


class ShareSavePlanner(DefaultSavePlanner):
    """Plans the writing of shares."""

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """Return the elements [own elements] to write."""
        return self.state_dict[index.fqn].values


class ShareLoadPlanner(DefaultLoadPlanner):
    """Plans the reading into shares."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False)

    def set_up_planner(self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        """Set the state to load into."""
        # torch's own method searches the state for tensors on `meta`, and replaces values of unknown types by None
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """Return the elements [own elements] to load into."""
        return self.state_dict[index.fqn].values


def alone(view: Tensor) -> Tensor:
    """Return a tensor of the same shape and CPU memory whose storage contains nothing else.

    torch writes a clone of a view, and keeps all clones until the file is complete.
    """
    return torch.from_numpy(view.view(torch.uint8).numpy()).view(view.dtype)
