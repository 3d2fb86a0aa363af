"""The watchdog of a rank: ends a process that makes no progress, and says where it hangs.

A rank that hangs in a collective cannot raise anything, and all others wait for it; so a thread of the interpreter's
own, which needs no lock of it, writes the stacks of all threads and ends the process. Invariants: the limit is never
shorter than several of the slowest steps so far, nor than the time for which a store may be away; the stacks of one
process are kept when another takes its rank.
"""

import faulthandler
import os
import platform
import time
from pathlib import Path

from janus_dist.data.reader import PATIENCE_S, TIMEOUT_S
from janus_dist.train.step import TrainedStep

WARM_STEPS = 5
"""Steps after which the limit follows the slowest of them."""
SLOWEST_TIMES = 10
MIN_LIMIT_S = 60.0 + PATIENCE_S + 2 * TIMEOUT_S
"""All ranks wait for one whose store is away: it tries for four minutes, the last time for up to twice a time-out."""
MAX_SAVE_S = 3600.0
"""Seconds that a save may take when the run waits for nothing else."""


class Watchdog:
    """Ends this process when no step is done for too long."""

    def __init__(self, path: Path, timeout_s: float):
        """Add stacks to the file at `path`. The limit is `timeout_s` at first and in pauses; after some steps it is ten
        times the slowest of them."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._file = path, path.open("a")
        self._before = path.stat().st_size
        self._file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {platform.node()} process {os.getpid()}\n")
        self._file.flush()
        self._begun = path.stat().st_size
        self.timeout_s, self.steps, self.slowest_s = timeout_s, 0, 0.0
        self._arm(timeout_s)

    def after_step(self, trained: TrainedStep) -> None:
        """Start the limit anew."""
        self.beat(trained.step_s)

    def beat(self, step_s: float) -> None:
        """Start the limit anew, after a step of `step_s` seconds."""
        self.steps += 1
        if self.steps > 1:  # the first one also compiles and allocates
            self.slowest_s = max(self.slowest_s, step_s)
        warm = self.steps > WARM_STEPS
        self._arm(min(self.timeout_s, max(MIN_LIMIT_S, SLOWEST_TIMES * self.slowest_s)) if warm else self.timeout_s)

    def agree(self, slowest_s: float) -> None:
        """Take the slowest step of any rank into the limit, as the others wait for it."""
        self.slowest_s = max(self.slowest_s, slowest_s)

    def pause(self, longest_s: float = 0.0) -> None:
        """Start the limit anew for what is not a step: it may take `longest_s`, and `timeout_s` in any case."""
        self._arm(max(self.timeout_s, longest_s))

    def end(self) -> None:
        """Stop watching; leave the file as it was when nothing was written."""
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if self._path.stat().st_size > self._begun:
            return
        if self._before:
            os.truncate(self._path, self._before)
        else:
            self._path.unlink()

    def _arm(self, limit_s: float) -> None:
        faulthandler.dump_traceback_later(limit_s, exit=True, file=self._file)
