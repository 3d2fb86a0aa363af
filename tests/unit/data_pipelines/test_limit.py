"""What a limit reads: evenly over the units, and all of what it asks for where the input has it."""

from itertools import pairwise

import pytest

from data_pipelines.limit import SPREAD, limit_line, read_evenly, share_out, spread
from data_pipelines.record import Unit


def test_a_limit_begins_with_units_that_lie_evenly_over_the_input():
    many = [Unit(f"/in/{place}", 10, records=1) for place in range(1_000)]
    ordered = spread(many)
    places = [many.index(unit) for unit in ordered[:SPREAD]]
    assert places[0] == 0 and {round((after - before) / (1_000 / SPREAD)) for before, after in pairwise(places)} == {1}
    assert sorted(ordered, key=many.index) == many and ordered == spread(many)


@pytest.mark.parametrize(
    ("number", "room", "expected"),
    [
        (7, [9, 9, 9], [3, 2, 2]),
        (7, [1, 9, 9], [1, 3, 3]),
        (7, [1, 1, 9], [1, 1, 5]),
        (20, [1, 2, 3], [1, 2, 3]),
        (0, [3], [0]),
        (3, [], []),
        (2, [5, 5, 5], [1, 1, 0]),
    ],
)
def test_what_is_shared_out(number, room, expected):
    assert share_out(number, room) == expected


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([9, 9, 9], 6, "aabbcc"),
        ([9, 1, 9], 7, "aaabcca"),
        ([1, 1, 1], 9, "abc"),
        ([9, 9, 9], 2, "ab"),
        ([1] * 40, 36, "".join(chr(97 + place) for place in range(36))),
    ],
)
def test_a_job_with_a_limit_reads_evenly_and_fills_up(sizes, limit, expected):
    readers = (iter(chr(97 + place) * size) for place, size in enumerate(sizes))
    assert "".join(read_evenly(readers, limit)) == expected


def test_what_is_read_is_said():
    units = [[Unit(f"/in/{place}", 1) for place in range(100)]]
    assert limit_line(units, [200]) == "reads 200 records, spread over 32 of 100 files"
    assert limit_line(units, [5]) == "reads 5 records, spread over 5 of 100 files"
    assert limit_line([[Unit("/in/a", 1, names=("0.jpg",))]], [5]) == "reads 5 records, spread over 1 of 1 folders"
