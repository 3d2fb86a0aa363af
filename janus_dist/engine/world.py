"""The world: this process's rank, and the few collectives that training needs beside ZeRO-3's own.

Invariant: every function here that communicates is called by all ranks, in the same order.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from janus_dist.config.train import ClusterConfig

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Where this process stands."""

    rank: int
    size: int
    device: torch.device
    local_rank: int = 0
    """Among the ranks of this node."""
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks of a small tensor, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: object) -> list[object]:
        """The values of all ranks, by rank, on every rank. For small things at rare moments."""
        if self.size == 1:
            return [value]
        gathered: list[object] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def from_first(self, value: T) -> T:
        """The first rank's value, on every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def join(cluster: ClusterConfig, timeout_s: int) -> World:
    """Join the process group, making it from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT if the launcher has not."""
    if not cluster.gpu:
        torch.set_num_threads(cluster.cpus_per_worker)
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = torch.device("cuda", local_rank) if cluster.gpu else torch.device("cpu")
    if cluster.gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cluster.gpu else "gloo", timeout=timedelta(seconds=timeout_s))
    return World(dist.get_rank(), dist.get_world_size(), device, local_rank, local_size)
