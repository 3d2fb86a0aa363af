"""What a run left out: the samples of steps that it went back over, for whoever looks for what was wrong with them.

Invariant: writing it never fails a run; what cannot be read is left out of the record.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from janus_dist.data.plan import Plan
from janus_dist.errors import DataError
from janus_dist.inspection.inspect import read_samples

MOST_STEPS = 16
"""Steps whose samples are listed, the last ones: those that were skipped are among them."""

log = logging.getLogger("janus_dist")


def plan_step(step: int, left_out: Iterable[Sequence[int]]) -> int:
    """The step of the plan that is a run's own `step`: as many more as were left out before it."""
    for first, stop in left_out:
        step += stop - first if first <= step else 0
    return step


def write_left_out(path: Path, plan: Plan, first: int, stop: int) -> None:
    """Append a line for each of the last steps of a range of the plan: its sources, sample numbers and keys."""
    try:
        with path.open("a") as file:
            for step in range(max(first, stop - MOST_STEPS), stop):
                file.write(json.dumps({"plan_step": step, "sources": _samples(plan, step)}) + "\n")
    except (OSError, DataError) as error:
        log.warning("%s is not complete: %s", path, error)


def _samples(plan: Plan, step: int) -> dict[str, list[dict[str, object]]]:
    planned, found = plan.step(step), dict[str, list[dict[str, object]]]()
    for number, shards in enumerate(plan.shards):
        mine = {int(sample) for sample, lane in zip(planned.sample, planned.lane, strict=True) if lane == number}
        if mine:
            read = read_samples(shards, mine)
            found[plan.lanes[number].source] = [{"sample": one.number, "key": one.key} for one in read]
    return found
