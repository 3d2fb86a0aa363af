"""The node's cache: pages of remote objects on a local disk that all ranks of a node share.

This module decides which pages are fetched, kept and evicted; `page_files` reads and writes their files. Invariants:
the folder never holds more than `capacity_pages`; the only state of the cache is the folder's, so a process may be
killed at any time. A full or broken disk costs speed, never a read.
"""

import heapq
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from janus_dist.storage.page_files import (
    HEADER,
    UNFINISHED,
    PageClaim,
    PageFiles,
    page_name,
    read_count,
    remove_if_abandoned,
    write_count,
)

PAGE_BYTES = 256 << 10
"""Bytes of a page, which costs at most one request of its own. 256 KiB take 5 ms at 50 MB/s, compared to 20 to 100 ms
for the first byte: a larger page would cost bandwidth and a smaller one would save no time. 100 GiB are 400,000 files.
"""
RUN_PAGES = 16
"""Most pages of one request: 4 MiB. Each page holds a file handle while it is fetched."""
EVICT_SHARE = 0.05
"""Share of the capacity that one eviction removes, as it lists the folder (0.6 s of CPU for 100,000 pages)."""
OFF_S = 300.0
"""Seconds for which a broken disk is not used."""
FULL_S = 10.0
"""Seconds for which the result "all pages are needed sooner" is reused."""
POLL_S, LONGEST_POLL_S = 0.002, 0.05
"""First and longest pause in seconds between two looks for pages that another process fetches."""
NEVER = 1 << 62
"""Step of the next use of a page that no step is known to need."""

log = logging.getLogger(__name__)


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
        """Use a cache in `folder`, which is created.

        `wait_s`: seconds to wait for a page that another process fetches. `warn`: log when the disk is broken.
        """
        self.folder = Path(folder) / f"pages-1-{page_bytes}"
        self.capacity_pages, self.page_bytes, self.wait_s, self.warn = capacity_pages, page_bytes, wait_s, warn
        self._files = PageFiles(self.folder)
        self._uses: dict[int, set[str]] = {}
        self._next: dict[str, int] | None = {}
        self._lock = threading.Lock()
        self._off_until_s, self._has_warned = 0.0, False
        self._full: tuple[float, int] = (0.0, NEVER)  # until this time, pages of this and later steps are not kept

    def read(self, path: str, first: int, stop: int, fetch: Callable[[int, int], bytes]) -> tuple[bytes, int]:
        """Return the bytes of the pages `first` to `stop - 1`, fewer where the object ends, and the number of hits.

        `fetch(first, stop)` returns the bytes of pages from the store; its errors are raised.
        """
        names = {index: page_name(path, index) for index in range(first, stop)}
        pages: dict[int, bytes] = {}
        missing = names
        hits, waited_s, poll_s = 0, 0.0, POLL_S
        while missing:
            cached = self._load(missing)
            hits, pages = hits + len(cached), pages | cached
            pages |= self._claim_and_fetch(_without(missing, pages), fetch)
            missing = _without(names, pages)
            if missing and (self._is_off() or waited_s > self.wait_s):  # no cache, or the other process hangs
                pages |= self._fetch(list(missing), fetch)
                missing = {}
            elif missing:
                time.sleep(poll_s)
                waited_s, poll_s = waited_s + poll_s, min(2 * poll_s, LONGEST_POLL_S)
        if any(len(pages[index]) < self.page_bytes for index in range(first, stop - 1)):
            # only the last page of an object is short: an object was replaced by a longer one, and pages of both remain
            self.drop_object(path)
            return fetch(first, stop), 0
        return b"".join(pages[index] for index in names), hits

    def expect(self, uses: Mapping[int, Iterable[tuple[str, int]]], now: int) -> None:
        """Add what the node will read, by step: (path, page) pairs; steps before `now` are over."""
        with self._lock:
            self._uses.update({step: {page_name(*page) for page in pages} for step, pages in uses.items()})
            self._uses = {step: names for step, names in self._uses.items() if step >= now}
            self._next, self._full = None, (0.0, NEVER)

    def drop_object(self, path: str) -> None:
        """Remove all pages of an object; called when an intact page has wrong content: the object was replaced."""
        with self._guarded():
            self._files.remove_object(path)

    def _load(self, names: Mapping[int, str]) -> dict[int, bytes]:
        """Return the cached ones of some pages by their index; empty pages and damaged ones are left out."""
        pages: dict[int, bytes] = {}
        for index, name in names.items():
            if self._is_off():
                break
            with self._guarded():
                if page := self._files.load(name):
                    pages[index] = page
        return pages

    def _claim_and_fetch(self, names: Mapping[int, str], fetch: Callable[[int, int], bytes]) -> dict[int, bytes]:
        """Fetch those of some pages that no other process fetches; never wait while a claim is held."""
        pages: dict[int, bytes] = {}
        claims: dict[int, PageClaim] = {}
        try:
            for index, name in names.items():
                claim = self._claim(name)
                if claim is not None:
                    claims[index] = claim
            for first, stop in runs(list(claims)):
                fetched = self._split(first, stop, fetch(first, stop))
                for index, content in fetched.items():
                    self._put(claims.pop(index), content)
                pages |= fetched
        finally:
            for claim in claims.values():
                self._files.release(claim)
        return pages

    def _fetch(self, indices: list[int], fetch: Callable[[int, int], bytes]) -> dict[int, bytes]:
        """Return pages from the store by their index, without keeping them."""
        pages: dict[int, bytes] = {}
        for first, stop in runs(indices):
            pages |= self._split(first, stop, fetch(first, stop))
        return pages

    def _split(self, first: int, stop: int, content: bytes) -> dict[int, bytes]:
        size = self.page_bytes
        return {index: content[(index - first) * size : (index - first + 1) * size] for index in range(first, stop)}

    def _claim(self, name: str) -> PageClaim | None:
        """Return the right to make a page; None when another process has it, the page exists, or the cache is off."""
        if self._is_off():
            return None
        with self._guarded():
            return self._files.claim(name)
        return None

    def _put(self, claim: PageClaim, content: bytes) -> None:
        """Keep a claimed page if the cache has room for it; the claim ends in any case."""
        with self._guarded():
            if content and self._reserve(claim, HEADER.size + len(content)):
                self._files.publish(claim, content)
        self._files.release(claim)

    def _reserve(self, claim: PageClaim, num_bytes: int) -> bool:
        """Count a page before it is written, evicting others if necessary; the file's length shows that it is counted.

        Return False when the cache has no room.
        """
        step = self._next_uses().get(claim.name, NEVER)
        until_s, full_from = self._full
        if step >= full_from and time.monotonic() < until_s:
            return False
        with self._files.usage() as usage:
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

    def _evict(self, claim: PageClaim, step: int) -> int:
        """Remove pages and return how many remain: first those that no step needs, oldest first, then by latest use.

        Pages needed before `step`, the next use of the claimed page, are kept.
        """
        next_uses = self._next_uses()
        pages, unfinished = [], 0
        for file in self._files.listed():
            if file.is_finished:
                pages.append((-next_uses.get(file.name, NEVER), file.changed_ns, file.path))
            elif file.name != f"{claim.name}{UNFINISHED}":
                unfinished += not remove_if_abandoned(file.path)
        remain = len(pages) + unfinished
        if remain >= self.capacity_pages:  # else the count was too high; above: the capacity was larger in an older run
            excess = remain - self.capacity_pages + max(1, int(EVICT_SHARE * self.capacity_pages))
            for next_use, _, path in heapq.nsmallest(excess, pages):
                if -next_use > step or -next_use == NEVER:
                    Path(path).unlink(missing_ok=True)
                    remain -= 1
        return remain

    def _next_uses(self) -> dict[str, int]:
        """Return the next step that needs each page, by the page's name."""
        with self._lock:
            if self._next is None:
                self._next = {name: step for step in sorted(self._uses, reverse=True) for name in self._uses[step]}
            return self._next

    def _is_off(self) -> bool:
        return time.monotonic() < self._off_until_s

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn the cache off for some time when the disk fails inside the block, and log it once."""
        try:
            yield
        except OSError as error:
            self._off_until_s = time.monotonic() + OFF_S
            if self.warn and not self._has_warned:
                log.warning(
                    "cache turned off: %s: %s; reading continues from the store, the cache is tried again every %d s",
                    *(self.folder, error.strerror or error, OFF_S),
                )
            self._has_warned = True


def runs(indices: list[int]) -> list[tuple[int, int]]:
    """Return ascending indices as ranges (first, stop) of neighbours, at most `RUN_PAGES` long."""
    ranges: list[tuple[int, int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index and index - ranges[-1][0] < RUN_PAGES:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return ranges


def _without(names: Mapping[int, str], pages: Mapping[int, bytes]) -> dict[int, str]:
    """Return the names of the pages that are not among `pages`."""
    return {index: name for index, name in names.items() if index not in pages}
