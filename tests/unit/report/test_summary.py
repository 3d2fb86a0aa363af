"""What a proof found so far: kept over interruptions, with the time of all attempts."""

import json

import pytest

from janus_dist.report import summary
from janus_dist.report.summary import Summary
from tests.reading import until


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time by the clock, to be set."""
    now = [100.0]
    monkeypatch.setattr(summary.time, "perf_counter", lambda: now[0])
    return now


def test_the_time_of_a_part_adds_up_over_interruptions(tmp_path, clock):
    path = tmp_path / "proof" / "summary.json"
    with pytest.raises(KeyboardInterrupt), Summary(path, []).working("scenes"):
        clock[0] += 30
        raise KeyboardInterrupt
    found = Summary(path, [])
    with found.working("scenes"):
        clock[0] += 12.5
    assert Summary(path, []).took_s("scenes") == found.took_s("scenes") == 42.5 and found.took_s("ablation") == 0
    made = json.loads(path.read_text())["parts"]["scenes"]
    assert made["machine"] and made["cores"] >= 1 and len(made["date"]) == 10


def test_what_was_found_stays_unless_settings_are_others(tmp_path, clock):
    path = tmp_path / "summary.json"
    before = Summary(path, ["train.steps=3"])
    before.found["ablation"] = ["rows"]
    with before.working("ablation"):
        clock[0] += 5
    assert Summary(path, ["train.steps=3"]).found["ablation"] == ["rows"]
    other = Summary(path, ["train.steps=4"])
    assert "ablation" not in other.found and other.took_s("ablation") == 5


def test_a_write_that_fails_leaves_the_file_whole(tmp_path):
    path = tmp_path / "summary.json"
    found = Summary(path, [])
    found.write()
    before = path.read_text()
    found.found["scenes"] = object()
    with pytest.raises(TypeError):
        found.write()
    assert path.read_text() == before


def test_outside_of_a_repository_the_commit_is_not_known(tmp_path, monkeypatch):
    assert summary.commit()
    monkeypatch.setattr(summary, "CODE", tmp_path)
    assert summary.commit() is None


def test_the_time_of_an_attempt_that_was_killed_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "SAVE_EVERY_S", 0.02)
    path = tmp_path / "summary.json"
    with Summary(path, []).working("scenes"):
        until(lambda: path.exists() and Summary(path, []).took_s("scenes") >= 0.1)  # as another process reads it
    assert Summary(path, []).found["parts"]["scenes"]["cores"] >= 1
