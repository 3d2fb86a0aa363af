"""Which Ray a job joins: the one that answers, or a local one of its own."""

import socket
from pathlib import Path
from typing import Any

import pytest
from ray._private import services

from janus_dist import launch
from janus_dist.engine import commits
from janus_dist.errors import ConfigError
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


def test_never_is_of_the_start_of_a_job(monkeypatch, tmp_path):
    """Ranks that are started again must be able to go on from what the job has saved."""
    recipe = prepared.recipe(tmp_path, tmp_path, run={"resume": "never"})
    assert launch._if_never(recipe).run.resume == "auto"
    monkeypatch.setattr(commits, "latest", lambda saved_in: f"{saved_in}/step-00000003")
    with pytest.raises(ConfigError, match=r"run\.resume=never, but run .*/run has a checkpoint: .*/step-00000003"):
        launch._if_never(recipe)
    other = prepared.recipe(tmp_path, tmp_path)
    assert launch._if_never(other) is other


def test_ranks_are_told_whole_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for given, expected in (
        ("runs/run/checkpoints/step-00000003/", f"{tmp_path}/runs/run/checkpoints/step-00000003"),
        ("s3://bucket/run/step-00000003", "s3://bucket/run/step-00000003"),
        ("auto", "auto"),
        ("never", "never"),
    ):
        recipe = prepared.recipe(tmp_path, tmp_path, run={"resume": given})
        assert recipe.with_absolute_paths().run.resume == expected


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
