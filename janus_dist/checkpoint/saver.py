"""Saving in the background: a step waits for the copy to host memory, then a thread writes and commits it.

Invariants: one save runs at a time, so that memory is bounded by one copy of a rank's state; a failed save is reported
and never ends the run.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from janus_dist.checkpoint import commits, state
from janus_dist.checkpoint.state import HostBuffers, Snapshot
from janus_dist.engine.world import BackgroundGroup
from janus_dist.engine.zero import ZeroEngine
from janus_dist.errors import JanusError


@dataclass(frozen=True)
class SaveResult:
    """Outcome of a save."""

    path: str
    step: int
    seconds: float
    """Seconds from the end of the copy to the commit and the deletion of older checkpoints."""
    failure: str | None = None
    """Reason why the checkpoint could not be written; None when it was committed."""
    not_pruned: str | None = None
    """Reason why older checkpoints could not be deleted; None when they were."""
    subject: str | None = None
    """Action that failed and the kind of error: equal for saves that fail in the same way."""


class Saver:
    """Saves the checkpoints of one run; every rank has one and calls it at the same steps."""

    def __init__(self, engine: ZeroEngine, saved_in: str):
        self.engine, self.saved_in = engine, saved_in
        self._ranks = BackgroundGroup.of(engine.world)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._hosts = HostBuffers()
        self._running: Future[SaveResult] | None = None
        self.check: Callable[[], None] = lambda: None
        """Function that raises when another job owns the folder by now; rank 0 calls it before each write, commit and
        deletion."""

    def start(self, step: int, identity: dict[str, Any], keep: commits.RetentionPolicy) -> bool:
        """Copy the state after `step` steps and start to write it; return False while another save is being written."""
        if self.engine.world.any(self._running is not None and not self._running.done()):
            return False
        snapshot = state.snapshot(self.engine, self.saved_in, step, identity, self._hosts)
        self._running = self._thread.submit(self._write, snapshot, keep)
        return True

    def done(self) -> SaveResult | None:
        """Return the outcome of the save that ended since the last call, or None."""
        if self._running is None or not self._running.done():
            return None
        return self.wait()

    def wait(self) -> SaveResult | None:
        """Wait for the save that is being written and return its outcome; None without a save."""
        if self._running is None:
            return None
        running, self._running = self._running, None
        return running.result()

    def _write(self, snapshot: Snapshot, keep: commits.RetentionPolicy) -> SaveResult:
        """Write and commit a snapshot, then prune older checkpoints; return the outcome."""
        began, failure, not_pruned, subject = time.perf_counter(), None, None, None
        try:
            state.write(snapshot, self._ranks, self.check)
        except Exception as error:  # also RuntimeError, which gloo raises when another rank is gone
            failure, subject = _one_line(error), f"write: {_kind_of(error)}"
        if failure is None and self.engine.world.is_first:
            try:
                self.check()
                commits.prune(self.saved_in, keep)
            except Exception as error:
                not_pruned, subject = _one_line(error), f"delete: {_kind_of(error)}"
        return SaveResult(
            snapshot.path, snapshot.commit.step, time.perf_counter() - began, failure, not_pruned, subject
        )


def _one_line(error: Exception) -> str:
    """Return the message of an error in one line, with its type unless it is an OSError or a JanusError."""
    message = error.message if isinstance(error, JanusError) else str(error)
    is_clear = isinstance(error, OSError | JanusError)
    return " ".join((message if is_clear else f"{type(error).__name__}: {message}").split())


def _kind_of(error: BaseException) -> str:
    """Return the types and errno values of an error and its causes, without messages, which name a step."""
    kinds: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        errno = getattr(cause, "errno", None)
        kinds.append(type(cause).__name__ if errno is None else f"{type(cause).__name__} {errno}")
        cause = cause.__cause__
    return ", ".join(kinds)
