"""What a cluster has room for, by what Ray says of its nodes, and the wait for what others have."""

from typing import Any

import pytest

from janus_dist.launch import capacity
from tests import prepared


def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict:
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}}


def test_room_counts_whole_ranks_on_nodes_that_live(monkeypatch, tmp_path):
    def found(nodes: list[dict], **cluster: Any) -> int:
        monkeypatch.setattr(capacity.ray, "nodes", lambda: nodes)
        return capacity.room_in(capacity.of_nodes(), prepared.recipe(tmp_path, tmp_path, cluster=cluster))

    gpus = {"workers": 128, "gpu": True, "cpus_per_worker": 8}
    assert found([node(80, 8)] * 16 + [node(0)], **gpus) == 128
    assert found([node(80, 8), node(80, 8, alive=False)], **gpus) == 8
    assert found([node(63, 8), node(64, 7.5)], **gpus) == 7 + 7
    assert found([node(5), node(5)], workers=4, cpus_per_worker=3) == 2  # not (5 + 5) // 3


@pytest.mark.parametrize(
    ("free", "said"),
    [
        ([0.0, 1.0, 1.0, 2.0], ["waiting until others on the cluster leave 2 ranks 2 CPUs: 0 are free"]),
        ([2.0], []),
    ],
)
def test_waiting_for_others_is_said_once(monkeypatch, tmp_path, free, said):
    left, found, looked = iter(free), [], []
    monkeypatch.setattr(capacity.ray, "available_resources", lambda: {"CPU": next(left)})
    monkeypatch.setattr(capacity, "RELEASE_TIMEOUT_S", -1.0)
    monkeypatch.setattr(capacity, "POLL_S", 0.0)
    capacity.wait_for_others(prepared.recipe(tmp_path, tmp_path), 2, found.append, lambda: looked.append(1))
    assert found == said and len(looked) == len(free) - 1 and next(left, None) is None
