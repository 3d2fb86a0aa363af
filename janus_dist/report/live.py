"""The report of a run while it is trained, and when it ends, however that is.

Invariant: what fails here is logged; it neither ends a run nor hides what did.
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
"""Reports of a run that saves more often are not written as often: each takes the driver a second or two."""

log = logging.getLogger("janus_dist")


class Reported:
    """While a `with` block runs, the lines of a run pass through `show`; behind those of saves its report is written
    anew, beside the run, and once more at the end. What ends the run once it `begins` is an event of it."""

    def __init__(self, run_dir: Path, show: Callable[[str], None]):
        self.run_dir, self._show = run_dir, show
        self.thread: threading.Thread | None = None
        self.due = time.monotonic()
        self.has_begun = False

    def __enter__(self) -> "Reported":
        return self

    def begins(self) -> None:
        """The run is this job's: what ends it from now on is its end."""
        self.has_begun = True

    def show(self, line: str) -> None:
        """Show a line of the run; never waits for a report."""
        self._show(line)
        is_busy = self.thread is not None and self.thread.is_alive()
        if line.startswith("saved ") and not is_busy and time.monotonic() >= self.due:
            self.due = time.monotonic() + EVERY_S
            self.thread = threading.Thread(target=self._write, name="report", daemon=True)
            self.thread.start()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not self.has_begun:
            return
        if self.thread is not None:
            self.thread.join()
        if isinstance(error, JanusError) and not isinstance(error, ConfigError | PreemptedError):  # nothing began; said
            step = int(last_line(self.run_dir / "metrics.jsonl").get("step", 0))
            events.record(self.run_dir, "failed", step, error.message)
        if path := self._write():
            self._show(f"report: {path}")

    def _write(self) -> Path | None:
        if not (self.run_dir / "metrics.jsonl").exists():
            return None  # it failed before its first step
        try:
            return write_report(self.run_dir)
        except Exception as error:
            why = error.message if isinstance(error, JanusError) else f"{type(error).__name__}: {error}"
            log.warning("the report of %s could not be written: %s", self.run_dir, why)
            return None
