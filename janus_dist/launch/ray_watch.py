"""Threads that end a job which Ray's own code would hold, or end without a word.

Invariant: while a job joins Ray or has joined it, it ends with a message and the exit code of its kind when Ray does
not answer any more. In Ray's C++ code no signal handler of Python runs and no exception can be raised, so these threads
end the process themselves; a local Ray ends with it, as does whatever else waits for its pipes.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from janus_dist.errors import ClusterError, InterruptError, JanusError, PreemptedError, write_exit_record

JOIN_TIMEOUT_S = 120.0
"""Seconds that joining a Ray whose head answers may take."""
SIGNAL_GRACE_S = 5.0
"""Seconds within which Python must handle a signal while Ray is joined, or the process is ended without it."""
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Environment variable with Ray's own limit, in seconds."""
HEAD_LOST_TIMEOUT_S = 0.75 * float(os.environ.get(RECONNECT) or 60)
"""Seconds without the head after which a job ends by itself; a little later Ray's own code would end it with 1."""
HEAD_POLL_S = 5.0
STOPS = {signal.SIGINT: InterruptError, signal.SIGTERM: PreemptedError}
"""What a signal that asks a job to stop ends it with."""


@contextmanager
def ended_if_stuck(address: str) -> Iterator[None]:
    """End the process when the block takes longer than JOIN_TIMEOUT_S, or SIGNAL_GRACE_S after Ctrl-C or SIGTERM.

    `ray.init` waits in C++ for the Ray processes of this node, where no signal handler of Python runs and no exception
    can be raised, so a thread watches: it gets signals through a pipe, and the end of the block as the pipe's end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch_join, args=(reading, address), name="ray join", daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        watch.join()
        os.close(reading)


def _watch_join(reading: int, address: str) -> None:
    """Return when the pipe ends; end the process when it does not in time."""
    error: JanusError = ClusterError(
        f"the Ray at {address} answers, but this node's part of it did not within {JOIN_TIMEOUT_S:.0f} s",
        "restart Ray on this node; --local, or RAY_ADDRESS=local, starts a Ray of the job's own",
    )
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    while select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
        number = next(iter(os.read(reading, 1)), None)
        if number is None:
            return
        if number in STOPS:
            stop = STOPS[signal.Signals(number)]
            error = stop("the job was asked to stop while it joined Ray", "the same command starts it again")
            deadline = min(deadline, time.monotonic() + SIGNAL_GRACE_S)
    _end_with(error)


def watch_head(address: str, is_joined: Callable[[], bool]) -> None:
    """Return when this Ray has been left, for another one too; end the process when its head takes no connection for
    HEAD_LOST_TIMEOUT_S.

    No exception would reach the main thread: Ray's C++ code ends the process with exit code 1.
    """
    host, _, port = address.rpartition(":")
    last_seen_s = time.monotonic()
    while True:
        with suppress(OSError):
            socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_POLL_S).close()
            last_seen_s = time.monotonic()
        try:
            if not is_joined():
                return
        except Exception:  # Ray is being left at this moment
            return
        if time.monotonic() - last_seen_s > HEAD_LOST_TIMEOUT_S:
            _end_with(
                ClusterError(
                    f"the head of the Ray cluster at {address} has not answered for {HEAD_LOST_TIMEOUT_S:.0f} s",
                    "start the cluster again, then the same command resumes from what was saved",
                )
            )
        time.sleep(HEAD_POLL_S)


def _end_with(error: JanusError) -> NoReturn:
    """Print an error and end the process with its exit code, whatever other threads do."""
    sys.stderr.write(f"{error}\n")
    sys.stderr.flush()
    write_exit_record(error.exit_code)
    os._exit(error.exit_code)
