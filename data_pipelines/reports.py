"""Reports of running jobs, for the console and to stop a run with too many bad records early.

Invariant: a late or lost report does no harm: the final counts are those of the markers.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

REPORT_INTERVAL_S = 2.0
"""Seconds between two reports of a job."""
READ_TIMEOUT_S = 5.0
"""Seconds to wait for the board of reports."""


@dataclass(frozen=True)
class Report:
    """The progress of a running job."""

    share: float
    """Share of its input that is done, from 0 to 1."""
    records: int
    """Records that were kept, refused or dropped so far."""
    bad: Mapping[str, int]
    """Refused records by kind of reason."""
    reasons: Mapping[str, str]
    """The first reason of each kind."""
    seconds: Mapping[str, float]
    """Time by step."""


Send = Callable[[Report], object]


@dataclass
class Reporter:
    """A sender of one job's reports, REPORT_INTERVAL_S apart."""

    send: Send | None
    sent_at: float = field(default_factory=time.monotonic)

    @property
    def is_due(self) -> bool:
        """Return whether a report is due."""
        return self.send is not None and time.monotonic() - self.sent_at >= REPORT_INTERVAL_S

    def put(self, report: Report) -> None:
        """Send a report."""
        assert self.send is not None
        self.sent_at = time.monotonic()
        self.send(report)


class _Board:
    """The latest report of each job, as a Ray actor."""

    def __init__(self) -> None:
        self.reports: dict[int, Report] = {}

    def put(self, job: int, report: Report) -> None:
        self.reports[job] = report

    def read(self) -> dict[int, Report]:
        return self.reports


@dataclass(frozen=True)
class ReportBoard:
    """The handle of the board: jobs put reports, the driver reads them."""

    actor: Any

    @classmethod
    def start(cls) -> "ReportBoard":
        """Start a board that reserves no core; it is empty again when its node has died."""
        actor: Any = ray.remote(_Board)
        return cls(actor.options(num_cpus=0, max_restarts=-1).remote())

    def send_for(self, job: int) -> Send:
        """Return a function that sends reports of a job without waiting for their delivery."""
        return lambda report: self.actor.put.remote(job, report)

    def read(self) -> dict[int, Report] | None:
        """Return the latest report of each job; None when the board does not answer."""
        with suppress(RayError, GetTimeoutError):
            return ray.get(self.actor.read.remote(), timeout=READ_TIMEOUT_S)
        return None

    def stop(self) -> None:
        ray.kill(self.actor)
