"""The watchdog of a rank: ends a process that makes no progress, and records where it hangs.

A rank that hangs in a collective cannot raise an exception, and all others wait for it; so faulthandler's C thread,
which does not need the GIL, writes the stacks of all threads and ends the process. Invariants: the limit is never
shorter than several of the slowest steps so far, nor than the time for which a store may be unavailable; the stacks of
a process are kept when another process takes over its rank.
"""

import faulthandler
import os
import platform
import time
from pathlib import Path

from janus_dist.data.reader import PATIENCE_S, TIMEOUT_S
from janus_dist.train.step import TrainedStep

WARM_STEPS = 5
"""Number of steps after which the limit is derived from the slowest step."""
SLOWEST_TIMES = 10
"""Limit as a multiple of the slowest step."""
MIN_LIMIT_S = 60.0 + PATIENCE_S + 2 * TIMEOUT_S
"""Minimum limit in seconds. All ranks wait for a rank whose store is unavailable: it retries for four minutes, and its
last attempt may take twice a time-out."""
MAX_SAVE_S = 3600.0
"""Seconds that a save may take while the run waits for it."""


class Watchdog:
    """Ends this process when no step is completed within the limit."""

    def __init__(self, path: Path, timeout_s: float):
        """Append stacks to the file at `path`.

        The limit is `timeout_s` seconds at first and in pauses, and ten times the slowest step after WARM_STEPS steps.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._file = path, path.open("a")
        self._old_size = path.stat().st_size
        self._file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {platform.node()} process {os.getpid()}\n")
        self._file.flush()
        self._size_with_header = path.stat().st_size
        self.timeout_s, self.steps, self.slowest_s = timeout_s, 0, 0.0
        self._arm(timeout_s)

    def after_step(self, trained: TrainedStep) -> None:
        """Restart the countdown."""
        self.beat(trained.step_s)

    def beat(self, step_s: float) -> None:
        """Restart the countdown after a step of `step_s` seconds."""
        self.steps += 1
        if self.steps > 1:  # the first step also compiles and allocates
            self.slowest_s = max(self.slowest_s, step_s)
        is_warm = self.steps > WARM_STEPS
        self._arm(min(self.timeout_s, max(MIN_LIMIT_S, SLOWEST_TIMES * self.slowest_s)) if is_warm else self.timeout_s)

    def agree(self, slowest_s: float) -> None:
        """Raise the limit for the slowest step of any rank, because the others wait for it."""
        self.slowest_s = max(self.slowest_s, slowest_s)

    def pause(self, longest_s: float = 0.0) -> None:
        """Restart the countdown for work outside of steps; the limit is the larger of `longest_s` and `timeout_s`."""
        self._arm(max(self.timeout_s, longest_s))

    def end(self) -> None:
        """Stop watching; restore the file when no stacks were written."""
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if self._path.stat().st_size > self._size_with_header:
            return
        if self._old_size:
            os.truncate(self._path, self._old_size)
        else:
            self._path.unlink()

    def _arm(self, limit_s: float) -> None:
        """Dump all stacks and end the process in `limit_s` seconds, unless called again before."""
        faulthandler.dump_traceback_later(limit_s, exit=True, file=self._file)
