"""Reading ranges of shards, local or in S3: few requests, at the same time, past the node's cache where there is one.

Invariant: `read` gives exactly the bytes that were asked for, in the order asked, or raises DataError; neither the
cache, nor its eviction, nor which requests were joined or repeated can be seen in what it gives.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from janus_dist.config.data import ReadConfig
from janus_dist.errors import DataError
from janus_dist.storage.cache import BLOCK_BYTES, PAGE_BYTES, RUN_PAGES, PageCache
from janus_dist.storage.ranges import Fetcher, ReadCounters, Tally, is_local
from janus_dist.storage.repair import REMAKE_SHARD

SPAN_BYTES = RUN_PAGES * PAGE_BYTES  # ranges are joined up to this; more would be faster as two requests at once
# Local bytes mostly come sooner than another thread wakes up, so the calling thread reads them. What it has not got in
# this time is on a slow disk or a network's, where reads at the same time pay.
COALESCE_GAP_BYTES = 262_144
"""Samples of a shard that lie closer together than this are read by one request: 256 KiB take 5 ms to send."""
THREADS = 16
"""Requests that one rank has under way at once."""
PATIENCE_S = 240.0
"""How long a request is tried again before the run stops: a store may be away for some minutes."""
TIMEOUT_S = 15.0
"""A request with no answer for so long has failed; so long a wait is for what another rank reads into the cache."""
ALONE_S = 0.01


@dataclass(frozen=True)
class Range:
    """Bytes of one file or object."""

    path: str
    offset: int
    bytes: int

    @property
    def stop(self) -> int:
        return self.offset + self.bytes


@dataclass(frozen=True)
class Span:
    """Bytes that are read together, and which of the ranges asked for lie in them."""

    path: str
    start: int
    stop: int
    places: tuple[int, ...]


class Reader:
    """Ranges of shards for one rank. Threads may share it; a call's requests and slow reads run at the same time."""

    def __init__(
        self,
        settings: ReadConfig,
        node_member: int = 0,
        coalesce_gap_bytes: int = COALESCE_GAP_BYTES,
        threads: int = THREADS,
        patience_s: float = PATIENCE_S,
        timeout_s: float = TIMEOUT_S,
    ):
        """`node_member`: the rank's number on its node; the first one says it when the cache's disk is broken."""
        self.coalesce_gap_bytes = coalesce_gap_bytes
        self._tally = Tally()
        self._fetcher = Fetcher(timeout_s, threads, patience_s, self._tally)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
        self._closed = False
        self._cache: PageCache | None = None
        if settings.cache_dir is not None:
            pages = int(settings.cache_gib * 2**30) // (PAGE_BYTES + BLOCK_BYTES)
            self._cache = PageCache(
                settings.cache_dir, max(1, pages), PAGE_BYTES, wait_s=timeout_s, warn=node_member == 0
            )

    @property
    def caches(self) -> bool:
        """Whether what it reads is kept on the node's disk."""
        return self._cache is not None

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range, in the order asked; DataError when one cannot be read, or not whole."""
        began = time.monotonic()
        spans = [span for path, places in by_path(ranges).items() for span in joined(ranges, places, *self._cut(path))]
        spans.sort(key=lambda span: is_local(span.path))  # stores answer while this thread reads files
        try:
            contents = self._read_spans(spans)
        finally:
            self._tally.add(wait_s=time.monotonic() - began)
        found = [b""] * len(ranges)
        for span, content in zip(spans, contents, strict=True):
            for place in span.places:
                found[place] = cut_out(ranges[place], content, span.start)
        self._tally.add(bytes_asked=sum(map(len, found)))
        return found

    def read_again(self, range: Range) -> bytes:
        """The bytes of a range from the store, whatever the cache says; the cached pages of its object are dropped.

        For a payload whose checksum was wrong.
        """
        if self._cache is not None and not is_local(range.path):
            self._cache.drop_object(range.path)
        if not range.bytes:
            return b""
        return cut_out(range, self._fetcher.fetch(range.path, range.offset, range.stop), range.offset)

    def expect(self, uses: Mapping[int, Sequence[Range]], now: int | None = None) -> None:
        """Tell what the node will read at which step; the cache keeps what is needed next. Not needed to be right.

        Steps add up over calls; those before `now` (without it, before the first step of this call) are over.
        """
        if self._cache is None or not uses:
            return
        pages = {
            step: {
                (range.path, page)
                for range in ranges
                if range.bytes and not is_local(range.path)
                for page in page_numbers(range)
            }
            for step, ranges in uses.items()
        }
        self._cache.expect(pages, min(uses) if now is None else now)

    def counters(self) -> ReadCounters:
        """What reading took since the reader was made."""
        return self._tally.now()

    def close(self) -> None:
        """End requests and pauses; reads that are under way in other threads raise DataError."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._fetcher.close()

    def _cut(self, path: str) -> tuple[int, int]:
        """(bytes that a span's ends are multiples of, gap that is bridged) for a path."""
        if self._cache is not None and not is_local(path):
            return PAGE_BYTES, 0
        return 1, self.coalesce_gap_bytes

    def _read_spans(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of each span: local ones by this thread for `ALONE_S`, all others at the same time by the pool."""
        alone_until_s = time.monotonic() + ALONE_S
        found: list[bytes | Future[bytes]] = []
        try:
            for span in spans:
                alone = is_local(span.path) and time.monotonic() < alone_until_s
                found.append(self._read_span(span) if alone else self._submit(span))
            return [content.result() if isinstance(content, Future) else content for content in found]
        except CancelledError as error:
            raise DataError("the reader was closed while it read") from error
        finally:
            for content in found:
                if isinstance(content, Future):
                    content.cancel()  # of those not begun, when one failed

    def _submit(self, span: Span) -> Future[bytes]:
        try:
            return self._pool.submit(self._read_span, span)
        except RuntimeError as error:
            if self._closed:
                raise CancelledError from error
            raise

    def _read_span(self, span: Span) -> bytes:
        if self._cache is None or is_local(span.path):
            return self._fetcher.fetch(span.path, span.start, span.stop)
        first, stop = span.start // PAGE_BYTES, span.stop // PAGE_BYTES
        content, hits = self._cache.read(span.path, first, stop, partial(self._fetch_pages, span.path))
        self._tally.add(pages_hit=hits)
        return content

    def _fetch_pages(self, path: str, first: int, stop: int) -> bytes:
        self._tally.add(pages_missed=stop - first)
        return self._fetcher.fetch(path, first * PAGE_BYTES, stop * PAGE_BYTES)


def by_path(ranges: Sequence[Range]) -> dict[str, list[int]]:
    """Places of the ranges that are not empty, by their path."""
    places: dict[str, list[int]] = {}
    for place, range in enumerate(ranges):
        assert range.offset >= 0 and range.bytes >= 0, range
        if range.bytes:
            places.setdefault(range.path, []).append(place)
    return places


def joined(ranges: Sequence[Range], places: list[int], align_bytes: int, gap_bytes: int) -> list[Span]:
    """Spans that cover ranges of one path: aligned, joined over gaps, up to `SPAN_BYTES` unless a range is longer."""
    spans: list[Span] = []
    for place in sorted(places, key=lambda place: ranges[place].offset):
        start = ranges[place].offset // align_bytes * align_bytes
        stop = -(-ranges[place].stop // align_bytes) * align_bytes
        last = spans[-1] if spans else None
        if last is not None and (
            stop <= last.stop or (start - last.stop <= gap_bytes and stop - last.start <= SPAN_BYTES)
        ):
            spans[-1] = Span(last.path, last.start, max(last.stop, stop), (*last.places, place))
        else:
            spans.append(Span(ranges[place].path, start, stop, (place,)))
    return spans


def page_numbers(of: Range) -> range:
    """Pages that hold a range."""
    return range(of.offset // PAGE_BYTES, -(-of.stop // PAGE_BYTES))


def cut_out(range: Range, content: bytes, start: int) -> bytes:
    """A range's bytes of those that begin at `start`; DataError when the object ends before the range does."""
    found = content[range.offset - start : range.stop - start]
    if len(found) != range.bytes:
        raise DataError(
            f"{range.path} ends at byte {start + len(content)}, its index expects bytes {range.offset} to "
            f"{range.stop - 1}",
            f"shard and index are of different runs; {REMAKE_SHARD}",
        )
    return found
