"""Straggler detection: finds the ranks that make the others wait.

A step takes equally long on all ranks, because they synchronise in it, so each rank is timed alone. At a few steps
every rank times a fixed piece of work, which reveals a slow device or an overloaded host, and reports how long it
waited for data. Invariant: a comparison takes milliseconds and one small all-reduce, and changes no state of training.
"""

import platform
import time
from dataclasses import dataclass
from typing import Literal

import torch

from janus_dist.engine.world import World

SLOW_FACTOR = 1.5
"""Multiple of the median above which a rank counts as slow; a noisy host reaches 1.2."""
MIN_EXTRA_WAIT_S = 0.05
"""Minimum seconds by which a rank must exceed the usual wait for a step's data to count as slow."""
SLOW_COMPARISONS = 3
"""Number of comparisons in a row in which a rank must be slow before it is reported."""
MATRIX_SIDES = {"cuda": 4096, "cpu": 256}
"""Side of the square matrices that are multiplied: milliseconds of work on an H100 or on a CPU core."""
NUM_SMALL_OPERATIONS = 50
"""Number of small operations after the matrix product, which reveal a slow host."""


@dataclass(frozen=True)
class SlowRank:
    """A rank that has been slow in SLOW_COMPARISONS comparisons in a row."""

    rank: int
    node: str
    work: Literal["computing", "waiting for data"]
    """Kind of work that is slow."""
    line: str
    """Console line that describes the rank and its slow work."""

    @property
    def subject(self) -> str:
        """Return the rank and its slow work without figures, which vary."""
        return f"rank {self.rank} on {self.node}: {self.work}"


@dataclass(frozen=True)
class RankComparison:
    """Result of a comparison of all ranks, the same on every rank."""

    slowest: float
    """Time that the slowest rank takes for the same work, divided by the median over all ranks."""
    slowest_step_s: float
    """Seconds of the slowest step of all ranks so far."""
    slow: list[SlowRank]
    """Ranks that are reported at this comparison."""

    @property
    def lines(self) -> list[str]:
        """Return the console line of each slow rank."""
        return [rank.line for rank in self.slow]


class StragglerDetector:
    """Compares the pace of all ranks; every rank has one and calls `look` at the same steps."""

    def __init__(self, world: World):
        self.world = world
        self.nodes = [str(node) for node in world.gather(platform.node())]
        side = MATRIX_SIDES[world.device.type]
        dtype = torch.bfloat16 if world.device.type == "cuda" else torch.float32
        self._matrix = torch.ones(side, side, device=world.device, dtype=dtype)
        self._waited_s, self._steps = 0.0, 0
        self._slow_counts: dict[int, int] = {}
        """Number of comparisons in a row in which each rank was slow."""

    def waited(self, seconds: float) -> None:
        """Record the seconds that this rank waited for the data of a step."""
        self._waited_s += seconds
        self._steps += 1

    def look(self, slowest_step_s: float) -> RankComparison:
        """Compare all ranks; all ranks call it, each with the seconds of its slowest step so far."""
        own_times = torch.tensor([self.work_s(), self._waited_s / max(1, self._steps), slowest_step_s])
        self._waited_s, self._steps = 0.0, 0
        times = torch.zeros(self.world.size, 3)  # [rank, (work, mean wait, slowest step)] seconds
        times[self.world.rank] = own_times
        times = self.world.sum(times.to(self.world.device)).cpu()
        work, waits = times[:, 0], times[:, 1]
        median_work, median_wait = float(work.median()), float(waits.median())
        slow: list[SlowRank] = []
        for rank in range(self.world.size):
            is_slow = float(work[rank]) > SLOW_FACTOR * median_work
            is_waiting = float(waits[rank]) > SLOW_FACTOR * median_wait + MIN_EXTRA_WAIT_S
            self._slow_counts[rank] = self._slow_counts.get(rank, 0) + 1 if is_slow or is_waiting else 0
            if self._slow_counts[rank] == SLOW_COMPARISONS:
                reason = (
                    f"it takes {float(work[rank]) / median_work:.1f} times the median of all ranks for the same work"
                    if is_slow
                    else f"it waits {float(waits[rank]):.2f} s per step for data, the median of all ranks is "
                    f"{median_wait:.2f} s"
                )
                node = self.nodes[rank]
                line = f"rank {rank} on {node} is slow: {reason}"
                slow.append(SlowRank(rank, node, "computing" if is_slow else "waiting for data", line))
        return RankComparison(float(work.max()) / median_work, float(times[:, 2].max()), slow)

    def work_s(self) -> float:
        """Return the seconds that a fixed piece of work takes, the best of three."""
        best = float("inf")
        for _ in range(3):
            self._synchronize()
            began = time.perf_counter()
            product = self._matrix @ self._matrix
            corner = product[:8, :8]
            for _ in range(NUM_SMALL_OPERATIONS):
                corner = corner + 1
            self._synchronize()
            best = min(best, time.perf_counter() - began)
        return best

    def _synchronize(self) -> None:
        if self._matrix.is_cuda:
            torch.cuda.synchronize()
