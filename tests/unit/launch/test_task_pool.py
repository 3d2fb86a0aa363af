"""Several runs beside each other: what a stop leaves, between them and while one begins."""

import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from janus_dist.config.recipe import StageRecipe
from janus_dist.errors import PreemptedError
from janus_dist.launch import task_pool
from tests import prepared

Wait = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture
def train_all(monkeypatch, tmp_path) -> Callable[[Wait], list[str]]:
    """Trains runs a, b and c, one at a time, with another `ray.wait`; the names of those that were started."""
    started: list[str] = []

    class Driver:
        @staticmethod
        def remote(settings: dict[str, Any], lines: Any, then: Any) -> str:
            started.append(settings["run"]["name"])
            return settings["run"]["name"]

    class Nothing:
        remote = staticmethod(lambda: None)

    monkeypatch.setattr(task_pool, "connect", lambda: None)
    monkeypatch.setattr(task_pool, "RunServices", Nothing)
    monkeypatch.setattr(task_pool, "Follower", lambda lines, show: nullcontext())
    monkeypatch.setattr(task_pool, "_driver", Driver)
    monkeypatch.setattr(task_pool, "_runs_at_once", lambda recipe: 1)
    monkeypatch.setattr(task_pool, "_get", lambda task: None)

    def train(wait: Wait) -> list[str]:
        monkeypatch.setattr(task_pool.ray, "wait", wait)
        with pytest.raises(PreemptedError, match="asked to stop before b, c began") as caught:
            task_pool.train_all(recipes(tmp_path), show=print)
        started.append(str(caught.value.exit_code))
        return started

    return train


def recipes(folder: Path) -> list[StageRecipe]:
    (folder / "a").mkdir()
    return [prepared.recipe(folder, folder, 1, run={"name": name}) for name in "abc"]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, "75"), (signal.SIGINT, "130")])
def test_asked_to_stop_between_trainings_no_other_run_begins(train_all, sent, code):
    """A run that is being evaluated hears of no stop: the next ones must not begin."""

    def wait(given: list[str], **_: Any) -> tuple[list[str], list[str]]:
        os.kill(os.getpid(), sent)
        return given, []

    assert train_all(wait) == ["a", code]


def test_a_run_that_forgot_what_it_was_asked_is_asked_again(train_all, tmp_path):
    """One that has only begun takes a request for that of a run before."""
    stop, calls = tmp_path / "a" / "STOP", []

    def wait(given: list[str], **_: Any) -> tuple[list[str], list[str]]:
        calls.append(stop.exists())
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        stop.unlink(missing_ok=True)
        return ([], given) if len(calls) < 3 else (given, [])

    assert train_all(wait) == ["a", "75"] and calls == [False, True, True]


def test_a_second_ctrl_c_waits_for_no_run(train_all, monkeypatch, tmp_path):
    def wait(given: list[str], **_: Any) -> tuple[list[str], list[str]]:
        os.kill(os.getpid(), signal.SIGINT)
        return [], given

    monkeypatch.setattr(task_pool.ray, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        task_pool.train_all(recipes(tmp_path), show=print)
