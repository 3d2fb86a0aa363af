"""The order of a source: a keyed block shuffle per epoch, computed for any position without state.

The shuffle has two levels, so that no process needs the lengths of a billion samples at once: the blocks of a source
(256 neighbours in a shard) are permuted, and samples are permuted within windows of 64 blocks in that order.
Permutations are four-round Feistel networks over the next even power of two, iterated until the result is inside the
range (as in format-preserving encryption); vectorised over positions. Invariants: for every key a permutation is a
bijection of [0, size), and an epoch holds every sample once; all arithmetic is 64-bit. The constants are part of the
plan: a change of one changes the training data of every existing run.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4
"""Rounds of the Feistel network."""
WINDOW_BLOCKS = 64
"""Blocks whose samples are shuffled together."""
CHUNK_WINDOWS = 4096
"""Windows that are summed at once, so that an epoch of millions of blocks needs little memory."""
U64 = np.uint64


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers of any shape, uint64 (splitmix64's finaliser, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = values + U64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
        return z ^ (z >> U64(31))


def key(*words: int) -> np.uint64:
    """Return a 64-bit key of integers, such as (seed, stream, epoch)."""
    state = np.zeros(1, dtype=U64)
    for word in words:
        state = mix64(state ^ np.array([word % 2**64], dtype=U64))
    return state[0]


@dataclass(frozen=True)
class Blocks:
    """The blocks of a source."""

    samples: NDArray[np.uint16]
    """Samples of each block: [block] uint16."""
    tokens: NDArray[np.uint32]
    """Tokens of each block: [block] uint32."""


class Epoch:
    """One epoch of a source: the blocks of each window, and the start of each window in samples and tokens."""

    def __init__(self, blocks: Blocks, epoch_key: np.uint64):
        self.num_blocks = len(blocks.samples)
        self.key = epoch_key
        windows = -(-self.num_blocks // WINDOW_BLOCKS)
        self.starts = {unit: np.zeros(windows + 1, dtype=np.int64) for unit in ("samples", "tokens")}
        """Samples or tokens before each window, and of the whole epoch: [window + 1] int64, by unit."""
        for first in range(0, windows, CHUNK_WINDOWS):
            last = min(first + CHUNK_WINDOWS, windows)
            order = self._blocks(first, last)
            cuts = np.arange(0, len(order), WINDOW_BLOCKS)
            for unit, sizes in (("samples", blocks.samples), ("tokens", blocks.tokens)):
                self.starts[unit][first + 1 : last + 1] = np.add.reduceat(sizes[order].astype(np.int64), cuts)
        for starts in self.starts.values():
            np.cumsum(starts, out=starts)

    def window_blocks(self, window: int) -> NDArray[np.int64]:
        """Return the blocks of a window, in their order: [block] int64."""
        return self._blocks(window, window + 1)

    def within(self, window: int) -> NDArray[np.int64]:
        """Return a window's order: [sample] int64 indices into the concatenated samples of its blocks."""
        size = int(self.starts["samples"][window + 1] - self.starts["samples"][window])
        return permute(np.arange(size), size, key(int(self.key), window))

    def _blocks(self, first_window: int, last_window: int) -> NDArray[np.int64]:
        """Return the blocks of the windows `first_window` to `last_window - 1`, in their order: [block] int64."""
        positions = np.arange(first_window * WINDOW_BLOCKS, min(last_window * WINDOW_BLOCKS, self.num_blocks))
        return permute(positions, self.num_blocks, self.key)


def permute(positions: NDArray[np.int64], size: int, permutation_key: np.uint64) -> NDArray[np.int64]:
    """Return the indices at `positions` of the permutation of [0, size) with this key.

    `positions` and result: [position] int64 in [0, size).
    """
    half_bits = U64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = U64((1 << int(half_bits)) - 1)
    values = _rounds(positions.astype(U64), half_bits, mask, permutation_key)
    outside = values >= U64(size)
    while outside.any():
        values[outside] = _rounds(values[outside], half_bits, mask, permutation_key)
        outside = values >= U64(size)
    return values.astype(np.int64)


def chance(indices: NDArray[np.int64], draw_key: np.uint64) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each index, which depends only on the index and the key.

    `indices`: [index] int64; result: [index] float64.
    """
    return (mix64(indices.astype(U64) ^ draw_key) >> U64(11)).astype(np.float64) * 2.0**-53


def _rounds(
    values: NDArray[np.uint64], half_bits: np.uint64, mask: np.uint64, permutation_key: np.uint64
) -> NDArray[np.uint64]:
    """Return the Feistel permutation of `values`, [value] uint64, over [0, 2 ** (2 * half_bits))."""
    left, right = values >> half_bits, values & mask
    for index in range(ROUNDS):
        round_key = mix64(np.array([permutation_key ^ U64(index)], dtype=U64))[0]
        left, right = right, left ^ (mix64(right ^ round_key) & mask)
    return (left << half_bits) | right
