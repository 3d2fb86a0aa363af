"""A watch over a rank's progress: one that stands still says where, and ends.

A rank that hangs in a collective cannot raise anything, and all others wait for it; so a thread of the interpreter's
own, which needs no lock of it, writes the stacks of all threads and ends the process. Invariant: a limit is never
shorter than several of the slowest steps so far, nor than a store may be away; what a rank wrote stays when the next
one takes its place.
"""

import faulthandler
import os
import platform
import time
from pathlib import Path

from janus_dist.data.reader import PATIENCE_S, TIMEOUT_S

WARM_STEPS = 5
SLOWEST_TIMES = 10
LEAST_S = 60.0 + PATIENCE_S + 2 * TIMEOUT_S
"""All ranks wait for one whose store is away: it tries for four minutes, the last time for up to twice a time-out."""
LONGEST_SAVE_S = 3600.0
"""Where nothing is left to do but to wait for a save."""


class Watch:
    """Ends this process when `beat` is not called for too long."""

    def __init__(self, path: Path, timeout_s: float):
        """Stacks are added to the file at `path`. `timeout_s` is the limit at first, and wherever steps do not show how
        long things take; after some steps it is ten times the slowest of them."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._file = path, path.open("a")
        self._before = path.stat().st_size
        self._file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {platform.node()} process {os.getpid()}\n")
        self._file.flush()
        self._begun = path.stat().st_size
        self.timeout_s, self.steps, self.slowest_s = timeout_s, 0, 0.0
        self._arm(timeout_s)

    def beat(self, step_s: float) -> None:
        """A step was done, which took so long."""
        self.steps += 1
        if self.steps > 1:  # the first one also compiles and allocates
            self.slowest_s = max(self.slowest_s, step_s)
        warm = self.steps > WARM_STEPS
        self._arm(min(self.timeout_s, max(LEAST_S, SLOWEST_TIMES * self.slowest_s)) if warm else self.timeout_s)

    def agree(self, slowest_s: float) -> None:
        """The slowest step of any rank: whoever waits for it must bear as much as it does."""
        self.slowest_s = max(self.slowest_s, slowest_s)

    def pause(self, longest_s: float = 0.0) -> None:
        """Something else than a step comes: loading, saving, which may take so long."""
        self._arm(max(self.timeout_s, longest_s))

    def end(self) -> None:
        """No more watching; where there was nothing to write the file is as it was."""
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
