"""Packing of the documents of a step into rows, and assignment of the rows to ranks.

There are two policies. `whole` is best-fit decreasing: long documents first, each into the fullest row that still has
room for it; rows are 96 to 99 % full in a mixture with text. `split_text` spreads images so that rows cost the same,
then pours text into the remaining room and cuts it where a row ends; rows are full, and the text after a cut loses the
context before it. Both policies cut text that is longer than a row.

A cut repeats one token: the last of a piece is the first of the next, as context without a label, so every label is
trained exactly once. Invariants: every label of every document is in exactly one row; no row holds more than its
capacity; the result depends only on the documents that are packed.
"""

import heapq
from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHORTEST_PIECE = 2
"""Tokens of the shortest piece: one token and the one that it predicts."""


@dataclass(frozen=True)
class PackedRows:
    """Pieces of documents in rows. A piece is a document or, where text was cut, a part of one."""

    document: NDArray[np.int64]
    """Index of each piece's document: [piece] int64."""
    first: NDArray[np.int64]
    """Index of each piece's first token in its document: [piece] int64."""
    tokens: NDArray[np.int64]
    """Tokens of each piece: [piece] int64."""
    row_starts: NDArray[np.int64]
    """First piece of each row, and the number of pieces: [row + 1] int64. Pieces are sorted by row."""

    @property
    def num_rows(self) -> int:
        """Return the number of rows."""
        return len(self.row_starts) - 1

    def row(self, row: int) -> range:
        """Return the indices of the pieces of a row."""
        return range(int(self.row_starts[row]), int(self.row_starts[row + 1]))


Piece = tuple[int, int, int]
"""(document, its first token, tokens)."""


def pack_whole(lengths: NDArray[np.int64], row_tokens: int) -> PackedRows:
    """Return documents packed into as many rows of `row_tokens` tokens as they need; each row keeps their order.

    `lengths`: [document] int64 tokens. A document longer than a row is cut into pieces of one row and a remainder; only
    text may be so long.
    """
    document, first, tokens = _cut_to_rows(lengths, row_tokens)
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # sorted (free tokens, row): the best fit is the first with enough free tokens
    for piece in np.argsort(-tokens, kind="stable").tolist():
        length = int(tokens[piece])
        best = bisect_left(spaces, (length, -1))
        free, row = spaces.pop(best) if best < len(spaces) else (row_tokens, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(piece)
        insort(spaces, (free - length, row))
    order = np.array([piece for row in rows for piece in sorted(row)], dtype=np.int64)
    starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return PackedRows(document[order], first[order], tokens[order], starts)


def pack_split(
    lengths: NDArray[np.int64], costs: NDArray[np.float64], is_text: NDArray[np.bool_], rows: int, row_tokens: int
) -> PackedRows:
    """Return documents packed into `rows` rows of `row_tokens` tokens, more rows when they do not fit.

    Images are spread whole by cost, then text is poured between them and cut where a row ends. `lengths`: [document]
    int64 tokens; `costs`: [document] float64 in units of a token; `is_text`: [document] bool, which may be cut.
    """
    filled = RowBuilder(rows, row_tokens)
    images, text = np.flatnonzero(~is_text), np.flatnonzero(is_text)
    filled.spread(images[np.argsort(-costs[images], kind="stable")].tolist(), lengths, costs)
    filled.pour(text[np.argsort(-lengths[text], kind="stable")].tolist(), lengths)
    return filled.packed()


class RowBuilder:
    """Rows that are being filled. Invariant: tokens of a row's pieces and its free tokens add up to `row_tokens`."""

    def __init__(self, rows: int, row_tokens: int):
        self.row_tokens = row_tokens
        self.pieces: list[list[Piece]] = [[] for _ in range(rows)]
        self.free_tokens = [row_tokens] * rows
        self.costs = [0.0] * rows
        """Cost of the documents that were spread, by row, in units of a token."""

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
        """Put each document whole into the cheapest row that has room, or into a new row.

        `lengths`: [document] int64 tokens; `costs`: [document] float64 in units of a token.
        """
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
        """Put documents one after another into the free tokens of the rows, cut where a row ends.

        The rows whose spread documents cost least are filled first: they get the longest text, whose attention costs
        most. `lengths`: [document] int64 tokens.
        """
        order = sorted(range(len(self.pieces)), key=lambda row: (self.costs[row], row))
        index = 0
        for document in documents:
            first, length = 0, int(lengths[document])
            while True:
                while index < len(order) and self.free_tokens[order[index]] < min(SHORTEST_PIECE, length - first):
                    index += 1
                if index == len(order):
                    order.append(self.open())
                row = order[index]
                tokens = min(length - first, self.free_tokens[row])
                self.add(row, (document, first, tokens))
                if first + tokens == length:
                    break
                first += tokens - 1  # the next piece starts with the token that this one ends with

    def packed(self) -> PackedRows:
        """Return the pieces of all rows that are not empty."""
        filled = [row for row in self.pieces if row]
        columns = np.array([piece for row in filled for piece in row], dtype=np.int64).reshape(-1, 3).T.copy()
        return PackedRows(columns[0], columns[1], columns[2], np.cumsum([0, *map(len, filled)], dtype=np.int64))


def surely_fit(image_tokens: int, text_tokens: int, longest: int, split_text: bool, rows: int, row_tokens: int) -> bool:
    """Return True when documents of these total tokens fit into `rows` rows for any lengths; False when unknown.

    `longest` is the number of tokens of the longest document that is kept whole.
    """
    # A row is opened when no other has room, that is, when each holds more than a row minus the longest document.
    whole_tokens = image_tokens if split_text else image_tokens + text_tokens
    whole_fit = whole_tokens <= rows * (row_tokens - min(longest, row_tokens) + 1)
    # Poured text loses at most two tokens a row: one to a cut, and one to room that no piece fits into.
    return whole_fit and image_tokens + text_tokens <= rows * (row_tokens - 2)


def deal(costs: NDArray[np.float64], world: int, micro_rows: int) -> list[list[list[int]]]:
    """Return rows by micro-step and rank: `dealt[micro_step][rank]` lists up to `micro_rows` rows, possibly none.

    `costs`: [row] float64. Rows are sorted by cost and cut into bands of `world * micro_rows`, one per micro-step, so
    that all ranks of a micro-step have nearly the same cost; inside a band they are dealt from the first rank to the
    last and back. The first band costs most, so memory runs out in the first micro-step or never.
    """
    order = np.argsort(-costs, kind="stable").tolist()
    band = world * micro_rows
    dealt: list[list[list[int]]] = []
    for start in range(0, max(len(order), 1), band):
        ranks: list[list[int]] = [[] for _ in range(world)]
        for index, row in enumerate(order[start : start + band]):
            lap, rank = divmod(index, world)
            ranks[rank if lap % 2 == 0 else world - 1 - rank].append(row)
        dealt.append(ranks)
    return dealt


def straggler_ratio(costs: NDArray[np.float64], dealt: list[list[list[int]]]) -> float:
    """Return the slowest rank's cost divided by the mean cost, both summed over micro-steps; 1 when no rank waits.

    `costs`: [row] float64.
    """
    slowest = sum(max(costs[rows].sum() for rows in ranks) for ranks in dealt)
    mean = sum(costs[[row for rows in ranks for row in rows]].sum() / len(ranks) for ranks in dealt)
    return float(slowest / mean) if mean else 1.0


def _cut_to_rows(
    lengths: NDArray[np.int64], row_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return (document, first token, tokens) of pieces of at most a row each; all [piece] int64.

    `lengths`: [document] int64 tokens.
    """
    num_pieces = np.maximum(1, -(-(lengths - 1) // (row_tokens - 1)))
    document = np.repeat(np.arange(len(lengths)), num_pieces)
    within = np.arange(len(document)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    first = within * (row_tokens - 1)
    return document, first, np.minimum(lengths[document] - first, row_tokens)
