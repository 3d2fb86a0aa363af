"""A shard job as a Ray task.

Invariant: this module does not import PyTorch, not even indirectly: it would cost each worker process 5 s of a core and
half a gigabyte, and only the encoders need it.
"""

from dataclasses import dataclass

import ray

from data_pipelines import work
from data_pipelines.encoder import EncoderPool, LocalEncoders
from data_pipelines.job import InputWork, run_job
from data_pipelines.reports import ReportBoard
from data_pipelines.tally import first_reasons
from data_pipelines.work import JobMarker, ShardJob
from janus_dist.inspection.inspect import kinds


@dataclass(frozen=True)
class JobSummary:
    """The counts of a finished job that the driver keeps."""

    records: int
    samples: int
    bad: int
    reasons: dict[str, str]
    """The first reason of each kind."""
    seconds: dict[str, float]
    """Time by step."""
    bad_kinds: dict[str, int]
    """Bad records by kind of reason."""
    columns: frozenset[str] | None = None
    """Columns with a value in some record, where the recipe has rules; None for markers of earlier versions."""

    @classmethod
    def of(cls, marker: JobMarker) -> "JobSummary":
        """Return the summary of a marker."""
        columns = None if marker.columns is None else frozenset(marker.columns)
        by_kind = kinds(marker.rejects)
        reasons, bad = first_reasons(marker.rejects), sum(by_kind.values())
        return cls(marker.records, marker.samples, bad, reasons, dict(marker.seconds), by_kind, columns)


@ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")
def do_job(
    job: ShardJob, input_work: InputWork, encoders: EncoderPool | None, with_examples: bool, board: ReportBoard
) -> JobSummary:
    """Do a job and return its summary, unless an attempt that was lost has already committed it."""
    marker = work.load_marker(input_work.folder, job)
    if marker is None:
        marker = run_job(
            job, input_work, LocalEncoders(encoders) if encoders else None, with_examples, board.send_for(job.number)
        )
    if marker is None:
        marker = work.load_marker(input_work.folder, job)
    assert marker is not None, "another attempt has committed the job, but its marker is absent"
    return JobSummary.of(marker)
