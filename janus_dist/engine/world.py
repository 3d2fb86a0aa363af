"""The world: this process's rank, and the few collectives that training needs beside ZeRO-3's own.

Invariant: every function here that communicates is called by all ranks, in the same order.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from janus_dist.config.train import ClusterConfig
from janus_dist.errors import JanusError

T = TypeVar("T")
BANDWIDTH_BYTES = {"cuda": 2**30, "cpu": 2**22}
"""Summed to measure the network."""
BACKGROUND_TIMEOUT_S = 86400
"""A group of gloo's that timed out once is of no use any more, and nothing but the next save waits for a slow one; that
a rank is gone is seen by its connection, at once."""


@dataclass(frozen=True)
class World:
    """Where this process stands."""

    rank: int
    size: int
    device: torch.device
    local_rank: int = 0
    """Among the ranks of this node."""
    local_size: int = 1
    """Number of ranks of this node, which are numbered one after the other."""

    @property
    def node_ranks(self) -> range:
        """The ranks of this node, which share its cache."""
        first = self.rank - self.local_rank
        return range(first, first + self.local_size)

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

    def run_on_rank0(self, do: Callable[[], T]) -> T:
        """Call `do` on rank 0 and return its result on every rank; every rank raises the JanusError that it raises."""
        found: Any = None
        if self.is_first:
            try:
                found = do()
            except JanusError as error:
                found = error
        found = self.from_first(found)
        if isinstance(found, JanusError):
            raise found
        return found

    def run_on_all_ranks(self, do: Callable[[], T]) -> T:
        """Call `do` on every rank and return the own result.

        All ranks raise the JanusError of the lowest rank that raises one, so that no rank waits for it.
        """
        found: Any = None
        fault: JanusError | None = None
        try:
            found = do()
        except JanusError as error:
            fault = error
        for one in self.gather(fault):
            if isinstance(one, JanusError):
                raise one
        return found

    def any(self, value: bool) -> bool:
        """Whether it is true on some rank; the same on every rank."""
        return bool(self.sum(torch.tensor(float(value), device=self.device)))

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def bandwidth(self) -> float | None:
        """GB a second in which all ranks sum a tensor, the best of three; None where there is one rank."""
        if self.size == 1:
            return None
        values = torch.ones(BANDWIDTH_BYTES[self.device.type] // 4, device=self.device)
        best = float("inf")
        for _ in range(4):  # the first one makes the connections
            self.barrier()
            began = time.perf_counter()
            dist.all_reduce(values)
            values[0].item()  # waits for a GPU
            best = min(best, time.perf_counter() - began)
        return values.nbytes / best / 1e9


@dataclass(frozen=True)
class Background:
    """The same ranks once more, on gloo: for what a thread beside the training says to its like on other ranks."""

    world: World
    group: Any

    @classmethod
    def of(cls, world: World) -> "Background":
        """All ranks call it, from their main threads."""
        return cls(world, dist.new_group(backend="gloo", timeout=timedelta(seconds=BACKGROUND_TIMEOUT_S)))

    def gather(self, value: object) -> list[Any]:
        """The values of all ranks, by rank, on the first rank; nothing on others."""
        gathered: list[Any] | None = [None] * self.world.size if self.world.is_first else None
        dist.gather_object(value, gathered, group=self.group, group_dst=0)
        return gathered or []

    def run_on_rank0(self, do: Callable[[], object]) -> None:
        """Call `do` on rank 0 while the others wait; raises OSError on every rank when `do` raises any exception."""
        failure: list[str | None] = [None]
        if self.world.is_first:
            try:
                do()
            except Exception as error:
                failure = [f"{type(error).__name__}: {error}"]
        dist.broadcast_object_list(failure, group=self.group, group_src=0)
        if failure[0] is not None:
            raise OSError(failure[0])


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
