"""The world: this process's rank, and the few collectives that training needs besides those of ZeRO-3.

Invariant: every function of this module that communicates is called by all ranks, in the same order.
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
"""Bytes of the tensor whose all-reduce measures the network, by device type."""
BACKGROUND_TIMEOUT_S = 86400
"""Timeout of the background group in seconds. It is long because a gloo group cannot be used after a timeout, and only
the next save waits for a slow one; the end of a rank is detected at once, by its connection."""


@dataclass(frozen=True)
class World:
    """Rank and device of this process, and collectives over all ranks."""

    rank: int
    size: int
    """Number of ranks."""
    device: torch.device
    local_rank: int = 0
    """Rank among the ranks of this node."""
    local_size: int = 1
    """Number of ranks of this node, whose rank numbers are consecutive."""

    @property
    def node_ranks(self) -> range:
        """Return the ranks of this node, which share its cache."""
        first = self.rank - self.local_rank
        return range(first, first + self.local_size)

    @property
    def is_first(self) -> bool:
        """Return whether this process is rank 0."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a small tensor over ranks in place and return it; shape and dtype are the same on all ranks."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: object) -> list[object]:
        """Return the values of all ranks, by rank, on every rank. For small objects at rare moments."""
        if self.size == 1:
            return [value]
        gathered: list[object] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def from_first(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def run_on_rank0(self, do: Callable[[], T]) -> T:
        """Call `do` on rank 0 and return its result on every rank; a JanusError of `do` is raised on every rank."""
        result: Any = None
        if self.is_first:
            try:
                result = do()
            except JanusError as error:
                result = error
        result = self.from_first(result)
        if isinstance(result, JanusError):
            raise result
        return result

    def run_on_all_ranks(self, do: Callable[[], T]) -> T:
        """Call `do` on every rank and return this rank's result.

        All ranks raise the JanusError of the lowest rank that raises one, so that no rank waits for it.
        """
        result: Any = None
        own_error: JanusError | None = None
        try:
            result = do()
        except JanusError as error:
            own_error = error
        for error in self.gather(own_error):
            if isinstance(error, JanusError):
                raise error
        return result

    def any(self, value: bool) -> bool:
        """Return on every rank whether `value` is true on at least one rank."""
        return bool(self.sum(torch.tensor(float(value), device=self.device)))

    def barrier(self) -> None:
        """Wait until all ranks have called this method."""
        if self.size > 1:
            dist.barrier()

    def bandwidth(self) -> float | None:
        """Return the all-reduce bandwidth in GB/s (tensor bytes per second, best of four); None with one rank."""
        if self.size == 1:
            return None
        values = torch.ones(BANDWIDTH_BYTES[self.device.type] // 4, device=self.device)
        best = float("inf")
        for _ in range(4):  # the first all-reduce also opens the connections
            self.barrier()
            began = time.perf_counter()
            dist.all_reduce(values)
            values[0].item()  # waits for a GPU
            best = min(best, time.perf_counter() - began)
        return values.nbytes / best / 1e9


@dataclass(frozen=True)
class BackgroundGroup:
    """A second process group of the same ranks, on gloo, for communication between background threads."""

    world: World
    group: Any

    @classmethod
    def of(cls, world: World) -> "BackgroundGroup":
        """Return a new group; all ranks call it, from their main threads."""
        return cls(world, dist.new_group(backend="gloo", timeout=timedelta(seconds=BACKGROUND_TIMEOUT_S)))

    def gather(self, value: object) -> list[Any]:
        """Return the values of all ranks, by rank, on rank 0; an empty list on other ranks."""
        gathered: list[Any] | None = [None] * self.world.size if self.world.is_first else None
        dist.gather_object(value, gathered, group=self.group, group_dst=0)
        return gathered or []

    def run_on_rank0(self, do: Callable[[], object]) -> None:
        """Call `do` on rank 0 while the others wait. Raises OSError on every rank when `do` raises an exception."""
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
    """Join the process group and return the world; `timeout_s` is the timeout of collectives in seconds.

    If the launcher has not created the group, create it from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
    """
    if not cluster.gpu:
        torch.set_num_threads(cluster.cpus_per_worker)
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = torch.device("cuda", local_rank) if cluster.gpu else torch.device("cpu")
    if cluster.gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cluster.gpu else "gloo", timeout=timedelta(seconds=timeout_s))
    return World(dist.get_rank(), dist.get_world_size(), device, local_rank, local_size)
