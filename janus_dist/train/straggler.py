"""Which rank makes the others wait: all take a step equally long, since they meet in it, so each is timed alone.

At a few steps every rank times a fixed piece of work of its own, which shows a slow device or a crowded host, and adds
how long it waited for data. Invariant: looking takes milliseconds and one small sum over ranks, and changes nothing.
"""

import platform
import time
from dataclasses import dataclass
from typing import Literal

import torch

from janus_dist.engine.world import World

SLOW = 1.5
"""Times the median at which a rank is called slow; a noisy host reaches 1.2."""
LEAST_WAIT_S = 0.05
"""A step that waits so much longer for data than that of others is worth a word."""
PATIENCE = 3
"""Looks in a row at which a rank must be slow before it is named."""
SIDES = {"cuda": 4096, "cpu": 256}
"""Of the matrices that are multiplied: milliseconds on an H100 or on a core."""
SMALL = 50
"""Small operations beside it, which show a slow host."""


@dataclass(frozen=True)
class SlowRank:
    """A rank that has been slow for a while."""

    rank: int
    node: str
    work: Literal["computing", "waiting for data"]
    """What it is slow at."""
    line: str

    @property
    def subject(self) -> str:
        """Name the rank and its slow work without figures, which vary."""
        return f"rank {self.rank} on {self.node}: {self.work}"


@dataclass(frozen=True)
class Look:
    """What a look found, the same on every rank."""

    slowest: float
    """How many times the median of all ranks the slowest one takes for the same work."""
    slowest_step_s: float
    """Of all steps of all ranks so far."""
    slow: list[SlowRank]
    """Ranks that are named at this look."""

    @property
    def lines(self) -> list[str]:
        """Return what there is to say of each slow rank."""
        return [rank.line for rank in self.slow]


class Stragglers:
    """The pace of every rank; all ranks make one and `look` at the same steps."""

    def __init__(self, world: World):
        self.world = world
        self.nodes = [str(node) for node in world.gather(platform.node())]
        side = SIDES[world.device.type]
        dtype = torch.bfloat16 if world.device.type == "cuda" else torch.float32
        self._matrix = torch.ones(side, side, device=world.device, dtype=dtype)
        self._waited_s, self._steps = 0.0, 0
        self._slow: dict[int, int] = {}

    def waited(self, seconds: float) -> None:
        """This rank waited so long for the data of a step."""
        self._waited_s += seconds
        self._steps += 1

    def look(self, slowest_step_s: float) -> Look:
        """Compare all ranks, each of which says its slowest step so far; all call it."""
        mine = torch.tensor([self.work_s(), self._waited_s / max(1, self._steps), slowest_step_s])
        self._waited_s, self._steps = 0.0, 0
        every = torch.zeros(self.world.size, 3)
        every[self.world.rank] = mine
        every = self.world.sum(every.to(self.world.device)).cpu()
        work, waits = every[:, 0], every[:, 1]
        median, usual_wait = float(work.median()), float(waits.median())
        slow: list[SlowRank] = []
        for rank in range(self.world.size):
            is_slow = float(work[rank]) > SLOW * median
            waits_long = float(waits[rank]) > SLOW * usual_wait + LEAST_WAIT_S
            self._slow[rank] = self._slow.get(rank, 0) + 1 if is_slow or waits_long else 0
            if self._slow[rank] == PATIENCE:
                how = (
                    f"the same work takes it {float(work[rank]) / median:.1f} times the median of all ranks"
                    if is_slow
                    else f"it waits {float(waits[rank]):.2f} s a step for data, the median of all ranks is "
                    f"{usual_wait:.2f} s"
                )
                node = self.nodes[rank]
                line = f"rank {rank} on {node} is slow: {how}"
                slow.append(SlowRank(rank, node, "computing" if is_slow else "waiting for data", line))
        return Look(float(work.max()) / median, float(every[:, 2].max()), slow)

    def work_s(self) -> float:
        """Seconds of a fixed piece of work, the best of three."""
        best = float("inf")
        for _ in range(3):
            self._finish()
            began = time.perf_counter()
            found = self._matrix @ self._matrix
            small = found[:8, :8]
            for _ in range(SMALL):
                small = small + 1
            self._finish()
            best = min(best, time.perf_counter() - began)
        return best

    def _finish(self) -> None:
        if self._matrix.is_cuda:
            torch.cuda.synchronize()
