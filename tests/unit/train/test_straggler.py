"""Slow ranks are named, and only those that stay slow."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from janus_dist.engine.world import World
from janus_dist.train import straggler
from janus_dist.train.straggler import SLOW_COMPARISONS, StragglerDetector
from tests.ranks import run_ranks

WORLD = 5


class Ranks(StragglerDetector):
    """Rank 0 of five ranks, with given times of the other four."""

    def __init__(self, work: list[float], waits: list[float]):
        alone: Any = SimpleNamespace(rank=0, size=WORLD, device=torch.device("cpu"), sum=self.sum, gather=self.gather)
        self.work, self.waits = work, waits
        super().__init__(alone)

    def gather(self, value: str) -> list[str]:
        return [f"node-{rank // 2}" for rank in range(WORLD)]

    def sum(self, mine: torch.Tensor) -> torch.Tensor:
        assert not mine[1:].any(), "each rank fills its own row"
        assert torch.equal(mine[0], torch.tensor([self.work[0], self.waits[0], 0.5]))
        return torch.tensor([self.work, self.waits, [0.5, 0.5, 2.0, 0.5, 0.5]]).T

    def work_s(self) -> float:
        return self.work[0]


def test_a_slow_device_is_named_once_after_a_while():
    ranks = Ranks([0.01, 0.011, 0.01, 0.03, 0.01], [0.0] * WORLD)
    said = []
    for _ in range(2 * SLOW_COMPARISONS):
        look = ranks.look(0.5)
        assert look.slowest == pytest.approx(3.0) and look.slowest_step_s == 2.0
        said.append(look.lines)
    named = ["rank 3 on node-1 is slow: it takes 3.0 times the median of all ranks for the same work"]
    assert said == [[]] * (SLOW_COMPARISONS - 1) + [named] + [[]] * SLOW_COMPARISONS


def test_slow_ranks_are_told_apart_by_rank_node_and_work_not_by_figures():
    subjects = []
    for work in ([0.03, 0.01, 0.01, 0.01, 0.01], [0.09, 0.01, 0.01, 0.01, 0.01], [0.01, 0.03, 0.01, 0.01, 0.01]):
        ranks = Ranks(work, [0.0] * WORLD)
        subjects += [slow.subject for _ in range(SLOW_COMPARISONS) for slow in ranks.look(0.5).slow]
    assert subjects == ["rank 0 on node-0: computing"] * 2 + [subjects[2]] and subjects[2].startswith("rank 1 on ")


def test_a_rank_that_recovers_is_not_named():
    ranks = Ranks([0.01] * WORLD, [0.0] * WORLD)
    for slow in (True, True, False, True, True):
        ranks.work[4] = 0.1 if slow else 0.01
        assert ranks.look(0.5).lines == []


def test_a_rank_that_waits_for_its_data_is_named():
    ranks = Ranks([0.01] * WORLD, [0.5, 0.02, 0.02, 0.03, 0.02])
    said: list[str] = []
    for number in range(SLOW_COMPARISONS):
        assert said == [], number
        ranks.waited(0.4)
        ranks.waited(0.6)
        said = ranks.look(0.5).lines
    assert said == ["rank 0 on node-0 is slow: it waits 0.50 s per step for data, the median of all ranks is 0.02 s"]


def test_milliseconds_of_waiting_are_not_worth_a_word():
    ranks = Ranks([0.001] * WORLD, [0.04, 0.0, 0.0, 0.0, 0.0])
    for _ in range(2 * SLOW_COMPARISONS):
        ranks.waited(0.04)
        assert ranks.look(0.5).lines == []


def looks() -> list[straggler.RankComparison]:
    world = World(torch.distributed.get_rank(), torch.distributed.get_world_size(), torch.device("cpu"))
    ranks = StragglerDetector(world)
    real = ranks.work_s
    ranks.work_s = lambda: real() * (50 if world.rank == 2 else 1)
    return [ranks.look(float(world.rank)) for _ in range(SLOW_COMPARISONS)]


def test_real_ranks_agree_on_who_is_slow(tmp_path):
    found = run_ranks(looks, 3, tmp_path)
    assert found[0] == found[1] == found[2]
    look = found[0][-1]
    assert look.slowest > straggler.SLOW_FACTOR and look.slowest_step_s == 2.0
    (line,) = look.lines
    assert line.startswith("rank 2 on ")
