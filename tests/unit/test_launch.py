"""Which Ray a job joins: the one that answers, or a local one of its own."""

import os
import signal
import socket
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from ray._private import services

from janus_dist import launch
from janus_dist.errors import PreemptedError
from tests import prepared


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that Ray was started with, on a machine where none runs."""
    found: list[str] = []

    def init(address: str, **settings: Any) -> None:
        found.append(address)

    monkeypatch.setattr(launch.ray, "init", init)
    monkeypatch.setattr(launch.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(services, "find_gcs_addresses", frozenset)
    return found


def record(monkeypatch: pytest.MonkeyPatch, folder: Path, address: str) -> None:
    """The file that `ray start` writes."""
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(address)


def test_without_any_a_local_one_is_started(monkeypatch, joined, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    launch.connect()
    assert joined == ["local"]


def test_the_address_of_one_that_was_killed_is_not_waited_for(monkeypatch, joined, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        record(monkeypatch, tmp_path, f"127.0.0.1:{server.getsockname()[1]}")
    launch.connect()
    assert joined == ["local"]


def test_one_that_answers_is_joined(monkeypatch, joined, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        record(monkeypatch, tmp_path, f"127.0.0.1:{server.getsockname()[1]}")
        launch.connect()
    assert joined == ["auto"]


def test_one_that_was_named_is_joined_or_the_job_ends(monkeypatch, joined):
    def init(address: str, **settings: Any) -> None:
        joined.append(address)
        raise ConnectionError("refused")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr(launch.ray, "init", init)
    with pytest.raises(launch.ClusterError, match="Ray cannot be reached or started: refused"):
        launch.connect()
    assert joined == ["auto"]


def test_asked_to_stop_between_trainings_no_other_run_begins(monkeypatch, tmp_path):
    """A run that is being evaluated hears of no stop: the next ones must not begin."""
    started: list[str] = []

    class Driver:
        @staticmethod
        def remote(settings: dict[str, Any], lines: Any, then: Any) -> str:
            started.append(settings["run"]["name"])
            return settings["run"]["name"]

    def wait(tasks: list[str], **_: Any) -> tuple[list[str], list[str]]:
        os.kill(os.getpid(), signal.SIGTERM)
        return tasks, []

    class Nothing:
        remote = staticmethod(lambda: None)

    monkeypatch.setattr(launch, "connect", lambda: None)
    monkeypatch.setattr(launch, "Lines", Nothing)
    monkeypatch.setattr(launch, "Follower", lambda lines, show: nullcontext())
    monkeypatch.setattr(launch, "_driver", Driver)
    monkeypatch.setattr(launch, "_runs_at_once", lambda recipe: 1)
    monkeypatch.setattr(launch, "_get", lambda task: None)
    monkeypatch.setattr(launch.ray, "wait", wait)
    recipes = [prepared.recipe(tmp_path, tmp_path, 1, run={"name": name}) for name in "abc"]
    (tmp_path / "a").mkdir()
    with pytest.raises(PreemptedError, match="asked to stop before b, c began"):
        launch.train_all(recipes, show=print)
    assert started == ["a"]
