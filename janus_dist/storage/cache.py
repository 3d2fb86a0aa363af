"""The node's cache: pages of remote objects in a folder of a local disk that all ranks of a node share.

Invariants: a page under its final name is whole (it is written under another name, then renamed, and its length and
checksum are compared when it is read); the folder never holds more than `capacity_pages`; no state but the folder's
counts, so that a process may be killed at any time. A disk that is full or broken costs speed, never a read.

The file `NAME.new` is both the lock of a page (flock, which the kernel frees when its holder dies) and the page in the
making. The file `usage` holds how many pages there may be at most; it is raised before a page is written and lowered
after one is removed, so a kill leaves it too high, never too low, and the next eviction counts anew.
"""

import fcntl
import hashlib
import heapq
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# One page costs one request of its own at most. 256 KiB take 5 ms at 50 MB/s beside 20 to 100 ms for the first byte, so
# a larger page would cost bandwidth and a smaller one would save no time; 100 GiB are 400,000 files.
PAGE_BYTES = 256 << 10
RUN_PAGES = 16  # pages of one request: 4 MiB; each holds a file handle while it is fetched
BLOCK_BYTES = 4096  # what a page's header costs on the disk
HEADER = struct.Struct("<4sII")  # magic, bytes, crc32
MAGIC = b"JDP1"
EVICT_SHARE = 0.05  # pages that one eviction drops, as it lists the folder (0.6 s of CPU for 100,000 pages)
OFF_S = 300.0  # how long a broken disk is left alone
FULL_S = 10.0  # how long the answer "all of it is needed sooner" is believed
USAGE_WAIT_S = 5.0
POLL_S, LONGEST_POLL_S = 0.002, 0.05
NEVER = 1 << 62

log = logging.getLogger(__name__)


@dataclass
class Claim:
    """The right to make one page, held as the lock of its `.new` file."""

    name: str
    file: int


@lru_cache(maxsize=65_536)
def object_name(path: str) -> str:
    """The name under which an object's pages lie."""
    return hashlib.sha256(path.encode()).hexdigest()[:20]


def page_name(path: str, number: int) -> str:
    """The file name of one page of an object."""
    return f"{object_name(path)}-{number:08x}"


class PageCache:
    """Pages of fixed size. Threads and processes share the folder; `capacity_pages` must be the same for all."""

    def __init__(
        self,
        folder: str | Path,
        capacity_pages: int,
        page_bytes: int = PAGE_BYTES,
        wait_s: float = 15.0,
        warn: bool = True,
    ):
        """`wait_s`: how long to wait for a page that another process fetches. `warn`: say that the disk is broken."""
        self.folder = Path(folder) / f"pages-1-{page_bytes}"
        self.capacity_pages, self.page_bytes, self.wait_s, self.warn = capacity_pages, page_bytes, wait_s, warn
        self._uses: dict[int, set[str]] = {}
        self._next: dict[str, int] | None = {}
        self._lock = threading.Lock()
        self._off_until_s, self._said = 0.0, False
        self._full: tuple[float, int] = (0.0, NEVER)  # until when pages of that step and later ones are not taken

    def read(self, path: str, first: int, stop: int, fetch: Callable[[int, int], bytes]) -> tuple[bytes, int]:
        """Bytes of the pages `first` to `stop - 1`, fewer where the object ends, and how many pages the cache had.

        `fetch(first, stop)` gets the bytes of pages from the store.
        """
        names = {number: page_name(path, number) for number in range(first, stop)}
        found: dict[int, bytes] = {}
        hits, waited_s, poll_s = 0, 0.0, POLL_S
        while True:
            had = {number: page for number in names if number not in found and (page := self._page(names[number]))}
            hits, found = hits + len(had), found | had
            found |= self._fetch_claimed({number: name for number, name in names.items() if number not in found}, fetch)
            missing = [number for number in names if number not in found]
            if self._off() or waited_s > self.wait_s:  # there is no cache, or who fetches them hangs
                for start, end in runs(missing):
                    found |= self._split(start, end, fetch(start, end))
            elif missing:
                time.sleep(poll_s)
                waited_s, poll_s = waited_s + poll_s, min(2 * poll_s, LONGEST_POLL_S)
            if len(found) == len(names):
                break
        if any(len(found[number]) < self.page_bytes for number in range(first, stop - 1)):
            # an object ends in its last page: these are of an object and of a longer one that took its place
            self.drop_object(path)
            return fetch(first, stop), 0
        return b"".join(found[number] for number in names), hits

    def expect(self, uses: Mapping[int, Iterable[tuple[str, int]]], now: int) -> None:
        """What the node will read: step to (path, page) pairs, added to what is known; steps before `now` are over."""
        with self._lock:
            self._uses.update({step: {page_name(*page) for page in pages} for step, pages in uses.items()})
            self._uses = {step: names for step, names in self._uses.items() if step >= now}
            self._next, self._full = None, (0.0, NEVER)

    def drop_object(self, path: str) -> None:
        """Remove all pages of an object: when one is sound and yet wrong, the object was written anew."""
        name = object_name(path)
        with self._guarded():
            if not self._bucket(name).is_dir():
                return
            self._remove(file for file in self._bucket(name).glob(f"{name}-*") if file.suffix != ".new")

    def _page(self, name: str) -> bytes | None:
        """A page that is there and sound; a page that is not sound is removed."""
        if self._off():
            return None
        with self._guarded():
            try:
                content = self._file(name).read_bytes()
            except FileNotFoundError:
                return None
            if len(content) >= HEADER.size:
                magic, num_bytes, crc = HEADER.unpack_from(content)
                body = content[HEADER.size :]
                if magic == MAGIC and num_bytes == len(body) and zlib.crc32(body) == crc:
                    return body
            self._remove([self._file(name)])
        return None

    def _fetch_claimed(self, names: Mapping[int, str], fetch: Callable[[int, int], bytes]) -> dict[int, bytes]:
        """Fetch those of some pages that nobody else fetches. Nothing is waited for while a claim is held."""
        found: dict[int, bytes] = {}
        claims: dict[int, Claim] = {}
        try:
            for number, name in names.items():
                claim = self._claim(name)
                if claim is not None:
                    claims[number] = claim
            for start, end in runs(list(claims)):
                fetched = self._split(start, end, fetch(start, end))
                for number, content in fetched.items():
                    self._put(claims.pop(number), content)
                found |= fetched
        finally:
            for claim in claims.values():
                self._release(claim)
        return found

    def _split(self, first: int, stop: int, content: bytes) -> dict[int, bytes]:
        size = self.page_bytes
        return {number: content[(number - first) * size : (number - first + 1) * size] for number in range(first, stop)}

    def _claim(self, name: str) -> Claim | None:
        """The right to make a page; None when another has it, when the page is there by now, or without a cache."""
        if self._off():
            return None
        with self._guarded():
            new = self._new(name)
            new.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            claim = Claim(name, file)
            try:
                # the former holder may have renamed or removed the file that was opened
                if locked(file) and same_file(file, new):
                    if not self._file(name).exists():
                        os.ftruncate(file, 0)  # what a dead maker left
                        return claim
                    new.unlink(missing_ok=True)
            except OSError:
                os.close(file)
                raise
            os.close(file)
        return None

    def _put(self, claim: Claim, content: bytes) -> None:
        """Make a claimed page appear if there is room for it; the claim ends either way."""
        page, new = HEADER.pack(MAGIC, len(content), zlib.crc32(content)) + content, self._new(claim.name)
        with self._guarded():
            if content and self._reserve(claim, len(page)):
                try:
                    write_all(claim.file, page)
                    with self._usage():  # so that who counts sees the page once, under one of its names
                        new.rename(self._file(claim.name))
                except OSError:
                    with suppress(OSError):
                        self._remove([new])
                    raise
        self._release(claim)

    def _release(self, claim: Claim) -> None:
        new = self._new(claim.name)
        with suppress(OSError):
            if same_file(claim.file, new):
                new.unlink()
        os.close(claim.file)

    def _reserve(self, claim: Claim, num_bytes: int) -> bool:
        """Take room for a page, evicting others; the file's length shows that it is counted."""
        step = self._next_uses().get(claim.name, NEVER)
        until_s, full_from = self._full
        if step >= full_from and time.monotonic() < until_s:
            return False
        with self._usage() as usage:
            if usage is None:
                return False
            pages = read_count(usage)
            if pages is None or pages >= self.capacity_pages:
                pages = self._evict(claim, step)
                write_count(usage, pages)
            if pages >= self.capacity_pages:
                self._full = (time.monotonic() + FULL_S, step)
                return False
            write_count(usage, pages + 1)
            os.ftruncate(claim.file, num_bytes)
            return True

    def _evict(self, claim: Claim, step: int) -> int:
        """Remove pages: those nobody expects, the oldest first, then those needed last; how many remain.

        A page that is needed before `step`, when the claimed one is, stays.
        """
        next_uses = self._next_uses()
        pages, unfinished = [], 0
        for name, path, changed in self._listed():
            if not name.endswith(".new"):
                pages.append((-next_uses.get(name, NEVER), changed, path))
            elif name != f"{claim.name}.new":
                unfinished += not removed_if_dead(path)
        remain = len(pages) + unfinished
        if remain >= self.capacity_pages:  # else the count was too high; more than that: the capacity was larger before
            drop = remain - self.capacity_pages + max(1, int(EVICT_SHARE * self.capacity_pages))
            for last_use, _, path in heapq.nsmallest(drop, pages):
                if -last_use > step or -last_use == NEVER:
                    Path(path).unlink(missing_ok=True)
                    remain -= 1
        return remain

    def _listed(self) -> Iterator[tuple[str, str, int]]:
        """(name, path, time of the last change in ns) of all pages, and of those in the making that have a length."""
        for bucket in os.scandir(self.folder):
            if not bucket.is_dir():
                continue
            for entry in os.scandir(bucket.path):
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    if status.st_size:  # a claim without a length has no room reserved
                        yield entry.name, entry.path, status.st_mtime_ns

    def _remove(self, files: Iterable[Path]) -> None:
        with self._usage() as usage:
            removed = 0
            for file in files:
                with suppress(FileNotFoundError):
                    file.unlink()
                    removed += 1
            if removed and usage is not None and (pages := read_count(usage)) is not None:
                write_count(usage, max(0, pages - removed))

    @contextmanager
    def _usage(self) -> Iterator[int | None]:
        """The open, locked file of the count; None when another process keeps it too long."""
        file = os.open(self.folder / "usage", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            give_up_s = time.monotonic() + USAGE_WAIT_S
            while not (held := locked(file)) and time.monotonic() < give_up_s:
                time.sleep(POLL_S)
            yield file if held else None
        finally:
            os.close(file)

    def _next_uses(self) -> dict[str, int]:
        """The next step that needs each page, by its name."""
        with self._lock:
            if self._next is None:
                self._next = {name: step for step in sorted(self._uses, reverse=True) for name in self._uses[step]}
            return self._next

    def _bucket(self, name: str) -> Path:
        return self.folder / name[:2]

    def _file(self, name: str) -> Path:
        return self._bucket(name) / name

    def _new(self, name: str) -> Path:
        return self._bucket(name) / f"{name}.new"

    def _off(self) -> bool:
        return time.monotonic() < self._off_until_s

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Errors of the disk inside turn the cache off for a while, and are said once."""
        try:
            yield
        except OSError as error:
            self._off_until_s = time.monotonic() + OFF_S
            if self.warn and not self._said:
                log.warning(
                    "no cache: %s: %s; reading goes on from the store, the cache is tried again every %d s",
                    *(self.folder, error.strerror or error, OFF_S),
                )
            self._said = True


def runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges (first, stop) of neighbours, at most `RUN_PAGES` long."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number and number - found[-1][0] < RUN_PAGES:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


def locked(file: int) -> bool:
    """Lock an open file unless another has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def same_file(file: int, path: Path) -> bool:
    """Whether an open file is still the one under a name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def removed_if_dead(new: str) -> bool:
    """Remove a page in the making whose maker is gone; whether it is away."""
    try:
        file = os.open(new, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not locked(file) or not same_file(file, Path(new)):
            return False
        Path(new).unlink()
        return True
    finally:
        os.close(file)


def write_all(file: int, content: bytes) -> None:
    """Write an open file from its start; OSError when the disk takes less."""
    written = 0
    while written < len(content):
        written += os.pwrite(file, content[written:], written)
    os.ftruncate(file, len(content))


def read_count(file: int) -> int | None:
    """The number in a file of 8 bytes; None when there is none yet or it is torn."""
    content = os.pread(file, 9, 0)
    return int.from_bytes(content, "little") if len(content) == 8 else None


def write_count(file: int, count: int) -> None:
    """Write the number of `read_count`."""
    write_all(file, count.to_bytes(8, "little"))
