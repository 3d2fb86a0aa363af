"""The files of leases: the holder of a folder, its process, and whether the process is known to have ended.

    FOLDER/lease/00000003.json           the third holder: owner, host, process, purpose; created once, never changed
    FOLDER/lease/00000003.beat           a counter that the holder raises every few seconds, and whether it has ended
    FOLDER/lease/00000003.helper.json    a process of the holder's job that ends when the holder does

Invariant: any content of these files gives a holder: one that cannot be parsed counts as alive until it is silent for
too long.
"""

import errno
import getpass
import json
import os
import platform
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from janus_dist.storage import fs

NAME = "lease"
"""Name of the folder of a lease's files, inside the folder that the lease protects."""
NUMBER = re.compile(r"(\d{8})\.json")
LOOKS = 10
"""Attempts to read the newest holder while other jobs take the lease."""


@dataclass(frozen=True)
class ProcessIdentity:
    """Identity of a process for other processes."""

    user: str
    host: str
    machine: str | None
    """Boot and process namespace, in which process numbers are comparable; None when unknown."""
    pid: int
    started: str | None
    """Start time in ticks since boot, since process numbers are reused; None when unknown."""

    @classmethod
    def current(cls) -> "ProcessIdentity":
        """Return the identity of this process."""
        try:
            user = getpass.getuser()
        except (OSError, KeyError):  # a user without a name, as in many containers
            user = f"user {os.getuid()}"
        pid = os.getpid()
        return cls(user, platform.node(), _machine(), pid, _state_and_start(pid)[1])

    @property
    def is_gone(self) -> bool:
        """Return whether the process is known to have ended; False when its state is unknown."""
        if self.machine is None or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        state, started = _state_and_start(self.pid)
        return state in ("Z", "X") or (None not in (started, self.started) and started != self.started)


@dataclass(frozen=True)
class LeaseHolder:
    """The current or a former holder of a lease."""

    number: int
    owner: str
    """Identifier of one acquisition of a lease."""
    process: ProcessIdentity
    purpose: str
    since: str
    """Time of the acquisition by the clock of the holder, for messages."""

    def __str__(self) -> str:
        process = self.process
        return f"{process.user} on {process.host} ({self.purpose}, process {process.pid}, since {self.since})"


UNKNOWN = ProcessIdentity("unknown", "unknown", None, 0, None)
"""Process of a file that cannot be parsed."""


def newest(folder: str) -> LeaseHolder | None:
    """Return the newest holder of a folder's lease, alive or not; None when the folder never had one.

    Raises one of `fs.FAILURES` when the folder cannot be read.
    """
    for _ in range(LOOKS):
        numbers = [int(match[1]) for name in names(folder) if (match := NUMBER.fullmatch(name))]
        if not numbers:
            return None
        with suppress(FileNotFoundError):  # replaced since it was listed
            return _parsed(max(numbers), fs.read(f"{prefix(folder, max(numbers))}.json", quick=True))
    raise OSError(errno.EAGAIN, f"{folder}/{NAME} changes faster than it can be read")


def has_ended(beat: bytes) -> bool:
    """Return whether the beat of a holder says that it released the folder."""
    try:
        return bool(json.loads(beat)["has_ended"])
    except (ValueError, KeyError, TypeError):
        return False


def helpers(folder: str, number: int) -> list[ProcessIdentity]:
    """Return the registered helpers of a holder."""
    content = read(helper_file(folder, number))
    try:
        return [_process(json.loads(content))] if content else []
    except ValueError:
        return [UNKNOWN]


def _parsed(number: int, content: bytes) -> LeaseHolder:
    """Return the holder that a file describes, or an unknown holder when the content cannot be parsed."""
    try:
        values = json.loads(content)
        return replace(LeaseHolder(**values | {"process": _process(values["process"])}), number=number)
    except (ValueError, KeyError, TypeError):
        return LeaseHolder(number, content.hex()[:32], UNKNOWN, "unknown", "unknown")


def _process(values: Any) -> ProcessIdentity:
    """Return the process with these fields, or UNKNOWN when fields are missing or unknown."""
    try:
        return ProcessIdentity(**values)
    except TypeError:
        return UNKNOWN


def names(folder: str) -> list[str]:
    """Return the names of the files of all holders."""
    return fs.names(f"{folder}/{NAME}", quick=True)


def prefix(folder: str, number: int) -> str:
    """Return the beginning of the paths of a holder's files."""
    return f"{folder}/{NAME}/{number:08d}"


def helper_file(folder: str, number: int) -> str:
    """Return the path of the file in which a helper of a holder describes itself."""
    return f"{prefix(folder, number)}.helper.json"


def read(path: str) -> bytes:
    """Return the bytes of a file, empty when it does not exist."""
    try:
        return fs.read(path, quick=True)
    except FileNotFoundError:
        return b""


def _machine() -> str | None:
    """Return the identity of this boot and this process namespace, or None when the system does not state it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _state_and_start(pid: int) -> tuple[str | None, str | None]:
    """Return a process's state and its start time in ticks since boot from Linux; None for both when unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None, None
