"""What is on the console while jobs run: how far those are that run, and when a run is given up."""

from dataclasses import replace

import pytest

from data_pipelines import reports, work
from data_pipelines.inputs import formats
from data_pipelines.job import run_job
from data_pipelines.judge import BadRecordJudge
from data_pipelines.progress import PipelineProgress
from data_pipelines.reports import Report, Reporter
from data_pipelines.task import JobSummary
from tests.alone import work_on
from tests.pipelines.conftest import documents

RUNNING = Report(0.25, 250, {}, {}, {"make": 3.0, "encode": 1.0})


def test_a_job_that_runs_counts_as_far_as_it_is():
    progress = PipelineProgress("generation", 8, 8_000)
    assert progress.line(30.0) == "generation: 0 of 8 jobs, 0.0%"
    progress.running = [(0, 1_000, RUNNING), (1, 1_000, replace(RUNNING, share=0.75, records=750))]
    line = progress.line(100.0)
    assert line.startswith("generation: 0 of 8 jobs, 12.5%  1k records, 10/s  eta 11m40s  make 75% encode 25%")


def test_jobs_that_are_done_and_that_run_are_added_up():
    progress = PipelineProgress("text", 4, 4_000)
    progress.found(1_000)
    progress.add(1_000, 500, {"make": 1.0})
    progress.running = [(2, 1_000, replace(RUNNING, share=0.5, records=100))]
    assert progress.line(60.0).startswith("text: 2 of 4 jobs, 62.5%  600 records, 10/s  eta 1m0s  make 80% encode 20%")


def test_reports_come_some_time_apart_and_never_without_a_receiver(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(reports.time, "monotonic", lambda: now[0])
    sent: list[Report] = []
    reporter = Reporter(sent.append, sent_at=0.0)
    assert not reporter.is_due and not Reporter(None, sent_at=-100.0).is_due
    now[0] = reports.REPORT_INTERVAL_S
    assert reporter.is_due
    reporter.put(RUNNING)
    assert sent == [RUNNING] and not reporter.is_due


@pytest.mark.parametrize("limit", [None, 20])
def test_a_job_reports_its_share(tmp_path, monkeypatch, limit):
    """Of a file of lines nothing but its bytes says how far a job is; of a limit, the records."""
    monkeypatch.setattr(reports, "REPORT_INTERVAL_S", 0.0)
    of = work_on("text", documents(tmp_path / "in", 40), tmp_path / "data", "pipeline.shard_samples=100")
    (job,) = work.cut(formats.units(of.source, 100), 100, {}, limit)
    sent: list[Report] = []
    assert run_job(job, of, None, False, sent.append) is not None
    assert [report.records for report in sent][-1] == (limit or 40)
    shares = [report.share for report in sent]
    assert shares == sorted(shares) and 0 <= shares[0] < 0.1 and shares[-1] == pytest.approx(1.0)


def summary(records: int, bad: int) -> JobSummary:
    return JobSummary(records, records - bad, bad, {"empty": "a: empty: no words"}, {}, {"empty": bad})


def judge(tmp_path, share: float) -> BadRecordJudge:
    return BadRecordJudge(work_on("text", tmp_path, tmp_path / "data", f"pipeline.max_bad_share={share}"))


def test_a_run_whose_jobs_report_too_many_bad_records_is_given_up_before_they_end(tmp_path):
    found = judge(tmp_path, 0.01)
    found.watch([replace(RUNNING, records=100, bad={"empty": 99})], 0.1)
    assert found.too_many, "99 of 1,000 expected are too many"
    found.watch([replace(RUNNING, records=5_000, bad={"empty": 4_990}, reasons={"empty": "k: empty: no words"})], 0.01)
    assert found.too_many and found.reasons == {"empty": "k: empty: no words"}
    found.watch([replace(RUNNING, records=5_000, bad={"empty": 40})], 0.01)
    assert not found.too_many


def test_reports_of_a_job_do_not_count_beside_its_marker(tmp_path):
    found = judge(tmp_path, 0.5)
    found.watch([replace(RUNNING, records=90, bad={"empty": 60})], 0.5)
    found.add(summary(100, 70), 0.5)
    found.watch([], 0.5)
    assert (found.records, found.bad) == (100, 70)
