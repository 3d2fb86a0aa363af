"""A watch over a rank's progress: one that stands still says where, and ends.

A rank that hangs in a collective cannot raise anything, and all others wait for it; so a thread of the interpreter's
own, which needs no lock of it, writes the stacks of all threads and ends the process. Invariant: a limit is never
shorter than several of the slowest steps so far.
"""

import faulthandler
from pathlib import Path

WARM_STEPS = 5
SLOWEST_TIMES = 10
LEAST_S = 60.0


class Watch:
    """Ends this process when `beat` is not called for too long."""

    def __init__(self, path: Path, timeout_s: float):
        """Stacks go to the file at `path`. `timeout_s` is the limit at first, and wherever steps do not show how long
        things take; after some steps it is ten times the slowest of them."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._file = path, path.open("w")
        self.timeout_s, self.steps, self.slowest_s = timeout_s, 0, 0.0
        self._arm(timeout_s)

    def beat(self, step_s: float) -> None:
        """A step was done, which took so long."""
        self.steps += 1
        if self.steps > 1:  # the first one also compiles and allocates
            self.slowest_s = max(self.slowest_s, step_s)
        warm = self.steps > WARM_STEPS
        self._arm(min(self.timeout_s, max(LEAST_S, SLOWEST_TIMES * self.slowest_s)) if warm else self.timeout_s)

    def pause(self) -> None:
        """Something else than a step comes: loading, saving."""
        self._arm(self.timeout_s)

    def end(self) -> None:
        """No more watching."""
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if not self._path.stat().st_size:
            self._path.unlink()

    def _arm(self, limit_s: float) -> None:
        faulthandler.dump_traceback_later(limit_s, exit=True, file=self._file)
