"""Progress of a pipeline on the console: share done, speed, remaining time, and the time in each step.

Invariant: the remaining time is estimated from bytes of input, since the number of records is unknown before they are
read.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping

from data_pipelines.reports import Report
from janus_dist.data.manifest import Manifest
from janus_dist.monitor.console import count, duration

PRINT_INTERVAL_S = 30.0
"""Seconds between two lines on the console."""

log = logging.getLogger("janus_dist")


class PipelineProgress:
    """Jobs done, their bytes of input, and the progress of running jobs."""

    def __init__(self, name: str, jobs: int, size: int):
        """Start at no job done. `size`: bytes of all input."""
        self.name, self.jobs, self.size = name, jobs, max(1, size)
        self.jobs_done = self.bytes_found = self.bytes_done = self.records = 0
        self.seconds: dict[str, float] = {}
        self.running: list[tuple[int, int, Report]] = []
        """(number, bytes of input, latest report) of each running job."""
        self.started_at = self.printed_at = time.monotonic()

    @property
    def share(self) -> float:
        """Return the share of the input that is done, above 0."""
        return max(1, self.bytes_found + self.bytes_worked) / self.size

    @property
    def bytes_worked(self) -> float:
        """Return the bytes of input that this run has processed, running jobs included."""
        return self.bytes_done + sum(size * report.share for _, size, report in self.running)

    @property
    def reports(self) -> list[Report]:
        """Return the latest reports of running jobs."""
        return [report for _, _, report in self.running]

    @property
    def is_due(self) -> bool:
        """Return whether the last line was printed SAY_EVERY_S ago or longer."""
        return time.monotonic() - self.printed_at >= PRINT_INTERVAL_S

    def found(self, size: int) -> None:
        """Count a job that an earlier run did, of `size` bytes."""
        self.jobs_done += 1
        self.bytes_found += size

    def add(self, size: int, records: int, seconds: Mapping[str, float]) -> None:
        """Count a job that this run did, of `size` bytes; `seconds` by step."""
        self.jobs_done += 1
        self.bytes_done += size
        self.records += records
        for step, step_seconds in seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + step_seconds

    def say(self) -> None:
        """Print a line when it is due."""
        if self.is_due:
            self.printed_at = time.monotonic()
            log.info("%s", self.line(self.printed_at - self.started_at))

    def line(self, passed_s: float) -> str:
        """Return the line about the progress after `passed_s` seconds."""
        parts = [f"{self.name}: {self.jobs_done} of {self.jobs} jobs, {min(self.share, 1):.1%}"]
        worked = self.bytes_worked
        if worked:
            left = max(0, self.size - self.bytes_found - worked)
            records = self.records + sum(report.records for _, _, report in self.running)
            parts += [
                f"{count(records)} records, {count(records / passed_s)}/s",
                f"eta {duration(passed_s * left / worked)}",
                self.steps(),
            ]
        return "  ".join(part for part in parts if part)

    def steps(self) -> str:
        """Return the share of the jobs' time in each step, in words."""
        by_step = Counter(self.seconds)
        for _, _, report in self.running:
            by_step.update(report.seconds)
        total = sum(by_step.values())
        return " ".join(f"{step} {seconds / total:.0%}" for step, seconds in by_step.items()) if total else ""

    def close(self, manifest: Manifest) -> None:
        """Print the result."""
        passed_s = time.monotonic() - self.started_at
        rate = f"{self.records} records in {duration(passed_s)}, {count(self.records / max(passed_s, 1e-9))}/s"
        log.info(
            "%s: %d samples, %d tokens in %d shards, %d quarantined (%s)",
            self.name,
            manifest.samples,
            manifest.tokens,
            len(manifest.shards),
            manifest.quarantined,
            f"{rate}; {self.steps()}" if self.records else "nothing was left to do",
        )
