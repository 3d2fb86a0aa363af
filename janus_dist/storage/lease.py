"""One writer per folder: a lease that is kept in the folder itself, on a disk or in a store.

    with hold(folder, "run runs/a", "training", print, "stop that one"): ...

Invariants: the holder is the file with the highest number, and a lease is taken by creating the next number, which one
of several writers can do; the newest file is never removed, so numbers only rise. Whoever waits compares what it reads
with what it read before by its own clock: the clocks of two machines are never compared, and time in which the folder
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
    Holder,
    Process,
    has_ended,
    helper_file,
    helpers,
    names,
    newest,
    prefix,
    read,
)

BEAT_BYTES = 64
"""Length of a holder's counter, always the same so that one write replaces another."""


@dataclass(frozen=True)
class Times:
    """Limits of leases, in seconds; each leaves room for the one before it."""

    renew_s: float = 5.0
    """Between two renewals of a holder."""
    poll_s: float = 1.0
    """Between two looks of a process that waits, or of a helper at the holder's process."""
    fresh_s: float = 8.0
    """A holder writes on the strength of a look at its lease that is at most this old."""
    helper_s: float = 25.0
    """A helper ends when the holder has not renewed its lease for so long."""
    silence_s: float = 35.0
    """A lease that was not renewed for so long is taken."""
    settle_s: float = 10.0
    """Who took a lease without proof that its holder is dead begins so much later: a holder that was only slow sees
    meanwhile that it was replaced."""
    patience_s: float = 60.0
    """A process that waits bears a folder that cannot be read for so long."""


TIMES = Times()


class Clock(Protocol):
    """A clock that tests can turn."""

    def monotonic(self) -> float: ...
    def sleep(self, seconds: float, /) -> None: ...


class LeaseLostError(ClusterError):
    """Another job took the lease of a folder from this one, which could not renew it."""


@dataclass(frozen=True)
class Claim:
    """A lease as other processes of the holder's job know it; can be pickled."""

    folder: str
    number: int
    owner: str
    process: Process
    conditional: bool
    """Whether the store honours conditional writes."""

    def check(self) -> None:
        """Raise LeaseLostError unless the lease is still this one; OSError when the folder cannot be read."""
        if replacement := self.replaced_by():
            raise lost(self.folder, replacement)

    def replaced_by(self) -> Holder | None:
        """Return who took the lease since, or None."""
        holder = newest(self.folder)
        return None if holder is None or holder.owner == self.owner else holder


class Lease:
    """A lease that this process holds; `hold` takes and releases one."""

    def __init__(self, folder: str, claim: Claim, times: Times, clock: Clock):
        self.folder, self.claim, self._times, self._clock = folder, claim, times, clock
        self._beats = 0
        self._seen_s = clock.monotonic()
        self._lost: LeaseLostError | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, name="lease", daemon=True)

    def start(self) -> None:
        """Renew the lease from now on."""
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseLostError when another job has taken the lease, ClusterError when that cannot be seen; called
        before whatever makes work count."""
        if self._lost is not None:
            raise self._lost
        if self._clock.monotonic() - self._seen_s > self._times.fresh_s:
            with fs.reached(self.folder, ClusterError):
                self.renew()

    def renew(self) -> None:
        """Look whether the lease is still this one and raise its counter; LeaseLostError when it is not."""
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
        """Let others have the folder at once; where helpers of this job may still run, when those have ended."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._lost is None:
            with suppress(*fs.FAILURES):  # others then wait until they see that it is not renewed
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
                continue  # `check` says so where something is to be written


@contextmanager
def hold(
    folder: str | Path,
    what: str,
    purpose: str,
    show: Callable[[str], None],
    hint: str,
    failure: type[JanusError] = DataError,
) -> Iterator[Lease]:
    """Hold the lease of a folder during a `with` block; wait for one that may be dead and say so by `show`.

    `what` names the folder in messages, `purpose` says what the holder does, `hint` what to do when another job holds
    it. Raises ConfigError when another job is alive and holds it, `failure` when the folder cannot be read or written.
    """
    with fs.reached(folder, failure):
        lease = take(str(folder), what, purpose, show, hint)
    lease.start()
    without_helpers = False  # an interruption, say, that helpers have not heard of yet
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
    times: Times = TIMES,
    clock: Clock = time,  # pyright: ignore[reportArgumentType]
) -> Lease:
    """Take the lease of a folder, when nobody holds it or its holder is dead; as `hold`, without renewing it."""
    conditional = fs.honours_conditions(f"{folder}/{NAME}")
    if not conditional:
        show(
            f"{folder}: this store ignores If-None-Match, so that two writers are told apart by a second look: taking "
            f"the folder takes {times.settle_s:.0f} s, each commit {fs.SECOND_LOOK_S:.0f} s"
        )
    seen, holder = _Seen(folder, times, clock), newest(folder)
    is_said = False
    while True:
        state = "free" if holder is None else seen.judge(holder)
        if state == "alive":
            raise ConfigError(f"{what} is held by another job, which is alive: {holder}", hint)
        if state != "unknown":
            claim = _create(folder, holder.number + 1 if holder else 1, purpose, conditional)
            if claim is not None and (state == "silent" or not conditional):
                clock.sleep(times.settle_s)
            if claim is not None and claim.replaced_by() is None:
                _remove_older(claim)
                return Lease(folder, claim, times, clock)
        elif not is_said:
            limit_s = times.silence_s + times.settle_s
            show(
                f"{what} is held by {holder}: waiting until it ends or shows that it is alive, {limit_s:.0f} s at most"
            )
            is_said = True
        holder = seen.next_holder()


class _Seen:
    """What a process that waits has seen of the holder."""

    def __init__(self, folder: str, times: Times, clock: Clock):
        self.folder, self.times, self.clock = folder, times, clock
        self.last: tuple[int, bytes] | None = None
        self.since_s = 0.0

    def next_holder(self) -> Holder | None:
        """Return the holder after a pause; time in which the folder cannot be read does not count as its silence."""
        until_s = self.clock.monotonic() + self.times.patience_s
        while True:
            self.clock.sleep(self.times.poll_s)
            try:
                return newest(self.folder)
            except fs.FAILURES:
                if self.clock.monotonic() > until_s:
                    raise
                self.last = None

    def judge(self, holder: Holder) -> str:
        """Return free, silent, alive or unknown."""
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


class Watch:
    """A helper's watch over the leases of its job: says when they are no longer its job's, or their holder is dead."""

    def __init__(self, claims: Sequence[Claim], times: Times = TIMES, clock: Clock = time):  # pyright: ignore[reportArgumentType]
        self.claims, self.times, self.clock = claims, times, clock
        self.beats: dict[str, tuple[bytes, float]] = {}
        self.looked_s: float | None = None

    def join(self) -> None:
        """Let those who wait for the lease know of this process; LeaseLostError when another job holds it by now."""
        content = json.dumps(asdict(Process.current()), sort_keys=True).encode()
        for claim in self.claims:
            with fs.reached(claim.folder, ClusterError):
                fs.write_whole(helper_file(claim.folder, claim.number), content, quick=True)
                claim.check()

    def check(self) -> None:
        """Raise LeaseLostError when another job holds a lease by now, OSError when that cannot be seen."""
        for claim in self.claims:
            claim.check()

    def start(self, end: Callable[[str], None]) -> None:
        """Call `end` in a thread, with the reason, when this process has to end."""
        if not self.claims:
            return
        threading.Thread(target=self._follow, args=(end,), name="lease watch", daemon=True).start()

    def look(self) -> str | None:
        """Return why this process has to end, or None."""
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
                self.beats.pop(claim.folder, None)  # nobody else sees it either: counted anew
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


def lost(folder: str, replacement: Holder) -> LeaseLostError:
    """Return the error of a job whose lease another took."""
    return LeaseLostError(
        f"{folder} was taken over by another job while this one could not renew its lease: {replacement}; "
        "this job writes nothing more",
        "the same command waits until the other job has ended, and goes on from what it left",
    )


def _create(folder: str, number: int, purpose: str, conditional: bool) -> Claim | None:
    """Create the file of a number; None when another was faster."""
    owner, process = uuid.uuid4().hex, Process.current()
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    content = json.dumps(asdict(Holder(number, owner, process, purpose, since)), sort_keys=True).encode()
    path = f"{prefix(folder, number)}.json"
    try:
        if conditional:
            fs.create(path, content, quick=True)
        elif fs.size(path) is None:
            fs.write_whole(path, content, quick=True)
    except OSError as error:
        if error.errno != errno.EBUSY:  # what S3 answers to all but one of those that write a name at once
            raise
    # asked again, since a request whose answer was lost is sent twice and then meets its own file
    created = read(path)
    return Claim(folder, number, owner, process, conditional) if created == content else None


def _remove_older(claim: Claim) -> None:
    """Remove what holders before this one left."""
    with suppress(*fs.FAILURES):
        for name in names(claim.folder):
            if re.fullmatch(r"\d{8}\..*", name) and int(name[:8]) < claim.number:
                with suppress(FileNotFoundError):
                    fs.remove(f"{claim.folder}/{NAME}/{name}", quick=True)


def _write_beat(claim: Claim, beats: int, has_ended: bool) -> None:
    """Raise a holder's counter; on a disk in place, which a full one allows: it must not look like a dead holder."""
    content = json.dumps({"beats": beats, "has_ended": has_ended}).encode().ljust(BEAT_BYTES)
    fs.write_over(f"{prefix(claim.folder, claim.number)}.beat", content)
