"""Selection of the records that `--limit` reads, spread evenly over an input's units.

Invariant: the selection depends only on the units and the limit.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TypeVar

from data_pipelines.record import Unit

SPREAD = 32
"""Units that a limited job reads from first, spread evenly over the input."""

T = TypeVar("T")


def spread(units: Sequence[Unit]) -> list[Unit]:
    """Return the units in an order whose first SPREAD are spread evenly over all; the others follow in their order.

    The order depends only on the number of units.
    """
    count = len(units)
    first = sorted({index * count // SPREAD for index in range(SPREAD)}) if count > SPREAD else range(count)
    chosen = set(first)
    return [*(units[index] for index in first), *(unit for index, unit in enumerate(units) if index not in chosen)]


def share_out(total: int, capacities: Sequence[int]) -> list[int]:
    """Return the shares of a total as even as the capacities allow; they add up to the total unless it exceeds them."""
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
    """Yield up to `limit` items, the same number from each of the first SPREAD readers as far as they have them.

    If some have too few, the others of them contribute more, and then the readers that follow.
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
    """Return a line about what the jobs of a limited run read. `units`, `limits`: those of each job."""
    paths = {unit.path for job in units for unit in job}
    first = {unit.path for job, limit in zip(units, limits, strict=True) for unit in job[: min(SPREAD, limit)]}
    kind = "folder" if any(unit.names for job in units for unit in job) else "file"
    return f"reads {sum(limits):,} records, spread over {len(first):,} of {len(paths):,} {kind}s"
