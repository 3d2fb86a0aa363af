"""Being asked to stop: by SIGTERM, by a file in the run's folder, or by a node's notice of its end.

SIGTERM is for ranks that have their main thread to themselves, those that torchrun starts. Ray keeps the main thread of
its processes, where SIGTERM ends them at once; there the driver takes it and makes the file.
Each rank looks for itself; the trainer adds up what they found with each step's losses, so that all stop at the same
step. Invariant: looking costs a file's metadata at most and never waits.
"""

import signal
import threading
from pathlib import Path
from typing import Any

STOP = "STOP"
"""`touch RUN/STOP` stops a run as `ray job stop` does."""


class StopRequest:
    """Whether this rank was asked to stop."""

    def __init__(self, run_dir: Path, notice_file: str | None, is_first: bool):
        """The first rank looks at the run's folder, every rank at its node's `notice_file`."""
        self._files = [Path(notice_file)] if notice_file else []
        if is_first:
            self._files.append(run_dir / STOP)
        self._signalled = threading.Event()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)

    @property
    def reason(self) -> str | None:
        """Who asked; None when no one did."""
        if self._signalled.is_set():
            return "SIGTERM"
        return next(filter(None, map(asked_by, self._files)), None)

    def _on_signal(self, *_: Any) -> None:
        self._signalled.set()


def asked_by(path: Path) -> str | None:
    """Who asked by a file: what stands in it, if anything does, and its path; None where it is not there, or is not to
    be seen for a moment, as on a shared disk that is away."""
    try:
        path.stat()
    except OSError:
        return None
    try:
        said = path.read_text(encoding="utf-8").strip()[:100] if path.name == STOP else ""
    except (OSError, UnicodeDecodeError):
        said = ""
    return f"{said}: {path}" if said else str(path)


def request_stop(run_dir: Path, by: str) -> None:
    """Ask the run in a folder to stop, at any time after its start; `by` says who asks."""
    (run_dir / STOP).write_text(by + "\n", encoding="utf-8")


def forget_request(run_dir: Path) -> None:
    """What was asked is done, or was asked of a run before."""
    (run_dir / STOP).unlink(missing_ok=True)
