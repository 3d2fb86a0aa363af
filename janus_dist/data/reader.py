"""Reading of shard ranges, local or in S3: few concurrent requests, through the node's cache if one is configured.

Invariant: `read` returns exactly the requested bytes, in the requested order, or raises DataError; the result does not
depend on the cache, its eviction, or which requests were joined or repeated.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from janus_dist.config.data import ReadConfig
from janus_dist.errors import DataError
from janus_dist.storage.cache import PAGE_BYTES, RUN_PAGES, PageCache
from janus_dist.storage.page_files import BLOCK_BYTES
from janus_dist.storage.ranges import Fetcher, ReadCounters, ReadTally, is_local
from janus_dist.storage.repair import REMAKE_SHARD

SPAN_BYTES = RUN_PAGES * PAGE_BYTES
"""Bytes up to which ranges are joined into one request; more would be faster as two concurrent requests."""
COALESCE_GAP_BYTES = 262_144
"""Gap in bytes up to which neighbouring samples of a shard are read by one request: 256 KiB take 5 ms to send."""
THREADS = 16
"""Concurrent requests of one rank."""
PATIENCE_S = 240.0
"""Seconds for which a request is retried before the run stops: a store may be unavailable for some minutes."""
TIMEOUT_S = 15.0
"""Seconds without an answer after which a request has failed; also the longest wait for a page that another rank reads
into the cache."""
INLINE_READ_S = 0.01
"""Seconds for which the calling thread itself reads local bytes, which mostly arrive sooner than another thread wakes
up. Bytes that take longer are on a slow or a network disk, where concurrent reads are faster."""


@dataclass(frozen=True)
class ByteRange:
    """Bytes of one file or object."""

    path: str
    offset: int
    bytes: int

    @property
    def stop(self) -> int:
        """Return the byte after the last one."""
        return self.offset + self.bytes


@dataclass(frozen=True)
class Span:
    """Bytes that one request reads."""

    path: str
    start: int
    stop: int
    range_indices: tuple[int, ...]
    """Indices of the requested ranges that lie in the span."""


class RangeReader:
    """Reader of shard ranges for one rank. Threads may share it; requests and slow reads of a call run concurrently."""

    def __init__(
        self,
        settings: ReadConfig,
        node_member: int = 0,
        coalesce_gap_bytes: int = COALESCE_GAP_BYTES,
        threads: int = THREADS,
        patience_s: float = PATIENCE_S,
        timeout_s: float = TIMEOUT_S,
    ):
        """Create the reader of a rank with index `node_member` on its node; index 0 warns of a broken cache disk."""
        self.coalesce_gap_bytes = coalesce_gap_bytes
        self._tally = ReadTally()
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
        """Return whether a cache on the node's disk keeps the bytes that are read."""
        return self._cache is not None

    def read(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """Return the bytes of each range, in their order; raise DataError when one cannot be read completely."""
        began = time.monotonic()
        spans = [
            span
            for path, indices in indices_by_path(ranges).items()
            for span in join_ranges(ranges, indices, *self._alignment(path))
        ]
        spans.sort(key=lambda span: is_local(span.path))  # remote first: stores answer while this thread reads files
        try:
            contents = self._read_spans(spans)
        finally:
            self._tally.add(wait_s=time.monotonic() - began)
        parts = [b""] * len(ranges)
        for span, content in zip(spans, contents, strict=True):
            for index in span.range_indices:
                parts[index] = extract(ranges[index], content, span.start)
        self._tally.add(bytes_asked=sum(map(len, parts)))
        return parts

    def read_again(self, range: ByteRange) -> bytes:
        """Return the bytes of a range from the store, not from the cache, and drop the cached pages of its object.

        Called for a payload whose checksum is wrong. Raises DataError when the range cannot be read.
        """
        if self._cache is not None and not is_local(range.path):
            self._cache.drop_object(range.path)
        if not range.bytes:
            return b""
        return extract(range, self._fetcher.fetch(range.path, range.offset, range.stop), range.offset)

    def expect(self, uses: Mapping[int, Sequence[ByteRange]], now: int | None = None) -> None:
        """Tell the cache which ranges the node will read at which step, so that it keeps the pages needed next.

        The steps are added to those of earlier calls. Steps before `now` (default: the first step of this call) are
        over. Wrong information costs only speed.
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
        """Return the counters of all reads since the reader was created."""
        return self._tally.now()

    def close(self) -> None:
        """End requests and pauses; reads in progress in other threads raise DataError."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._fetcher.close()

    def _alignment(self, path: str) -> tuple[int, int]:
        """Return the bytes that the ends of a path's spans are multiples of, and the gap in bytes that is read too."""
        if self._cache is not None and not is_local(path):
            return PAGE_BYTES, 0
        return 1, self.coalesce_gap_bytes

    def _read_spans(self, spans: Sequence[Span]) -> list[bytes]:
        """Return the bytes of each span: this thread reads local ones for `INLINE_READ_S`, the pool all others."""
        alone_until_s = time.monotonic() + INLINE_READ_S
        contents: list[bytes | Future[bytes]] = []
        try:
            for span in spans:
                is_read_here = is_local(span.path) and time.monotonic() < alone_until_s
                contents.append(self._read_span(span) if is_read_here else self._submit(span))
            return [content.result() if isinstance(content, Future) else content for content in contents]
        except CancelledError as error:
            raise DataError("the reader was closed during a read") from error
        finally:
            for content in contents:
                if isinstance(content, Future):
                    content.cancel()  # when one failed, those that have not begun

    def _submit(self, span: Span) -> Future[bytes]:
        """Start the read of a span in the pool; raise CancelledError when the reader is closed."""
        try:
            return self._pool.submit(self._read_span, span)
        except RuntimeError as error:
            if self._closed:
                raise CancelledError from error
            raise

    def _read_span(self, span: Span) -> bytes:
        """Return the bytes of a span, those of a store through the cache if one is configured."""
        if self._cache is None or is_local(span.path):
            return self._fetcher.fetch(span.path, span.start, span.stop)
        first, stop = span.start // PAGE_BYTES, span.stop // PAGE_BYTES
        content, hits = self._cache.read(span.path, first, stop, partial(self._fetch_pages, span.path))
        self._tally.add(pages_hit=hits)
        return content

    def _fetch_pages(self, path: str, first: int, stop: int) -> bytes:
        """Return the bytes of the pages `first` to `stop - 1` of an object from the store."""
        self._tally.add(pages_missed=stop - first)
        return self._fetcher.fetch(path, first * PAGE_BYTES, stop * PAGE_BYTES)


def indices_by_path(ranges: Sequence[ByteRange]) -> dict[str, list[int]]:
    """Return the indices of the ranges that are not empty, by path."""
    indices: dict[str, list[int]] = {}
    for index, range in enumerate(ranges):
        assert range.offset >= 0 and range.bytes >= 0, range
        if range.bytes:
            indices.setdefault(range.path, []).append(index)
    return indices


def join_ranges(ranges: Sequence[ByteRange], indices: list[int], align_bytes: int, gap_bytes: int) -> list[Span]:
    """Return spans that cover the ranges with these indices, which are of one path.

    Spans are aligned, and joined over gaps up to `SPAN_BYTES`; only a range that is longer gives a longer span.
    """
    spans: list[Span] = []
    for index in sorted(indices, key=lambda index: ranges[index].offset):
        start = ranges[index].offset // align_bytes * align_bytes
        stop = -(-ranges[index].stop // align_bytes) * align_bytes
        last = spans[-1] if spans else None
        if last is not None and (
            stop <= last.stop or (start - last.stop <= gap_bytes and stop - last.start <= SPAN_BYTES)
        ):
            spans[-1] = Span(last.path, last.start, max(last.stop, stop), (*last.range_indices, index))
        else:
            spans.append(Span(ranges[index].path, start, stop, (index,)))
    return spans


def page_numbers(wanted: ByteRange) -> range:
    """Return the pages that hold a range."""
    return range(wanted.offset // PAGE_BYTES, -(-wanted.stop // PAGE_BYTES))


def extract(range: ByteRange, content: bytes, start: int) -> bytes:
    """Return the bytes of a range from content that begins at byte `start` of the object.

    Raises DataError when the object ends before the range does.
    """
    part = content[range.offset - start : range.stop - start]
    if len(part) != range.bytes:
        raise DataError(
            f"{range.path} ends at byte {start + len(content)}, its index expects bytes {range.offset} to "
            f"{range.stop - 1}",
            f"shard and index are from different runs; {REMAKE_SHARD}",
        )
    return part
