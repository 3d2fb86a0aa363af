"""Faults of four kinds, under a real Ray of three nodes and an S3 server; `make chaos` has all kinds, and more."""

import pytest

from tests.chaos.run import KINDS, run

FAULTS = ("rank_while_writing", "node", "node_back", "drained")

# Ray warns of its own settings and leaves sockets to the garbage collector
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_a_run_to_which_everything_happens_is_the_run_to_which_nothing_did(tmp_path, monkeypatch):
    assert set(FAULTS) <= set(KINDS)
    found = run(tmp_path, monkeypatch, FAULTS, seed=1, say=print)
    assert [fault.kind for fault in found.faults] == list(FAULTS)
    assert found.is_equal, "\n".join(found.verdict)
    assert {fault.ranks for fault in found.faults} == {1, 2}, "the world shrank and grew"
