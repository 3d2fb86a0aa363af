"""The report of a run that trains: written behind saves, and however the run ends."""

import logging
import threading
from unittest.mock import Mock

import pytest

from janus_dist.checkpoint.find import recipe_of
from janus_dist.config.load import Loaded
from janus_dist.errors import CheckpointError, ClusterError, ConfigError, PreemptedError
from janus_dist.launch import stage
from janus_dist.monitor import events
from janus_dist.report import live
from janus_dist.report.live import ReportWriter
from tests import prepared
from tests.unit.report.test_report import write_run


def test_a_run_that_is_stopped_has_a_report(tmp_path):
    write_run(tmp_path / "run", steps=3)
    lines = []
    with pytest.raises(PreemptedError, match="asked"), ReportWriter(tmp_path / "run", lines.append) as reported:
        reported.begins()
        reported.write_if_saved()
        assert not (tmp_path / "run" / "report.html").exists(), "nothing was saved"
        raise PreemptedError("asked to stop")
    assert lines == [f"report: {tmp_path / 'run' / 'report.html'}"]
    assert events.read(tmp_path / "run") == [], "it says itself that it was asked to"
    assert "3 of 40" in (tmp_path / "run" / "report.html").read_text()


def test_what_ended_a_run_is_in_its_report(tmp_path):
    write_run(tmp_path / "run", steps=3)
    with pytest.raises(ClusterError), ReportWriter(tmp_path / "run", lambda line: None) as reported:
        reported.begins()
        raise ClusterError("the cluster has no room", "wait for it")
    (event,) = events.read(tmp_path / "run")
    assert (event.kind, event.step, event.text) == ("failed", 3, "the cluster has no room")
    assert "the cluster has no room" in (tmp_path / "run" / "report.html").read_text()


def test_what_was_refused_did_not_happen_to_the_run(tmp_path):
    """It may be one that another job trains."""
    write_run(tmp_path / "run", steps=3)
    for error in (ConfigError("run is being trained by another job"), ClusterError("Ray cannot be reached")):
        with pytest.raises(type(error)), ReportWriter(tmp_path / "run", pytest.fail):
            raise error
    assert events.read(tmp_path / "run") == [] and not (tmp_path / "run" / "report.html").exists()


def test_who_is_refused_leaves_the_run_its_settings(tmp_path, monkeypatch):
    """What samples, exports or follows a run reads them there."""
    loaded = Loaded(prepared.recipe(tmp_path, tmp_path), {}, (), ())
    monkeypatch.setattr(stage, "prepare_start", lambda loaded: None)
    monkeypatch.setattr(stage, "train", Mock(side_effect=CheckpointError("it holds a model of another size")))
    with pytest.raises(CheckpointError):
        stage.train_with_start(loaded)
    assert not (tmp_path / "run").exists()

    def fails(recipe, show, begins):
        begins(recipe)
        raise CheckpointError("it is damaged")

    monkeypatch.setattr(stage, "train", fails)
    with pytest.raises(CheckpointError):
        stage.train_with_start(loaded)
    assert recipe_of(tmp_path / "run") == loaded.recipe
    assert [event.kind for event in events.read(tmp_path / "run")] == ["failed"]


def test_it_is_written_behind_a_save_and_at_most_once_a_minute(tmp_path, monkeypatch):
    write_run(tmp_path / "run", steps=3)
    events.record(tmp_path / "run", "saved", 2, "saved by the job before")
    written = []
    monkeypatch.setattr(live, "write_report", written.append)
    monkeypatch.setattr(live, "POLL_S", 3600.0)  # the thread stays out of it
    with ReportWriter(tmp_path / "run", lambda line: None) as reported:
        reported.begins()
        reported.write_if_saved()
        events.record(tmp_path / "run", "note", 3, "saved by its text, which decides nothing")
        reported.write_if_saved()
        assert not written
        for step in (3, 4):
            events.record(tmp_path / "run", "saved", step, "a sentence that begins in another way")
            reported.write_if_saved()
        assert len(written) == 1
        reported.due -= live.EVERY_S
        reported.write_if_saved()
        reported.due -= live.EVERY_S
        reported.write_if_saved()
        assert len(written) == 2, "each save is behind one report"
    assert len(written) == 3


def test_saves_are_followed_while_the_run_trains(tmp_path, monkeypatch):
    write_run(tmp_path / "run", steps=3)
    writers, is_written = [], threading.Event()

    def write(run_dir):
        writers.append(threading.current_thread().name)
        is_written.set()

    monkeypatch.setattr(live, "write_report", write)
    monkeypatch.setattr(live, "POLL_S", 0.01)
    with ReportWriter(tmp_path / "run", lambda line: None) as reported:
        reported.begins()
        events.record(tmp_path / "run", "saved", 3, "saved")
        assert is_written.wait(60)
    assert writers == ["report", "MainThread"]


def test_a_report_that_cannot_be_written_hides_no_error(tmp_path, monkeypatch, caplog):
    write_run(tmp_path / "run", steps=3)
    monkeypatch.setattr(live, "write_report", lambda run_dir: 1 / 0)
    lines = []
    reported = ReportWriter(tmp_path / "run", lines.append)
    with caplog.at_level(logging.WARNING), pytest.raises(PreemptedError), reported:
        reported.begins()
        raise PreemptedError("asked to stop")
    assert "could not be written: ZeroDivisionError" in caplog.text and not lines


def test_a_run_that_fails_before_its_first_step_has_none(tmp_path, caplog):
    with pytest.raises(ValueError, match="early"), ReportWriter(tmp_path / "run", pytest.fail) as reported:
        reported.begins()
        raise ValueError("early")
    assert not caplog.text and not (tmp_path / "run").exists()
