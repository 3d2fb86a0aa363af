"""What the driver does beside a run, without a Ray: notices of nodes that are about to go."""

import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from janus_dist import beside, launch
from janus_dist.train.stop import STOP
from tests import prepared


def drained(monkeypatch: pytest.MonkeyPatch, run_dir: Path, answers: list[Any], nodes: set[str]) -> bool:
    """Whether the run is asked to stop while Ray gives these answers, its ranks being on `nodes`."""
    asked = Mock(side_effect=[*answers, *[{}] * 1000])
    monkeypatch.setattr(beside, "DRAIN_POLL_S", 0.001)
    monkeypatch.setattr(beside, "ray_state", Mock(get_draining_nodes=asked))
    monkeypatch.setattr(beside.ray, "get", lambda found: found)
    lines = Mock()
    lines.nodes_of_ranks.remote.return_value = nodes
    with beside.StopOnDrain(lines, run_dir):
        end_s = time.monotonic() + 10
        while asked.call_count <= len(answers) and not (run_dir / STOP).exists() and time.monotonic() < end_s:
            time.sleep(0.001)
    return (run_dir / STOP).exists()


def test_a_drain_is_seen_after_ray_did_not_answer(monkeypatch, tmp_path):
    assert drained(monkeypatch, tmp_path, [RuntimeError("GCS"), ConnectionError(), {"a": 0}], {"a", "b"})


def test_a_drained_node_without_ranks_stops_nothing(monkeypatch, tmp_path):
    assert not drained(monkeypatch, tmp_path, [{"c": 0}, {"c": 0}], {"a", "b"})


def test_each_start_of_ranks_forgets_the_nodes_of_the_one_before(monkeypatch, tmp_path):
    lines = beside.Lines.__ray_metadata__.modified_class()  # pyright: ignore[reportAttributeAccessIssue]
    lines.join("before")
    actor = Mock()
    actor.begin.remote = lines.begin
    monkeypatch.setattr(launch.ray, "get", lambda found: found)
    trainer = Mock(side_effect=lambda *_, **given: Mock(fit=lambda: lines.join("now")))
    monkeypatch.setattr(launch, "TorchTrainer", trainer)
    launch._train_once(prepared.recipe(tmp_path, tmp_path), actor, 2)
    assert lines.nodes_of_ranks() == {"now"}
