"""Ranks that tests start see the world, the node and their place in it as ranks that Ray Train starts do."""

import os
from dataclasses import astuple

import pytest

from janus_dist.config.train import ClusterConfig
from janus_dist.engine.world import join
from tests.ranks import launched_as, run_ranks

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")


def layout() -> tuple[list[int], tuple[int, ...], list[int], bool]:
    world = join(ClusterConfig(workers=1), 60)
    rank, size, _, local_rank, local_size = astuple(world)
    said = [int(os.environ[name]) for name in NAMES]
    return said, (rank, size, local_rank, local_size), list(world.node_ranks), "LOCAL_SIZE" in os.environ


def test_two_nodes_of_two_ranks(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    found = run_ranks(layout, 4, tmp_path, ranks_per_node=2)
    assert [said for said, *_ in found] == [[0, 4, 0, 2, 0], [1, 4, 1, 2, 0], [2, 4, 0, 2, 1], [3, 4, 1, 2, 1]]
    assert [world for _, world, *_ in found] == [(0, 4, 0, 2), (1, 4, 1, 2), (2, 4, 0, 2), (3, 4, 1, 2)]
    assert [node for *_, node, _ in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert not any(has_local_size for *_, has_local_size in found), "no launcher of ours sets it"


def test_one_node_unless_another_layout_is_named(tmp_path):
    assert [said for said, *_ in run_ranks(layout, 2, tmp_path)] == [[0, 2, 0, 2, 0], [1, 2, 1, 2, 0]]


@pytest.mark.parametrize(("rank", "expected"), [(0, "02"), (1, "12"), (2, "01")])
def test_the_last_node_may_have_fewer_ranks(rank, expected):
    found = launched_as(rank, 3, 2)
    assert found["LOCAL_RANK"] + found["LOCAL_WORLD_SIZE"] == expected
