"""The order of a stream: a keyed permutation per epoch, computed for any position without a state.

A four-round Feistel network over the next even power of two, walked until it lands inside the range (as in format-
preserving encryption); vectorised over positions. Invariant: for every key it is a bijection of [0, size); all
arithmetic is 64-bit. The numbers are part of the plan: changing a constant here changes what every existing run would
train on.
"""

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4
U64 = np.uint64


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers (splitmix64's finaliser, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = values + U64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
        return z ^ (z >> U64(31))


def key(*words: int) -> np.uint64:
    """A 64-bit key of integers, such as (seed, stream, epoch)."""
    state = np.zeros(1, dtype=U64)
    for word in words:
        state = mix64(state ^ np.array([word % 2**64], dtype=U64))
    return state[0]


def permute(positions: NDArray[np.int64], size: int, permutation_key: np.uint64) -> NDArray[np.int64]:
    """Indices in [0, size) that stand at `positions` (also in [0, size)) of the permutation with this key."""
    half_bits = U64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = U64((1 << int(half_bits)) - 1)
    values = _rounds(positions.astype(U64), half_bits, mask, permutation_key)
    outside = values >= U64(size)
    while outside.any():
        values[outside] = _rounds(values[outside], half_bits, mask, permutation_key)
        outside = values >= U64(size)
    return values.astype(np.int64)


def chance(indices: NDArray[np.int64], draw_key: np.uint64) -> NDArray[np.float64]:
    """A number in [0, 1) for each index: the same wherever and whenever it is asked for."""
    return (mix64(indices.astype(U64) ^ draw_key) >> U64(11)).astype(np.float64) * 2.0**-53


def _rounds(
    values: NDArray[np.uint64], half_bits: np.uint64, mask: np.uint64, permutation_key: np.uint64
) -> NDArray[np.uint64]:
    left, right = values >> half_bits, values & mask
    for number in range(ROUNDS):
        round_key = mix64(np.array([permutation_key ^ U64(number)], dtype=U64))[0]
        left, right = right, left ^ (mix64(right ^ round_key) & mask)
    return (left << half_bits) | right
