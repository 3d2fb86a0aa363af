"""Several runs beside each other: what a stop between them leaves."""

import os
import signal
from contextlib import nullcontext
from typing import Any

import pytest

from janus_dist import tasks
from janus_dist.errors import PreemptedError
from tests import prepared


def test_asked_to_stop_between_trainings_no_other_run_begins(monkeypatch, tmp_path):
    """A run that is being evaluated hears of no stop: the next ones must not begin."""
    started: list[str] = []

    class Driver:
        @staticmethod
        def remote(settings: dict[str, Any], lines: Any, then: Any) -> str:
            started.append(settings["run"]["name"])
            return settings["run"]["name"]

    def wait(given: list[str], **_: Any) -> tuple[list[str], list[str]]:
        os.kill(os.getpid(), signal.SIGTERM)
        return given, []

    class Nothing:
        remote = staticmethod(lambda: None)

    monkeypatch.setattr(tasks, "connect", lambda: None)
    monkeypatch.setattr(tasks, "Lines", Nothing)
    monkeypatch.setattr(tasks, "Follower", lambda lines, show: nullcontext())
    monkeypatch.setattr(tasks, "_driver", Driver)
    monkeypatch.setattr(tasks, "_runs_at_once", lambda recipe: 1)
    monkeypatch.setattr(tasks, "_get", lambda task: None)
    monkeypatch.setattr(tasks.ray, "wait", wait)
    recipes = [prepared.recipe(tmp_path, tmp_path, 1, run={"name": name}) for name in "abc"]
    (tmp_path / "a").mkdir()
    with pytest.raises(PreemptedError, match="asked to stop before b, c began"):
        tasks.train_all(recipes, show=print)
    assert started == ["a"]
