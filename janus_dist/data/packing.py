"""Packing documents into rows, and dealing rows to ranks.

Best-fit decreasing: long documents first, each into the fullest row that still holds it; documents stay whole.
Invariants: every document is in exactly one row; no row holds more than its capacity; the result depends on the
lengths alone.
"""

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray


def pack(lengths: NDArray[np.int64], row_tokens: int) -> list[list[int]]:
    """Rows as lists of positions into `lengths`; as many rows as needed, none empty.

    Within a row documents stand in the order of their positions.
    """
    assert len(lengths) == 0 or lengths.max() <= row_tokens, "samples longer than a row are refused before planning"
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (free tokens, row), sorted, so that the best fit is the first that is enough
    for position in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[position])
        found = bisect_left(spaces, (length, -1))
        free, row = spaces.pop(found) if found < len(spaces) else (row_tokens, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(position)
        insort(spaces, (free - length, row))
    return [sorted(row) for row in rows]


def deal(costs: NDArray[np.float64], world: int, micro_rows: int) -> list[list[list[int]]]:
    """Rows by micro-step and rank: `dealt[micro_step][rank]` lists up to `micro_rows` rows, possibly none.

    Rows are sorted by cost and cut into bands of `world * micro_rows`, one band a micro-step, so that all ranks of a
    micro-step carry nearly the same cost; inside a band they are dealt forth and back. The first band is the largest,
    so that memory runs out at once or never.
    """
    order = np.argsort(-costs, kind="stable").tolist()
    band = world * micro_rows
    dealt: list[list[list[int]]] = []
    for start in range(0, max(len(order), 1), band):
        ranks: list[list[int]] = [[] for _ in range(world)]
        for place, row in enumerate(order[start : start + band]):
            lap, seat = divmod(place, world)
            ranks[seat if lap % 2 == 0 else world - 1 - seat].append(row)
        dealt.append(ranks)
    return dealt
