"""What happened to a run: kept line by line, shown once."""

import json

import pytest

from janus_dist.checkpoint import saver
from janus_dist.monitor import events
from janus_dist.report.run import write_report
from janus_dist.train.step import StepOutcome
from tests.pages import Page
from tests.unit.report.test_report import write_run


def test_what_is_recorded_is_read_back_and_a_cut_line_left_out(tmp_path):
    events.record(tmp_path, "started", 0, "starting run from random weights")
    events.record(tmp_path, "slow", 7, "rank 3 on node-1 is slow")
    with (tmp_path / events.FILE).open("a") as file:
        file.write('{"time": 1.0, "step')
    assert [(one.kind, one.step, one.text) for one in events.read(tmp_path)] == [
        ("started", 0, "starting run from random weights"),
        ("slow", 7, "rank 3 on node-1 is slow"),
    ]
    assert events.read(tmp_path / "none") == []


def test_a_disk_that_refuses_costs_the_line(tmp_path):
    events.record(tmp_path / "none", "saved", 3, "saved")


@pytest.mark.parametrize(("one", "other", "is_same"), [
    (("slow", "1.7 times the median", "rank 3"), ("slow", "12.25 times the median", "rank 3"), True),
    (("slow", "the same words", "rank 3"), ("slow", "the same words", "rank 9"), False),
    (("slow", "the same words", "rank 3"), ("lost", "the same words", "rank 3"), False),
    (("skipped", "step 4", ""), ("skipped", "step 12", ""), True),
    (("not saved", "no space"), ("not saved", "no space"), True),
    (("not saved", "no space on disk 1"), ("not saved", "no space on disk 2"), False),
])  # fmt: skip
def test_events_of_one_kind_and_subject_are_one_group(tmp_path, one, other, is_same):
    for kind, *texts in (one, other):
        events.record(tmp_path, kind, 1, *texts)
    assert len({event.group for event in events.read(tmp_path)}) == (1 if is_same else 2)


def test_events_of_older_versions_have_no_subject_and_are_read(tmp_path):
    (tmp_path / events.FILE).write_text('{"time": 1.0, "step": 4, "kind": "slow", "text": "rank 3 is slow"}\n')
    (event,) = events.read(tmp_path)
    assert event.subject is None and event.group == ("slow", "rank 3 is slow")


def outcome(loss, grad_norm, objection):
    return StepOutcome({}, loss, grad_norm, 1e-4, objection, False)


def test_skipped_steps_are_told_apart_by_why_not_by_figures():
    inf = float("inf")
    assert outcome(9.5, inf, "loss 9.5, 7 sigma").fault == outcome(8.5, inf, "in other words").fault == "loss spike"
    assert outcome(float("nan"), inf, "loss nan").fault == "loss that is not finite"
    assert outcome(2.0, float("nan"), None).fault == outcome(2.0, inf, None).fault == "gradient that is not finite"
    assert outcome(2.0, 1.0, None).fault is None


def test_saves_are_told_apart_by_the_error_not_by_the_step():
    def failure(step, number):
        error = OSError(f"rank 0: step {step}")
        error.__cause__ = OSError(number, "a text", f"step-{step}")
        return saver._kind_of(error)

    assert failure(4, 28) == failure(8, 28) == "OSError, OSError 28" != failure(4, 13)


def test_the_report_shows_resumes_and_each_warning_once(tmp_path):
    write_run(tmp_path / "mine")
    plain = write_report(tmp_path / "mine").read_text()
    happened: list[tuple[events.Kind, int, str, str | None]] = [
        ("started", 0, "starting mine from random weights", None),
        ("skipped", 4, "step 4 was skipped: a loss of 9", "loss spike"),
        ("skipped", 9, "step 9 was skipped: a loss of 8", "loss spike"),
        ("saved", 10, "saved somewhere", None),
        ("lost", 11, "a rank was lost: rank 1: its process died", None),
        ("lost", 12, "a rank was lost: rank 5: its process died", None),
        ("resumed", 10, "resuming mine at step 10", None),
    ]
    for kind, step, text, subject in happened:
        events.record(tmp_path / "mine", kind, step, text, subject)
    html = write_report(tmp_path / "mine").read_text()
    page = Page(html)
    assert "resuming mine at step 10" in page.text and "skipped, 2 times" in page.text
    assert "rank 1: its process died" in page.text and "rank 5: its process died" in page.text
    assert "a loss of 9" in page.text and "a loss of 8" not in page.text and "saved somewhere" not in page.text
    assert html.count("#888888") > plain.count("#888888"), "the resume is marked on the curve"
    assert json.loads((tmp_path / "mine" / "config.json").read_text())
