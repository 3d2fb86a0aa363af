"""The files of the node's cache: pages of remote objects in a folder that all processes of a node share.

    FOLDER/XX/NAME        a page: a header, then the bytes of the object
    FOLDER/XX/NAME.new    the unfinished page, and its lock (flock, which the kernel frees when the holder dies)
    FOLDER/usage          upper bound of the number of pages

Invariants: a page under its final name is complete (it is written under another name, then renamed, and its length and
checksum are compared when it is read); the bound is raised before a page is written and lowered after one is removed,
so a kill leaves it too high, never too low, and the next eviction counts anew. All functions raise OSError when the
disk fails.
"""

import fcntl
import hashlib
import os
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

BLOCK_BYTES = 4096
"""Bytes on the disk for the header of a page: one block of the file system."""
HEADER = struct.Struct("<4sII")
"""Header of a page: magic, bytes of the content, crc32 of the content."""
MAGIC = b"JDP1"
"""First bytes of a page."""
UNFINISHED = ".new"
"""Ending of the file that is both the lock of a page and the unfinished page."""
USAGE_WAIT_S = 5.0
"""Seconds to wait for the lock of the usage file."""
POLL_S = 0.002
"""Seconds between two attempts to lock the usage file."""


@dataclass
class PageClaim:
    """The right to make one page, held as the lock of its unfinished file."""

    name: str
    file: int
    """Descriptor of the open, locked file."""


@dataclass(frozen=True)
class PageFile:
    """A page or an unfinished page in the folder."""

    name: str
    path: str
    changed_ns: int
    """Time of the last change in nanoseconds."""

    @property
    def is_finished(self) -> bool:
        """Return whether the page has its final name."""
        return not self.name.endswith(UNFINISHED)


@lru_cache(maxsize=65_536)
def object_name(path: str) -> str:
    """Return the beginning of the names of an object's pages."""
    return hashlib.sha256(path.encode()).hexdigest()[:20]


def page_name(path: str, index: int) -> str:
    """Return the file name of one page of an object."""
    return f"{object_name(path)}-{index:08x}"


class PageFiles:
    """The pages in one folder. Threads and processes may share it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the path of a page."""
        return self._bucket(name) / name

    def unfinished_path(self, name: str) -> Path:
        """Return the path of the lock and the unfinished file of a page."""
        return self._bucket(name) / f"{name}{UNFINISHED}"

    def load(self, name: str) -> bytes | None:
        """Return the content of a page, or None when it is absent or damaged; a damaged page is removed."""
        try:
            content = self.path(name).read_bytes()
        except FileNotFoundError:
            return None
        if len(content) >= HEADER.size:
            magic, num_bytes, crc = HEADER.unpack_from(content)
            body = content[HEADER.size :]
            if magic == MAGIC and num_bytes == len(body) and zlib.crc32(body) == crc:
                return body
        self.remove([self.path(name)])
        return None

    def claim(self, name: str) -> PageClaim | None:
        """Return the right to make a page, or None when another process has it or the page exists."""
        unfinished = self.unfinished_path(name)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # the previous holder may have renamed or removed the file that was opened
            if lock(file) and is_same_file(file, unfinished):
                if not self.path(name).exists():
                    os.ftruncate(file, 0)  # remove the bytes of a process that died
                    return PageClaim(name, file)
                unfinished.unlink(missing_ok=True)
        except OSError:
            os.close(file)
            raise
        os.close(file)
        return None

    def publish(self, claim: PageClaim, content: bytes) -> None:
        """Write a claimed page, for which a place in the count was reserved, and give it its final name."""
        unfinished = self.unfinished_path(claim.name)
        try:
            write_all(claim.file, HEADER.pack(MAGIC, len(content), zlib.crc32(content)) + content)
            with self.usage():  # so that a process that counts sees the page once, under one of its names
                unfinished.rename(self.path(claim.name))
        except OSError:
            with suppress(OSError):
                self.remove([unfinished])
            raise

    def release(self, claim: PageClaim) -> None:
        """End a claim; its file is removed unless it became the page."""
        unfinished = self.unfinished_path(claim.name)
        with suppress(OSError):
            if is_same_file(claim.file, unfinished):
                unfinished.unlink()
        os.close(claim.file)

    def remove(self, files: Iterable[Path]) -> None:
        """Remove files and lower the count of pages by those that existed."""
        with self.usage() as usage:
            removed = 0
            for file in files:
                with suppress(FileNotFoundError):
                    file.unlink()
                    removed += 1
            if removed and usage is not None and (pages := read_count(usage)) is not None:
                write_count(usage, max(0, pages - removed))

    def remove_object(self, path: str) -> None:
        """Remove all pages of an object."""
        name = object_name(path)
        if not self._bucket(name).is_dir():
            return
        self.remove(file for file in self._bucket(name).glob(f"{name}-*") if file.suffix != UNFINISHED)

    def listed(self) -> Iterator[PageFile]:
        """Yield all pages, and the unfinished pages that have a length and so are counted."""
        for bucket in os.scandir(self.folder):
            if not bucket.is_dir():
                continue
            for entry in os.scandir(bucket.path):
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    if status.st_size:
                        yield PageFile(entry.name, entry.path, status.st_mtime_ns)

    @contextmanager
    def usage(self) -> Iterator[int | None]:
        """Yield the descriptor of the open, locked usage file; None when another process keeps the lock too long."""
        file = os.open(self.folder / "usage", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            give_up_s = time.monotonic() + USAGE_WAIT_S
            while not (is_locked := lock(file)) and time.monotonic() < give_up_s:
                time.sleep(POLL_S)
            yield file if is_locked else None
        finally:
            os.close(file)

    def _bucket(self, name: str) -> Path:
        return self.folder / name[:2]


def lock(file: int) -> bool:
    """Lock an open file and return whether it worked; False when another process or thread holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_same_file(file: int, path: Path) -> bool:
    """Return whether an open file is still the file at a path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def remove_if_abandoned(unfinished: str) -> bool:
    """Remove an unfinished page whose process died; return whether it no longer exists."""
    try:
        file = os.open(unfinished, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not lock(file) or not is_same_file(file, Path(unfinished)):
            return False
        Path(unfinished).unlink()
        return True
    finally:
        os.close(file)


def write_all(file: int, content: bytes) -> None:
    """Write an open file from its start; raise OSError when the disk has no room."""
    written = 0
    while written < len(content):
        written += os.pwrite(file, content[written:], written)
    os.ftruncate(file, len(content))


def read_count(file: int) -> int | None:
    """Return the number in a file of 8 bytes, or None when the file has another length: it is new or torn."""
    content = os.pread(file, 9, 0)
    return int.from_bytes(content, "little") if len(content) == 8 else None


def write_count(file: int, count: int) -> None:
    """Write the number that `read_count` reads."""
    write_all(file, count.to_bytes(8, "little"))
