"""What happened to a run: kept line by line, shown once."""

import json

import pytest

from janus_dist.monitor import events
from janus_dist.report.run import write_report
from tests.pages import Page
from tests.unit.test_report import write_run


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


@pytest.mark.parametrize(("one", "other", "same"), [
    ("rank 3 on node-1 is slow: 1.7 times the median", "rank 3 on node-1 is slow: 12.25 times the median", True),
    ("rank 3 on node-1 is slow", "rank 9 on node-1 is slow", False),
    ("rank 3 on ip-10-0-0-1 is slow", "rank 3 on ip-10-0-0-2 is slow", False),
    ("rank 3 on 10.0.0.1 is slow", "rank 3 on 10.0.0.2 is slow", False),
    ("a rank was lost: rank 1: its process died", "a rank was lost: rank 12: its process died", False),
    ("step 4 was skipped: loss 9.5, 7 sigma", "step 12 was skipped: loss 1e+06, 8.1 sigma", True),
    ("checkpoint of step 4 could not be written: d/step-00000004: no space",
     "checkpoint of step 8 could not be written: d/step-00000008: no space", True),
    ("checkpoint of step 4 could not be written: no space", "checkpoint of step 4 could not be written: denied", False),
])  # fmt: skip
def test_warnings_that_say_the_same(one, other, same):
    found = {events.Event(0.0, 1, "slow", text).what for text in (one, other)}
    assert len(found) == (1 if same else 2), found


def test_the_report_shows_resumes_and_each_warning_once(tmp_path):
    write_run(tmp_path / "mine")
    plain = write_report(tmp_path / "mine").read_text()
    for kind, step, text in (
        ("started", 0, "starting mine from random weights"),
        ("skipped", 4, "step 4 was skipped: a loss of 9"),
        ("skipped", 9, "step 9 was skipped: a loss of 8"),
        ("saved", 10, "saved somewhere"),
        ("lost", 11, "a rank was lost: rank 1: its process died"),
        ("lost", 12, "a rank was lost: rank 5: its process died"),
        ("resumed", 10, "resuming mine at step 10"),
    ):
        events.record(tmp_path / "mine", kind, step, text)
    html = write_report(tmp_path / "mine").read_text()
    page = Page(html)
    assert "resuming mine at step 10" in page.text and "skipped, 2 times" in page.text
    assert "rank 1: its process died" in page.text and "rank 5: its process died" in page.text
    assert "a loss of 9" in page.text and "a loss of 8" not in page.text and "saved somewhere" not in page.text
    assert html.count("#888888") > plain.count("#888888"), "the resume is marked on the curve"
    assert json.loads((tmp_path / "mine" / "config.json").read_text())
