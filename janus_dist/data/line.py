"""The endless line of samples of one source: one epoch after another, each in its own order.

Invariant: the sample at a position of the line depends only on the manifest, the seed and the source's name; a look-up
costs the same at any position and keeps the index records of a few windows in memory, never those of all samples.
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
    """A position in a source's line from which another mixture can continue."""

    tokens: int
    samples: int
    manifest: str
    """Digest of the manifest; the position is valid only for this manifest."""


class LineSamples(NamedTuple):
    """Consecutive samples of a source's line, in its order."""

    sample: NDArray[np.int64]
    """Index of each sample in its shard set: [sample] int64."""
    epoch: NDArray[np.int64]
    """Epoch of each sample: [sample] int64."""
    record: NDArray[np.void]
    """Index record of each sample: [sample] INDEX_DTYPE."""


class SourceLine:
    """The endless line of samples of one source: one epoch after another, each in its own order."""

    def __init__(self, shards: ShardSet, seed: int, lane: Lane):
        self.shards = shards
        # the name, not the index: another source in the recipe must not change the order of this one
        self.key_words = (seed, STREAMS.index(lane.stream), *lane.source.encode())
        self.units = {"tokens": shards.manifest.tokens, "samples": shards.manifest.samples}
        self._epoch = lru_cache(maxsize=2)(self._build_epoch)
        self._window = lru_cache(maxsize=4)(self._build_window)

    def take(self, unit: str, start: int, stop: int) -> LineSamples:
        """Return the samples that start in [start, stop) of the line; `unit` is tokens or samples.

        Raises DataError when an index cannot be read or does not match the manifest.
        """
        length = self.units[unit]
        parts: list[LineSamples] = []
        for epoch in range(start // length, -(-stop // length)):
            low, high = max(start - epoch * length, 0), min(stop - epoch * length, length)
            starts = self._epoch(epoch).starts[unit]
            first, last = (int(np.searchsorted(starts, bound, side="right")) - 1 for bound in (low, high - 1))
            for window in range(first, last + 1):
                parts.append(self._part(unit, epoch, window, low - int(starts[window]), high - int(starts[window])))
        if not parts:
            return LineSamples(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, INDEX_DTYPE))
        return LineSamples(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def cursor(self, unit: str, position: int) -> Cursor:
        """Return the position, in both units, of the first sample that starts at `position` or later.

        Raises DataError when an index cannot be read or does not match the manifest.
        """
        epoch, rest = divmod(position, self.units[unit])
        starts = self._epoch(epoch).starts
        window = int(np.searchsorted(starts[unit], rest, side="right")) - 1
        _, records, token_starts = self._window(epoch, window)
        within = rest - int(starts[unit][window])
        index = int(np.searchsorted(token_starts, within)) if unit == "tokens" else within
        offsets = np.append(token_starts, token_starts[-1] + int(records["tokens"][-1]))
        return Cursor(
            tokens=epoch * self.units["tokens"] + int(starts["tokens"][window]) + int(offsets[index]),
            samples=epoch * self.units["samples"] + int(starts["samples"][window]) + index,
            manifest=self.shards.manifest.digest,
        )

    def _part(self, unit: str, epoch: int, window: int, low: int, high: int) -> LineSamples:
        """Return the samples of a window that start in [low, high), counted in `unit` from the window's start."""
        samples, records, token_starts = self._window(epoch, window)
        if unit == "tokens":
            low, high = (int(np.searchsorted(token_starts, bound)) for bound in (low, high))
        part = slice(max(low, 0), max(high, 0))
        return LineSamples(samples[part], np.full(len(samples[part]), epoch, dtype=np.int64), records[part])

    def _build_epoch(self, epoch: int) -> order.Epoch:
        return order.Epoch(self.shards.blocks, order.key(*self.key_words, epoch))

    def _build_window(self, epoch: int, window: int) -> tuple[NDArray[np.int64], NDArray[np.void], NDArray[np.int64]]:
        """Return a window's samples in the order of the epoch, their records, and the token where each starts.

        Samples and tokens: [sample] int64, tokens counted from the window's start; records: [sample] INDEX_DTYPE.
        """
        epoch_order = self._epoch(epoch)
        samples, records = self.shards.records(epoch_order.window_blocks(window))
        permutation = epoch_order.within(window)
        samples, records = samples[permutation], records[permutation]
        ends = np.cumsum(records["tokens"], dtype=np.int64)
        return samples, records, ends - records["tokens"]
