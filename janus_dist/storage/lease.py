"""Leases that allow one writer per folder, stored in the folder itself, on a disk or in a store.

    with hold(folder, "run runs/a", "training", print, "stop that one"): ...

Invariants: the holder is the file with the highest number, and a lease is taken by creating the next number, which only
one of several writers can do; the newest file is never removed, so numbers only rise. A waiting process measures
changes of what it reads by its own clock: clocks of two machines are never compared, and time in which the folder
cannot be read does not count. A holder that cannot renew its lease stops writing (`Lease.check`) before another begins.
"""

import errno
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from janus_dist.errors import ClusterError, ConfigError, DataError, JanusError
from janus_dist.storage import fs
from janus_dist.storage.lease_files import (
    NAME,
    LeaseHolder,
    ProcessIdentity,
    has_ended,
    helper_file,
    helpers,
    names,
    newest,
    prefix,
    read,
)

BEAT_BYTES = 64
"""Bytes of a holder's beat file, always the same so that one write replaces another."""


@dataclass(frozen=True)
class LeaseTimes:
    """Limits of leases, in seconds; each allows for the one before it."""

    renew_s: float = 5.0
    """Seconds between two renewals of a holder."""
    poll_s: float = 1.0
    """Seconds between two checks of a waiting process, or of a helper that checks the holder's process."""
    fresh_s: float = 8.0
    """Longest age in seconds of the last check of its lease with which a holder may write."""
    helper_s: float = 25.0
    """Seconds without a renewal after which a helper ends."""
    silence_s: float = 35.0
    """Seconds without a renewal after which another job takes a lease."""
    settle_s: float = 10.0
    """Seconds that a job waits after it took a lease without proof that the holder is dead: a holder that was only slow
    sees meanwhile that it was replaced."""
    patience_s: float = 60.0
    """Seconds for which a waiting process tolerates a folder that cannot be read."""


TIMES = LeaseTimes()


class Clock(Protocol):
    """A clock, which tests replace."""

    def monotonic(self) -> float:
        """Return the time in seconds since an arbitrary start."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Wait."""
        ...


class LeaseLostError(ClusterError):
    """Error of a job that could not renew its lease of a folder, which another job took."""


@dataclass(frozen=True)
class LeaseClaim:
    """Identity of a lease for other processes of the holder's job; can be pickled."""

    folder: str
    number: int
    owner: str
    process: ProcessIdentity
    conditional: bool
    """Whether the store honours conditional writes."""

    def check(self) -> None:
        """Raise LeaseLostError when another job has taken the lease, OSError when the folder cannot be read."""
        if replacement := self.replaced_by():
            raise lost(self.folder, replacement)

    def replaced_by(self) -> LeaseHolder | None:
        """Return the holder that has taken the lease since, or None; raise one of `fs.FAILURES` on a failure."""
        holder = newest(self.folder)
        return None if holder is None or holder.owner == self.owner else holder


class Lease:
    """A lease that this process holds. `hold` takes and releases it."""

    def __init__(self, folder: str, claim: LeaseClaim, times: LeaseTimes, clock: Clock):
        self.folder, self.claim, self._times, self._clock = folder, claim, times, clock
        self._beats = 0
        self._seen_s = clock.monotonic()
        self._lost: LeaseLostError | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, name="lease", daemon=True)

    def start(self) -> None:
        """Start to renew the lease in a thread."""
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseLostError when another job has taken the lease, ClusterError when the lease cannot be read.

        Called before every write that commits work.
        """
        if self._lost is not None:
            raise self._lost
        if self._clock.monotonic() - self._seen_s > self._times.fresh_s:
            with fs.reached(self.folder, ClusterError):
                self.renew()

    def renew(self) -> None:
        """Raise the lease's counter, or LeaseLostError when another job has taken it."""
        with self._lock:
            if self._lost is not None:
                raise self._lost
            now = self._clock.monotonic()
            if replacement := self.claim.replaced_by():
                self._lost = lost(self.folder, replacement)
                raise self._lost
            self._beats += 1
            _write_beat(self.claim, self._beats, has_ended=False)
            self._seen_s = now

    def release(self, without_helpers: bool = True) -> None:
        """Give the lease up: at once, or, when helpers of this job may still run, after those have ended."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._lost is None:
            with suppress(*fs.FAILURES):  # others then wait until the lease has not been renewed for long enough
                if without_helpers:
                    with suppress(FileNotFoundError):
                        fs.remove(helper_file(self.folder, self.claim.number), quick=True)
                _write_beat(self.claim, self._beats + 1, has_ended=True)

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(self._times.renew_s):
            try:
                self.renew()
            except LeaseLostError:
                return
            except fs.FAILURES:
                continue  # `check` raises it before the next write


@contextmanager
def hold(
    folder: str | Path,
    what: str,
    purpose: str,
    show: Callable[[str], None],
    hint: str,
    failure: type[JanusError] = DataError,
) -> Iterator[Lease]:
    """Hold the lease of a folder during a `with` block; wait for a holder that may be dead, and report it by `show`.

    `what` names the folder in messages, `purpose` describes the holder's work, `hint` says what to do when another job
    holds it. Raises ConfigError when another running job holds it, `failure` when the folder cannot be read or written.
    """
    with fs.reached(folder, failure):
        lease = take(str(folder), what, purpose, show, hint)
    lease.start()
    without_helpers = False  # for example an interruption that helpers do not know of yet
    try:
        yield lease
        without_helpers = True
    except JanusError as error:
        without_helpers = not isinstance(error, ClusterError)
        raise
    finally:
        lease.release(without_helpers)


def take(
    folder: str,
    what: str,
    purpose: str,
    show: Callable[[str], None],
    hint: str,
    times: LeaseTimes = TIMES,
    clock: Clock = time,  # pyright: ignore[reportArgumentType]
) -> Lease:
    """Return the lease of a folder that is free or whose holder is dead; the lease is not renewed yet.

    Arguments are those of `hold`. Raises ConfigError when another running job holds it, one of `fs.FAILURES` when the
    folder cannot be read or written.
    """
    conditional = fs.honours_conditions(f"{folder}/{NAME}")
    if not conditional:
        show(
            f"{folder}: this store ignores If-None-Match, so a second read distinguishes two writers: taking the "
            f"folder takes {times.settle_s:.0f} s, each commit {fs.CONFLICT_CHECK_DELAY_S:.0f} s"
        )
    observer, holder = _HolderObserver(folder, times, clock), newest(folder)
    has_shown = False
    while True:
        state = "free" if holder is None else observer.judge(holder)
        if state == "alive":
            raise ConfigError(f"{what} is held by another job, which is alive: {holder}", hint)
        if state != "unknown":
            claim = _create(folder, holder.number + 1 if holder else 1, purpose, conditional)
            if claim is not None and (state == "silent" or not conditional):
                clock.sleep(times.settle_s)
            if claim is not None and claim.replaced_by() is None:
                _remove_older(claim)
                return Lease(folder, claim, times, clock)
        elif not has_shown:
            limit_s = times.silence_s + times.settle_s
            show(
                f"{what} is held by {holder}: waiting until it ends or shows that it is alive, {limit_s:.0f} s at most"
            )
            has_shown = True
        holder = observer.next_holder()


class _HolderObserver:
    """The observations of a waiting process, from which it decides whether a holder is alive."""

    def __init__(self, folder: str, times: LeaseTimes, clock: Clock):
        self.folder, self.times, self.clock = folder, times, clock
        self.last: tuple[int, bytes] | None = None
        self.since_s = 0.0

    def next_holder(self) -> LeaseHolder | None:
        """Return the holder after a pause; time in which the folder cannot be read does not count as its silence.

        Raises one of `fs.FAILURES` when the folder cannot be read for longer than the patience.
        """
        until_s = self.clock.monotonic() + self.times.patience_s
        while True:
            self.clock.sleep(self.times.poll_s)
            try:
                return newest(self.folder)
            except fs.FAILURES:
                if self.clock.monotonic() > until_s:
                    raise
                self.last = None

    def judge(self, holder: LeaseHolder) -> str:
        """Return the state of a holder: free, silent, alive or unknown."""
        try:
            beat = read(f"{prefix(self.folder, holder.number)}.beat")
            is_over = has_ended(beat) or holder.process.is_gone
            if is_over and all(helper.is_gone for helper in helpers(self.folder, holder.number)):
                return "free"
        except fs.FAILURES:
            self.last = None
            return "unknown"
        now, current = self.clock.monotonic(), (holder.number, beat)
        if self.last is None or self.last[0] != holder.number or (is_over and self.last != current):
            self.last, self.since_s = current, now
            return "unknown"
        if self.last != current:
            return "alive"
        return "silent" if now - self.since_s >= self.times.silence_s else "unknown"


class LeaseWatch:
    """A helper's watch over the leases of its job: detects that another job took one, or that the holder is dead."""

    def __init__(self, claims: Sequence[LeaseClaim], times: LeaseTimes = TIMES, clock: Clock = time):  # pyright: ignore[reportArgumentType]
        self.claims, self.times, self.clock = claims, times, clock
        self.beats: dict[str, tuple[bytes, float]] = {}
        self.looked_s: float | None = None

    def join(self) -> None:
        """Register this process for jobs that wait for the lease.

        Raises LeaseLostError when another job holds a lease, ClusterError when a folder cannot be read or written.
        """
        content = json.dumps(asdict(ProcessIdentity.current()), sort_keys=True).encode()
        for claim in self.claims:
            with fs.reached(claim.folder, ClusterError):
                fs.write_whole(helper_file(claim.folder, claim.number), content, quick=True)
                claim.check()

    def check(self) -> None:
        """Raise LeaseLostError when another job has taken a lease, OSError when a folder cannot be read."""
        for claim in self.claims:
            claim.check()

    def start(self, end: Callable[[str], None]) -> None:
        """Start a thread that calls `end` with the reason when this process must end."""
        if not self.claims:
            return
        threading.Thread(target=self._follow, args=(end,), name="lease watch", daemon=True).start()

    def look(self) -> str | None:
        """Return the reason why this process must end, or None."""
        for claim in self.claims:
            if claim.process.is_gone:
                return f"the driver of this job, process {claim.process.pid}, is gone"
        now = self.clock.monotonic()
        if self.looked_s is not None and now - self.looked_s < self.times.renew_s:
            return None
        self.looked_s = now
        for claim in self.claims:
            try:
                if replacement := claim.replaced_by():
                    return lost(claim.folder, replacement).message
                beat = read(f"{prefix(claim.folder, claim.number)}.beat")
            except fs.FAILURES:
                self.beats.pop(claim.folder, None)  # other jobs cannot read it either: the silence starts again
                continue
            if has_ended(beat):
                return f"the driver of this job has released {claim.folder}"
            if self.beats.setdefault(claim.folder, (beat, now))[0] != beat:
                self.beats[claim.folder] = (beat, now)
            if now - self.beats[claim.folder][1] >= self.times.helper_s:
                silence = f"for {self.times.helper_s:.0f} s"
                return f"the driver of this job has not renewed the lease of {claim.folder} {silence}"
        return None

    def _follow(self, end: Callable[[str], None]) -> None:
        while (reason := self.look()) is None:
            self.clock.sleep(self.times.poll_s)
        end(reason)


def lost(folder: str, replacement: LeaseHolder) -> LeaseLostError:
    """Return the error of a job whose lease another job took."""
    return LeaseLostError(
        f"{folder} was taken over by another job while this one could not renew its lease: {replacement}; "
        "this job writes nothing more",
        "run the same command again: it waits until the other job has ended and resumes from what that job has saved",
    )


def _create(folder: str, number: int, purpose: str, conditional: bool) -> LeaseClaim | None:
    """Return the claim of the lease with a number, or None when another job took that number first."""
    owner, process = uuid.uuid4().hex, ProcessIdentity.current()
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    content = json.dumps(asdict(LeaseHolder(number, owner, process, purpose, since)), sort_keys=True).encode()
    path = f"{prefix(folder, number)}.json"
    try:
        if conditional:
            fs.create(path, content, quick=True)
        elif fs.size(path) is None:
            fs.write_whole(path, content, quick=True)
    except OSError as error:
        if error.errno != errno.EBUSY:  # S3's answer to all but one of the concurrent writers of a name
            raise
    # the content decides: a request whose answer was lost is sent twice and then finds its own file
    created = read(path)
    return LeaseClaim(folder, number, owner, process, conditional) if created == content else None


def _remove_older(claim: LeaseClaim) -> None:
    """Remove the files of earlier holders."""
    with suppress(*fs.FAILURES):
        for name in names(claim.folder):
            if re.fullmatch(r"\d{8}\..*", name) and int(name[:8]) < claim.number:
                with suppress(FileNotFoundError):
                    fs.remove(f"{claim.folder}/{NAME}/{name}", quick=True)


def _write_beat(claim: LeaseClaim, beats: int, has_ended: bool) -> None:
    """Write a holder's counter; in place, which a full disk allows: its holder must not look dead."""
    content = json.dumps({"beats": beats, "has_ended": has_ended}).encode().ljust(BEAT_BYTES)
    fs.write_over(f"{prefix(claim.folder, claim.number)}.beat", content)
