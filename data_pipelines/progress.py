"""What a person sees of a pipeline while it runs: how far, how fast, how long still, and what the jobs wait for.

Invariant: the time still needed is reckoned from bytes of input, since how many records there are is not known before
they are read.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping

from data_pipelines.reports import Report
from janus_dist.data.manifest import Manifest
from janus_dist.monitor.console import count, duration

SAY_EVERY_S = 30.0

log = logging.getLogger("janus_dist")


class Progress:
    """Jobs done, bytes of input behind them, and how far running jobs are."""

    def __init__(self, name: str, jobs: int, size: int):
        """`size`: bytes of all input."""
        self.name, self.jobs, self.size = name, jobs, max(1, size)
        self.jobs_done = self.bytes_found = self.bytes_done = self.records = 0
        self.seconds: dict[str, float] = {}
        self.running: list[tuple[int, int, Report]] = []
        """Number, bytes of input and the latest report of each running job."""
        self.started_at = self.printed_at = time.monotonic()

    @property
    def share(self) -> float:
        """Of the input that is done, above 0."""
        return max(1, self.bytes_found + self.bytes_worked) / self.size

    @property
    def bytes_worked(self) -> float:
        """Bytes of input behind what this run did, running jobs included."""
        return self.bytes_done + sum(size * report.share for _, size, report in self.running)

    @property
    def reports(self) -> list[Report]:
        """Return the latest reports of running jobs."""
        return [report for _, _, report in self.running]

    @property
    def is_due(self) -> bool:
        """Tell whether the last line is SAY_EVERY_S ago."""
        return time.monotonic() - self.printed_at >= SAY_EVERY_S

    def found(self, size: int) -> None:
        """A job that an earlier run did."""
        self.jobs_done += 1
        self.bytes_found += size

    def add(self, size: int, records: int, seconds: Mapping[str, float]) -> None:
        """A job that was done now; `seconds` by step."""
        self.jobs_done += 1
        self.bytes_done += size
        self.records += records
        for step, step_seconds in seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + step_seconds

    def say(self) -> None:
        """Print a line if the last one is long ago."""
        if self.is_due:
            self.printed_at = time.monotonic()
            log.info("%s", self.line(self.printed_at - self.started_at))

    def line(self, passed_s: float) -> str:
        """How far it is after `passed_s` seconds."""
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
        """Share of the jobs' time in each step."""
        by_step = Counter(self.seconds)
        for _, _, report in self.running:
            by_step.update(report.seconds)
        total = sum(by_step.values())
        return " ".join(f"{step} {seconds / total:.0%}" for step, seconds in by_step.items()) if total else ""

    def close(self, manifest: Manifest) -> None:
        """Print what came out."""
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
