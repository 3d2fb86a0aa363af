"""Saving beside the training: a step waits for the copy to host memory, a thread of its own writes and commits it.

Invariants: one save at a time, so that memory is bounded by one copy of a rank's state; what goes wrong in a save is
told and costs that save, never the run.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from janus_dist.checkpoint import commits, state
from janus_dist.checkpoint.state import Hosts, Snapshot
from janus_dist.engine.world import Background
from janus_dist.engine.zero import ZeroEngine
from janus_dist.errors import JanusError


@dataclass(frozen=True)
class Saved:
    """What became of a save."""

    path: str
    step: int
    seconds: float
    """From the copy to the commit."""
    failure: str | None = None
    """Why it is not there; None when it is."""
    not_pruned: str | None = None
    """Why older ones could not be deleted."""
    subject: str | None = None
    """What failed and by which kind of error: the same for checkpoints that fail alike."""


class Saver:
    """The saves of one run; every rank has one, and calls it at the same steps."""

    def __init__(self, engine: ZeroEngine, saved_in: str):
        self.engine, self.saved_in = engine, saved_in
        self._ranks = Background.of(engine.world)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._hosts = Hosts()
        self._running: Future[Saved] | None = None
        self.check: Callable[[], None] = lambda: None
        """Raises when the folder is another job's by now; called by the first rank before what it writes or deletes
        counts."""

    def start(self, step: int, identity: dict[str, Any], keep: commits.Keep) -> bool:
        """Copy the state after `step` steps and begin to write it; False while another save is being written."""
        if self.engine.world.any(self._running is not None and not self._running.done()):
            return False
        taken = state.snapshot(self.engine, self.saved_in, step, identity, self._hosts)
        self._running = self._thread.submit(self._write, taken, keep)
        return True

    def done(self) -> Saved | None:
        """The save that came to its end since this was asked last, if one did."""
        if self._running is None or not self._running.done():
            return None
        return self.wait()

    def wait(self) -> Saved | None:
        """Wait for the save that is being written, if there is one."""
        if self._running is None:
            return None
        running, self._running = self._running, None
        return running.result()

    def _write(self, taken: Snapshot, keep: commits.Keep) -> Saved:
        began, failure, not_pruned, subject = time.perf_counter(), None, None, None
        try:
            state.write(taken, self._ranks, self.check)
        except Exception as error:  # also RuntimeError, gloo's when another rank is gone
            failure, subject = _in_a_line(error), f"write: {_kind_of(error)}"
        if failure is None and self.engine.world.is_first:
            try:
                self.check()
                commits.prune(self.saved_in, keep)
            except Exception as error:
                not_pruned, subject = _in_a_line(error), f"delete: {_kind_of(error)}"
        return Saved(taken.path, taken.commit.step, time.perf_counter() - began, failure, not_pruned, subject)


def _in_a_line(error: Exception) -> str:
    """What an error says, with its kind where that says more."""
    said = error.message if isinstance(error, JanusError) else str(error)
    return " ".join((said if isinstance(error, OSError | JanusError) else f"{type(error).__name__}: {said}").split())


def _kind_of(error: BaseException) -> str:
    """Return the types and error numbers of an error and of what caused it, without texts, which name a step."""
    kinds: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        number = getattr(cause, "errno", None)
        kinds.append(type(cause).__name__ if number is None else f"{type(cause).__name__} {number}")
        cause = cause.__cause__
    return ", ".join(kinds)
