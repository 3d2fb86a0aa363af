"""Requests to stop: SIGTERM, a file in the run's folder, or a node's notice that it will be shut down.

SIGTERM works for ranks that own their main thread, such as those that torchrun starts. Ray keeps the main thread of its
processes, where SIGTERM ends them at once; with Ray the driver handles the signal and creates the file.
Each rank checks on its own; the trainer sums the results together with each step's losses, so that all ranks stop at
the same step. Invariant: a check reads at most the metadata of a file and never waits.
"""

import signal
import threading
from pathlib import Path
from typing import Any

STOP = "STOP"
"""Name of the file that stops a run: `touch RUN/STOP` has the same effect as `ray job stop`."""


class StopRequest:
    """Detects requests to stop on this rank."""

    def __init__(self, run_dir: Path, notice_file: str | None, is_first: bool):
        """Watch for SIGTERM and for the node's `notice_file`; on rank 0 also for the file STOP in `run_dir`."""
        self._files = [Path(notice_file)] if notice_file else []
        if is_first:
            self._files.append(run_dir / STOP)
        self._signalled = threading.Event()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)

    @property
    def reason(self) -> str | None:
        """Return the origin of a request to stop, or None without a request."""
        if self._signalled.is_set():
            return "SIGTERM"
        return next(filter(None, map(asked_by, self._files)), None)

    def _on_signal(self, *_: Any) -> None:
        self._signalled.set()


def asked_by(path: Path) -> str | None:
    """Return the origin of the request made by a file: its path, after the content of a file STOP.

    Return None when the file does not exist or cannot be seen, for example on a shared disk that does not answer.
    """
    try:
        path.stat()
    except OSError:
        return None
    try:
        content = path.read_text(encoding="utf-8").strip()[:100] if path.name == STOP else ""
    except (OSError, UnicodeDecodeError):
        content = ""
    return f"{content}: {path}" if content else str(path)


def request_stop(run_dir: Path, by: str) -> None:
    """Ask the run in a folder to stop, at any time after its start; `by` is the origin of the request."""
    (run_dir / STOP).write_text(by + "\n", encoding="utf-8")


def forget_request(run_dir: Path) -> None:
    """Delete the request to stop a run, because it was fulfilled or belongs to an earlier start."""
    (run_dir / STOP).unlink(missing_ok=True)
