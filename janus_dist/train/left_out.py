"""The record of steps that a run left out after a rollback, with their samples, so that a user can inspect them.

Invariant: a failure to write the record never ends a run; the record is incomplete when samples cannot be read.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from janus_dist.data.plan import Plan
from janus_dist.errors import DataError
from janus_dist.inspection.inspect import read_samples

MAX_LISTED_STEPS = 16
"""Maximum number of steps whose samples are listed: the last steps, which include the skipped ones."""

log = logging.getLogger("janus_dist")


def plan_step(step: int, left_out: Iterable[Sequence[int]]) -> int:
    """Return the step of the plan that a run trains at its own `step`: `step` plus the steps left out before it."""
    for first, stop in left_out:
        step += stop - first if first <= step else 0
    return step


def write_left_out(path: Path, plan: Plan, first: int, stop: int) -> None:
    """Append the sources, sample numbers and keys of the plan's steps [first, stop), one line for each step.

    Only the last MAX_LISTED_STEPS steps are listed. A failure is logged.
    """
    try:
        with path.open("a") as file:
            for step in range(max(first, stop - MAX_LISTED_STEPS), stop):
                file.write(json.dumps({"plan_step": step, "sources": _samples(plan, step)}) + "\n")
    except (OSError, DataError) as error:
        log.warning("%s is not complete: %s", path, error)


def _samples(plan: Plan, step: int) -> dict[str, list[dict[str, object]]]:
    """Return the sample numbers and keys of a step of the plan, by source."""
    planned, listed = plan.step(step), dict[str, list[dict[str, object]]]()
    for lane_index, shards in enumerate(plan.shards):
        numbers = {int(sample) for sample, lane in zip(planned.sample, planned.lane, strict=True) if lane == lane_index}
        if numbers:
            samples = read_samples(shards, numbers)
            source = plan.lanes[lane_index].source
            listed[source] = [{"sample": sample.number, "key": sample.key} for sample in samples]
    return listed
