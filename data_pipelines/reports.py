"""What running jobs say of themselves, for the console and for the judgement of a run that goes wrong.

Invariant: a report that is late or lost costs nothing: counts that decide are those of the markers.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

REPORT_EVERY_S = 2.0
"""Time between two reports of a job."""
READ_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Report:
    """How far a running job is."""

    share: float
    """Of its input, from 0 to 1."""
    records: int
    """That are kept, refused or dropped by now."""
    bad: Mapping[str, int]
    """Refused records by kind of reason."""
    reasons: Mapping[str, str]
    """The first reason of each kind."""
    seconds: Mapping[str, float]
    """By step."""


Send = Callable[[Report], object]


@dataclass
class Reporter:
    """Sends reports of one job, REPORT_EVERY_S apart."""

    send: Send | None
    sent_at: float = field(default_factory=time.monotonic)

    @property
    def is_due(self) -> bool:
        """Tell whether it is time for a report."""
        return self.send is not None and time.monotonic() - self.sent_at >= REPORT_EVERY_S

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
        """Start a board without a core of its own; it is empty again after its node died."""
        actor: Any = ray.remote(_Board)
        return cls(actor.options(num_cpus=0, max_restarts=-1).remote())

    def send_for(self, job: int) -> Send:
        """Return what sends reports of a job; they are not waited for."""
        return lambda report: self.actor.put.remote(job, report)

    def read(self) -> dict[int, Report] | None:
        """Return the latest report of each job; None when the board does not answer."""
        with suppress(RayError, GetTimeoutError):
            return ray.get(self.actor.read.remote(), timeout=READ_TIMEOUT_S)
        return None

    def stop(self) -> None:
        ray.kill(self.actor)
