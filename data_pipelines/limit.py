"""What `--limit` reads: so many records, spread evenly over an input's units.

Invariant: which records are read is a function of the units and the limit alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TypeVar

from data_pipelines.record import Unit

SPREAD = 32
"""Units that a limited job reads from first, which lie evenly over the input."""

T = TypeVar("T")


def spread(units: Sequence[Unit]) -> list[Unit]:
    """Order units so that those at the beginning lie evenly over all: every SPREAD-th part's first one, then the rest.

    The order depends on the number of units alone.
    """
    count = len(units)
    first = sorted({index * count // SPREAD for index in range(SPREAD)}) if count > SPREAD else range(count)
    chosen = set(first)
    return [*(units[index] for index in first), *(unit for index, unit in enumerate(units) if index not in chosen)]


def share_out(total: int, capacities: Sequence[int]) -> list[int]:
    """Share a number among parts as evenly as their room allows; all of it where there is room for it."""
    shares, remaining, open_parts = [0] * len(capacities), total, list(range(len(capacities)))
    while remaining and open_parts:
        base, extra = divmod(remaining, len(open_parts))
        for index, part in enumerate(open_parts):
            amount = min(base + (index < extra), capacities[part] - shares[part])
            shares[part] += amount
            remaining -= amount
        open_parts = [part for part in open_parts if shares[part] < capacities[part]]
    return shares


def read_evenly(readers: Iterable[Iterator[T]], limit: int) -> Iterator[T]:
    """Yield up to `limit` items, of the first SPREAD readers equally many each as far as they have them.

    What some lack, the others of them make up for, and then the readers that follow.
    """
    waiting = iter(readers)
    current, remaining = list(islice(waiting, SPREAD)), limit
    while remaining and current:
        shares = share_out(remaining, [remaining] * len(current))
        unfinished: list[Iterator[T]] = []
        for reader, share in zip(current, shares, strict=True):
            before = remaining
            for item in islice(reader, share):
                remaining -= 1
                yield item
            if share and before - remaining == share:
                unfinished.append(reader)
        current = unfinished
    yield from islice(chain.from_iterable(waiting), remaining)


def limit_line(units: Sequence[Sequence[Unit]], limits: Sequence[int]) -> str:
    """Return in words what the jobs of a limited run read; `units` and `limits` by job."""
    paths = {unit.path for job in units for unit in job}
    first = {unit.path for job, limit in zip(units, limits, strict=True) for unit in job[: min(SPREAD, limit)]}
    kind = "folder" if any(unit.names for job in units for unit in job) else "file"
    return f"reads {sum(limits):,} records, spread over {len(first):,} of {len(paths):,} {kind}s"
