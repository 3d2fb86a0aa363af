"""Faults of four kinds, under a real Ray of three nodes and an S3 server; `make chaos` has all kinds, and more."""

from itertools import pairwise

import pytest

from tests.chaos.__main__ import count_kills, schedule
from tests.chaos.arena import KILLS
from tests.chaos.run import KINDS, run

FAULTS = ("rank_while_writing", "node", "node_back", "drained")


@pytest.mark.parametrize("seed", range(5))
def test_the_schedule_holds_every_kind_and_enough_kills(seed):
    found = schedule(faults=30, seed=seed, kills=30)
    assert set(KINDS) == set(found) and set(KILLS) < set(KINDS)
    assert count_kills(found) == sum(kind not in ("s3_away", "stopped", "drained") for kind in found) >= 30
    assert all(after == "node_back" for kind, after in pairwise(found[len(KINDS) :]) if kind == "node")
    assert schedule(faults=10, seed=seed, kills=0) == list(KINDS)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Ray warns of its own settings and leaves sockets to the garbage collector
def test_a_run_to_which_everything_happens_is_the_run_to_which_nothing_did(tmp_path, monkeypatch):
    assert set(FAULTS) <= set(KINDS)
    found = run(tmp_path, monkeypatch, FAULTS, seed=1, say=print)
    assert [fault.kind for fault in found.faults] == list(FAULTS)
    assert found.is_equal, "\n".join(found.verdict)
    assert {fault.ranks for fault in found.faults} == {1, 2}, "the world shrank and grew"
