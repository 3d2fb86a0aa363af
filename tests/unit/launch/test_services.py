"""What the driver does beside a run, without a Ray: notices of nodes that are about to go."""

import signal
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from janus_dist.errors import DataError, InterruptError, PreemptedError
from janus_dist.launch import launcher, services
from janus_dist.train.stop import STOP
from tests import prepared


def drained(monkeypatch: pytest.MonkeyPatch, run_dir: Path, answers: list[Any], nodes: set[str]) -> bool:
    """Whether the run is asked to stop while Ray gives these answers, its ranks being on `nodes`."""
    asked = Mock(side_effect=[*answers, *[{}] * 1000])
    monkeypatch.setattr(services, "DRAIN_POLL_S", 0.001)
    monkeypatch.setattr(services, "ray_state", Mock(get_draining_nodes=asked))
    monkeypatch.setattr(services.ray, "get", lambda found: found)
    lines = Mock()
    lines.nodes_of_ranks.remote.return_value = nodes
    with services.StopOnDrain(lines, run_dir):
        end_s = time.monotonic() + 10
        while asked.call_count <= len(answers) and not (run_dir / STOP).exists() and time.monotonic() < end_s:
            time.sleep(0.001)
    return (run_dir / STOP).exists()


def test_a_drain_is_seen_after_ray_did_not_answer(monkeypatch, tmp_path):
    assert drained(monkeypatch, tmp_path, [RuntimeError("GCS"), ConnectionError(), {"a": 0}], {"a", "b"})


def test_a_drained_node_without_ranks_stops_nothing(monkeypatch, tmp_path):
    assert not drained(monkeypatch, tmp_path, [{"c": 0}, {"c": 0}], {"a", "b"})


def test_each_start_of_ranks_forgets_the_nodes_of_the_one_before(monkeypatch, tmp_path):
    lines = new_lines()
    lines.join("before")
    actor = Mock()
    actor.begin.remote = lines.begin
    monkeypatch.setattr(launcher.ray, "get", lambda found: found)
    trainer = Mock(side_effect=lambda *_, **given: Mock(fit=lambda: lines.join("now")))
    monkeypatch.setattr(launcher, "TorchTrainer", trainer)
    monkeypatch.setattr(launcher, "ranks_for", lambda *_: 2)
    monkeypatch.setattr(launcher, "wait_for_others", lambda *_: None)
    recipe = prepared.recipe(tmp_path, tmp_path)
    launcher._until_done(recipe, recipe, actor, print)
    assert lines.nodes_of_ranks() == {"now"}


def new_lines() -> Any:
    return services.RunServices.__ray_metadata__.modified_class()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("gpu", [True, False])
def test_samples_take_a_gpu_only_while_ranks_have_theirs(monkeypatch, gpu):
    """Before, it could be the one that the last rank needs."""
    taken, killed = [], []

    class Actor:
        @staticmethod
        def options(num_gpus: int) -> Mock:
            taken.append(num_gpus)
            return Mock(remote=lambda: Mock(follow=Mock(remote=lambda settings, lines: len(taken))))

    monkeypatch.setattr(services, "_Sampler", Actor)
    monkeypatch.setattr(services.ray, "kill", killed.append)
    monkeypatch.setattr(services.ray, "get_runtime_context", Mock)
    lines = new_lines()
    lines.join("node")
    assert not taken, "no one asked for samples"
    lines.begin()
    lines.sample({"cluster": {"gpu": gpu}})
    assert not taken and lines.sampled() == []
    lines.join("node")
    lines.join("other")
    assert taken == [int(gpu)] and lines.sampled() == [1] and not killed
    lines.begin()
    assert len(killed) == 1, "ranks that are placed anew need not wait for it"
    lines.join("node")
    assert taken == [int(gpu)] * 2 and lines.sampled() == [2]


def test_a_wish_to_stop_that_cannot_be_written_ends_nothing(monkeypatch, tmp_path, caplog):
    recipe = prepared.recipe(tmp_path, tmp_path / "gone")
    with services.StopOnSignal(lambda: [recipe]):
        signal.raise_signal(signal.SIGTERM)
    assert "could not be asked to stop" in caplog.text and "send SIGTERM again" in caplog.text


@pytest.fixture
def recipe(tmp_path):
    made = prepared.recipe(tmp_path, tmp_path)
    made.run.dir.mkdir()
    return made


def test_ctrl_c_asks_the_run_to_save_and_ends_with_130(recipe, capfd):
    stopped = PreemptedError("run was asked to stop and saved step 3 of 9", "the same command goes on from there")
    with pytest.raises(InterruptError) as caught, services.StopOnSignal(lambda: [recipe]):
        signal.raise_signal(signal.SIGINT)
        assert (recipe.run.dir / STOP).read_text() == "Ctrl-C\n"
        raise stopped
    assert (caught.value.exit_code, str(caught.value)) == (130, str(stopped))
    assert "Ctrl-C again ends it at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_at_the_last_step_begins_nothing_else(recipe):
    """A job of several stages would begin the next one."""
    with pytest.raises(InterruptError, match="the last step was done"), services.StopOnSignal(lambda: [recipe]):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("error", [DataError("no shard"), PreemptedError("asked to stop")])
def test_other_ends_stay_what_they_are(recipe, error):
    sent = signal.SIGTERM if isinstance(error, PreemptedError) else signal.SIGINT
    with pytest.raises(type(error)) as caught, services.StopOnSignal(lambda: [recipe]):
        signal.raise_signal(sent)
        raise error
    assert caught.value is error


@pytest.mark.parametrize("grace_s", [600.0, 0.05])
def test_a_second_ctrl_c_and_the_end_of_the_grace_end_at_once(monkeypatch, recipe, grace_s):
    monkeypatch.setattr(services, "GRACE_S", grace_s)
    with pytest.raises(KeyboardInterrupt), services.StopOnSignal(lambda: [recipe]):
        signal.raise_signal(signal.SIGINT)
        if grace_s == 600.0:
            signal.raise_signal(signal.SIGINT)
        threading.Event().wait(60)


def test_ray_train_leaves_ctrl_c_to_the_driver(monkeypatch, recipe):
    """Its own handler ends the ranks without a checkpoint; it is replaced by its name."""
    assert callable(launcher.TorchTrainer._register_sigint_handler)
    monkeypatch.setattr(launcher.TorchTrainer, "fit", lambda self: self._register_sigint_handler(None))
    before = signal.getsignal(signal.SIGINT)
    launcher._train_once(recipe, Mock(), 1, [])
    assert signal.getsignal(signal.SIGINT) is before
