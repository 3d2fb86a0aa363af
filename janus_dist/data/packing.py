"""Packing the documents of a step into rows, and dealing rows to ranks.

Two policies. `whole`: best-fit decreasing, long documents first, each into the fullest row that still holds it; rows
are not quite full (96 to 99 % of a mixture with text). `split_text`: images are spread so that rows cost the same, then
text is poured into what is left and cut where a row ends; rows are full, and a cut costs the text behind it what stood
before. Either way text that is longer than a row is cut.

A cut repeats one token: the last of a piece is the first of the next, where it is context alone, so that every label is
trained exactly once. Invariants: every label of every document is in exactly one row; no row holds more than its
capacity; the result depends on what is packed alone.
"""

import heapq
from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHORTEST_PIECE = 2  # a token and the one that it predicts


@dataclass(frozen=True)
class Packed:
    """Pieces of documents in rows. A piece is a document or, where text was cut, a part of one."""

    document: NDArray[np.int64]
    """[piece] which document."""
    first: NDArray[np.int64]
    """[piece] the token of the document that it starts with."""
    tokens: NDArray[np.int64]
    """[piece] how many tokens it has."""
    row_starts: NDArray[np.int64]
    """[row + 1] first piece of each row: pieces stand row after row."""

    @property
    def num_rows(self) -> int:
        return len(self.row_starts) - 1

    def row(self, number: int) -> range:
        """The pieces of a row."""
        return range(int(self.row_starts[number]), int(self.row_starts[number + 1]))


Piece = tuple[int, int, int]
"""(document, its first token, tokens)."""


def pack_whole(lengths: NDArray[np.int64], row_tokens: int) -> Packed:
    """As many rows as documents of these lengths need; within a row they stand in their order.

    Documents longer than a row are cut into pieces of a row each and what is left; only text may be so long.
    """
    document, first, tokens = _pieces_of_a_row(lengths, row_tokens)
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (free tokens, row), sorted, so that the best fit is the first that is enough
    for piece in np.argsort(-tokens, kind="stable").tolist():
        length = int(tokens[piece])
        found = bisect_left(spaces, (length, -1))
        free, row = spaces.pop(found) if found < len(spaces) else (row_tokens, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(piece)
        insort(spaces, (free - length, row))
    order = np.array([piece for row in rows for piece in sorted(row)], dtype=np.int64)
    starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Packed(document[order], first[order], tokens[order], starts)


def pack_split(
    lengths: NDArray[np.int64], costs: NDArray[np.float64], is_text: NDArray[np.bool_], rows: int, row_tokens: int
) -> Packed:
    """Return documents packed into `rows` rows of `row_tokens` tokens, more rows when they do not fit.

    Images are spread whole by cost, then text is poured between them and cut where a row ends. `lengths` are
    [document] int64 tokens, `costs` [document] float64 in units of a token; `is_text` [document] may be cut.
    """
    filled = Rows(rows, row_tokens)
    images, text = np.flatnonzero(~is_text), np.flatnonzero(is_text)
    filled.spread(images[np.argsort(-costs[images], kind="stable")].tolist(), lengths, costs)
    filled.pour(text[np.argsort(-lengths[text], kind="stable")].tolist(), lengths)
    return filled.packed()


class Rows:
    """Rows that are being filled. Invariant: tokens of a row's pieces and its free tokens add up to `row_tokens`."""

    def __init__(self, rows: int, row_tokens: int):
        self.row_tokens = row_tokens
        self.pieces: list[list[Piece]] = [[] for _ in range(rows)]
        self.free_tokens = [row_tokens] * rows
        self.costs = [0.0] * rows
        """Of the documents that were spread, by row, in units of a token."""

    def open(self) -> int:
        """Add an empty row and return its number."""
        self.pieces.append([])
        self.free_tokens.append(self.row_tokens)
        self.costs.append(0.0)
        return len(self.pieces) - 1

    def add(self, row: int, piece: Piece) -> None:
        """Put a piece into a row that has room for it."""
        self.pieces[row].append(piece)
        self.free_tokens[row] -= piece[2]

    def spread(self, documents: list[int], lengths: NDArray[np.int64], costs: NDArray[np.float64]) -> None:
        """Put each document whole into the cheapest row that has room; into a new row when none has."""
        cheapest = [(0.0, row) for row in range(len(self.pieces))]  # a heap of (cost, row)
        for document in documents:
            length, too_full = int(lengths[document]), []
            while cheapest and self.free_tokens[cheapest[0][1]] < length:
                too_full.append(heapq.heappop(cheapest))
            row = heapq.heappop(cheapest)[1] if cheapest else self.open()
            self.add(row, (document, 0, length))
            self.costs[row] += float(costs[document])
            for entry in (*too_full, (self.costs[row], row)):
                heapq.heappush(cheapest, entry)

    def pour(self, documents: list[int], lengths: NDArray[np.int64]) -> None:
        """Put documents one behind the other into the room that is left, cut where a row ends.

        The rows whose spread documents cost least come first: the longest text, whose attention costs most, goes there.
        """
        order = sorted(range(len(self.pieces)), key=lambda row: (self.costs[row], row))
        place = 0
        for document in documents:
            first, length = 0, int(lengths[document])
            while True:
                while place < len(order) and self.free_tokens[order[place]] < min(SHORTEST_PIECE, length - first):
                    place += 1
                if place == len(order):
                    order.append(self.open())
                row = order[place]
                tokens = min(length - first, self.free_tokens[row])
                self.add(row, (document, first, tokens))
                if first + tokens == length:
                    break
                first += tokens - 1  # the next piece starts with the token that this one ends with

    def packed(self) -> Packed:
        """Return the pieces of all rows that have any."""
        filled = [row for row in self.pieces if row]
        columns = np.array([piece for row in filled for piece in row], dtype=np.int64).reshape(-1, 3).T.copy()
        return Packed(columns[0], columns[1], columns[2], np.cumsum([0, *map(len, filled)], dtype=np.int64))


def surely_fit(image_tokens: int, text_tokens: int, longest: int, split_text: bool, rows: int, row_tokens: int) -> bool:
    """Whether documents of at most so many tokens together fit `rows` rows whatever their lengths are.

    `longest` are the tokens of the longest document that is kept whole. False says nothing: they may fit.
    """
    # A row is opened when no other has room, that is when each holds more than a row less the longest document.
    whole_tokens = image_tokens if split_text else image_tokens + text_tokens
    whole_fit = whole_tokens <= rows * (row_tokens - min(longest, row_tokens) + 1)
    # Poured text loses at most two tokens a row: one to a cut, and one to room that no piece fits into.
    return whole_fit and image_tokens + text_tokens <= rows * (row_tokens - 2)


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


def straggler_ratio(costs: NDArray[np.float64], dealt: list[list[list[int]]]) -> float:
    """Cost of the slowest rank over the mean of all, summed over micro-steps: 1 when nobody waits."""
    slowest = sum(max(costs[rows].sum() for rows in ranks) for ranks in dealt)
    mean = sum(costs[[row for rows in ranks for row in rows]].sum() / len(ranks) for ranks in dealt)
    return float(slowest / mean) if mean else 1.0


def _pieces_of_a_row(
    lengths: NDArray[np.int64], row_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(document, first, tokens) of documents cut to at most a row each."""
    numbers = np.maximum(1, -(-(lengths - 1) // (row_tokens - 1)))
    document = np.repeat(np.arange(len(lengths)), numbers)
    within = np.arange(len(document)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    first = within * (row_tokens - 1)
    return document, first, np.minimum(lengths[document] - first, row_tokens)
