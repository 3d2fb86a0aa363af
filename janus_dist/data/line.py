"""One source as an endless line of samples: epochs one behind the other, each in its own order.

Invariant: what stands at a position of the line depends on the manifest, the seed and the source's name alone; finding
it costs the same at any position, and holds the index records of a few windows in memory, never of all samples.
"""

from functools import lru_cache
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from janus_dist.config.mix import Lane
from janus_dist.config.streams import STREAMS
from janus_dist.data import order
from janus_dist.data.manifest import ShardSet
from janus_dist.data.shard import INDEX_DTYPE


class Cursor(TypedDict):
    """A position of a source's line, to go on from under another mixture."""

    tokens: int
    samples: int
    manifest: str
    """Digest of the manifest; the position means nothing in another one."""


class Taken(NamedTuple):
    """Some samples of a source's line, in its order."""

    sample: NDArray[np.int64]
    epoch: NDArray[np.int64]
    record: NDArray[np.void]


class SourceLine:
    """One source as an endless line of samples: epochs one behind the other, each in its own order."""

    def __init__(self, shards: ShardSet, seed: int, lane: Lane):
        self.shards = shards
        # by name, so that another source in the recipe does not change the order of this one
        self.key_words = (seed, STREAMS.index(lane.stream), *lane.source.encode())
        self.units = {"tokens": shards.manifest.tokens, "samples": shards.manifest.samples}
        self._epoch = lru_cache(maxsize=2)(self._build_epoch)
        self._window = lru_cache(maxsize=4)(self._build_window)

    def take(self, unit: str, start: int, stop: int) -> Taken:
        """The samples that start in [start, stop) of the line, counted in tokens or samples."""
        length = self.units[unit]
        found: list[Taken] = []
        for number in range(start // length, -(-stop // length)):
            low, high = max(start - number * length, 0), min(stop - number * length, length)
            starts = self._epoch(number).starts[unit]
            first, last = (int(np.searchsorted(starts, bound, side="right")) - 1 for bound in (low, high - 1))
            for window in range(first, last + 1):
                found.append(self._part(unit, number, window, low - int(starts[window]), high - int(starts[window])))
        if not found:
            return Taken(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, INDEX_DTYPE))
        return Taken(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def cursor(self, unit: str, position: int) -> Cursor:
        """A position counted in one unit, in both: that of the first sample which starts there or later."""
        epoch, rest = divmod(position, self.units[unit])
        starts = self._epoch(epoch).starts
        window = int(np.searchsorted(starts[unit], rest, side="right")) - 1
        _, records, token_starts = self._window(epoch, window)
        within = rest - int(starts[unit][window])
        number = int(np.searchsorted(token_starts, within)) if unit == "tokens" else within
        sizes = np.append(token_starts, token_starts[-1] + int(records["tokens"][-1]))
        return Cursor(
            tokens=epoch * self.units["tokens"] + int(starts["tokens"][window]) + int(sizes[number]),
            samples=epoch * self.units["samples"] + int(starts["samples"][window]) + number,
            manifest=self.shards.manifest.digest,
        )

    def _part(self, unit: str, epoch: int, window: int, low: int, high: int) -> Taken:
        samples, records, token_starts = self._window(epoch, window)
        if unit == "tokens":
            low, high = (int(np.searchsorted(token_starts, bound)) for bound in (low, high))
        part = slice(max(low, 0), max(high, 0))
        return Taken(samples[part], np.full(len(samples[part]), epoch, dtype=np.int64), records[part])

    def _build_epoch(self, epoch: int) -> order.Epoch:
        return order.Epoch(self.shards.blocks, order.key(*self.key_words, epoch))

    def _build_window(self, epoch: int, window: int) -> tuple[NDArray[np.int64], NDArray[np.void], NDArray[np.int64]]:
        """Samples of a window in this epoch's order, their records, and the token where each starts."""
        found = self._epoch(epoch)
        samples, records = self.shards.records(found.window_blocks(window))
        within = found.within(window)
        samples, records = samples[within], records[within]
        ends = np.cumsum(records["tokens"], dtype=np.int64)
        return samples, records, ends - records["tokens"]
