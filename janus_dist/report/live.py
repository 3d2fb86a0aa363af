"""Report of a run, written while it is trained and when it ends for any reason.

Invariant: an error in here is logged; it neither ends the run nor hides the error that did.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from janus_dist.errors import ConfigError, JanusError, PreemptedError
from janus_dist.monitor import events
from janus_dist.monitor.sinks import last_line
from janus_dist.report.run import write_report

EVERY_S = 60.0
"""Smallest number of seconds between two reports; each takes the driver a second or two."""
POLL_S = 1.0
"""Seconds between two checks for a new save."""

log = logging.getLogger("janus_dist")


class ReportWriter:
    """Write the report of a run while a `with` block trains it: after its saves, and once more at the end.

    A save is an event of kind `saved` in the run's folder. Nothing is written before `begins`; an error that ends the
    run after it becomes an event of the run.
    """

    def __init__(self, run_dir: Path, show: Callable[[str], None]):
        self.run_dir, self._show = run_dir, show
        self.saves = 0
        """Number of `saved` events up to the last report."""
        self.due = time.monotonic()
        self.thread = threading.Thread(target=self._follow, name="report", daemon=True)
        self.has_ended = threading.Event()
        self.has_begun = False

    def __enter__(self) -> "ReportWriter":
        return self

    def begins(self) -> None:
        """Start to follow the saves of the run; an error from now on counts as the end of the run."""
        self.has_begun = True
        self.saves = self._count_saves()
        self.thread.start()

    def write_if_saved(self) -> None:
        """Write the report when the run has saved since the last one, at most once in EVERY_S."""
        if time.monotonic() < self.due or (saves := self._count_saves()) == self.saves:
            return
        self.saves, self.due = saves, time.monotonic() + EVERY_S
        self._write()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not self.has_begun:
            return
        self.has_ended.set()
        self.thread.join()
        if isinstance(error, JanusError) and not isinstance(
            error, ConfigError | PreemptedError
        ):  # no training began, or it was recorded
            step = int(last_line(self.run_dir / "metrics.jsonl").get("step", 0))
            events.record(self.run_dir, "failed", step, error.message)
        if path := self._write():
            self._show(f"report: {path}")

    def _follow(self) -> None:
        while not self.has_ended.wait(POLL_S):
            self.write_if_saved()

    def _count_saves(self) -> int:
        try:
            return sum(event.kind == "saved" for event in events.read(self.run_dir))
        except OSError:  # the disk does not answer for a moment
            return self.saves

    def _write(self) -> Path | None:
        if not (self.run_dir / "metrics.jsonl").exists():
            return None  # the run failed before its first step
        try:
            return write_report(self.run_dir)
        except Exception as error:
            reason = error.message if isinstance(error, JanusError) else f"{type(error).__name__}: {error}"
            log.warning("the report of %s could not be written: %s", self.run_dir, reason)
            return None
