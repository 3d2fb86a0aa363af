"""Packing: every label once, full rows, and a forecast of what fits that is never wrong."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from janus_dist.data import packing

lengths_and_kinds = st.lists(st.tuples(st.integers(1, 100), st.booleans()), max_size=60)


@given(documents=lengths_and_kinds, policy=st.sampled_from(["whole", "split_text"]), longer=st.integers(1, 7))
def test_packing_trains_every_label_once(documents, policy, longer):
    """Text up to seven rows long is cut, what has images stays whole, and no label is lost or there twice."""
    is_text = np.array([text for _, text in documents], dtype=bool)
    lengths = np.array([size * (longer if text else 1) for size, text in documents], dtype=np.int64)
    if policy == "whole":
        packed = packing.pack_whole(lengths, 100)
    else:
        packed = packing.pack_split(lengths, lengths.astype(float), is_text, 4, 100)
    assert packed.row_starts[0] == 0 and packed.row_starts[-1] == len(packed.document)
    labels: list[list[int]] = [[] for _ in documents]
    for row in range(packed.num_rows):
        pieces = packed.row(row)
        assert 0 < packed.tokens[pieces].sum() <= 100
        for piece in pieces:
            document, first = int(packed.document[piece]), int(packed.first[piece])
            labels[document] += range(first + 1, first + int(packed.tokens[piece]))
            if not is_text[document]:
                assert (first, packed.tokens[piece]) == (0, lengths[document])
    for length, found in zip(lengths, labels, strict=True):
        assert sorted(found) == list(range(1, length))
    cuts = len(packed.document) - len(documents)
    assert packed.tokens.sum() == lengths.sum() + cuts  # a cut repeats one token


@given(documents=lengths_and_kinds, policy=st.sampled_from(["whole", "split_text"]), longer=st.integers(1, 7))
def test_what_surely_fits_fits(documents, policy, longer):
    """The smallest number of rows of which it is said is never too small."""
    is_text = np.array([text for _, text in documents], dtype=bool)
    lengths = np.array([size * (longer if text else 1) for size, text in documents], dtype=np.int64)
    split = policy == "split_text"
    whole = lengths[~is_text] if split else lengths
    asked = int(lengths[~is_text].sum()), int(lengths[is_text].sum()), int(whole.max(initial=0)), split
    rows = next(rows for rows in range(10**6) if packing.surely_fit(*asked, rows, 100))
    if split:
        packed = packing.pack_split(lengths, lengths.astype(float), is_text, rows, 100)
    else:
        packed = packing.pack_whole(lengths, 100)
    assert packed.num_rows <= rows


def test_packing_whole_documents_fills_rows():
    lengths = np.random.default_rng(0).integers(10, 120, 400)
    packed = packing.pack_whole(lengths, 512)
    assert lengths.sum() / (512 * packed.num_rows) > 0.97
