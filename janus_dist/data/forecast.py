"""What a plan will do, before anything is trained: tokens and epochs of each source, rows, fill, balance, bytes.

Invariant: totals are those of the plan itself; what is a mean over some planned steps says over how many.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from janus_dist.data import packing
from janus_dist.data.plan import Plan

SAMPLED_STEPS = 64


@dataclass(frozen=True)
class SourceForecast:
    """One source over the whole run."""

    stream: str
    source: str
    samples: int
    tokens: int
    epochs: float
    share: float
    """Of all tokens."""
    bytes: int
    """To be read, by the mean over sampled steps."""


@dataclass(frozen=True)
class Forecast:
    """A run as planned; means are over `sampled_steps` steps spread over it."""

    steps: int
    world: int
    tokens: int
    sampled_steps: int
    rows: float
    most_rows: int
    steps_beyond_rows: float
    """Share of steps that take more rows than `batch.rows`."""
    micro_steps: float
    fill: float
    cuts_per_document: float
    straggler_ratio: float
    fill_that_fits: float | None
    """The `batch.fill` with which all sampled steps would fit `batch.rows`, by their overshoot; None when they do."""
    sources: tuple[SourceForecast, ...]


def forecast(plan: Plan, steps: int, world: int) -> Forecast:
    """Plan `SAMPLED_STEPS` of `steps` steps for `world` ranks; DataError when an index cannot be read."""
    sampled = np.unique(np.linspace(0, steps - 1, min(steps, SAMPLED_STEPS)).astype(int)).tolist()
    found: list[dict[str, Any]] = [_look_at(plan, step, world) for step in sampled]
    mean = {name: float(np.mean([each[name] for each in found])) for name in found[0] if name != "bytes"}
    most_rows = max(each["rows"] for each in found)
    cursors = plan.cursors(steps)
    tokens = {name: cursor["tokens"] for name, cursor in cursors.items()}
    read = np.mean([each["bytes"] for each in found], axis=0)
    return Forecast(
        steps=steps,
        world=world,
        tokens=sum(tokens.values()),
        sampled_steps=len(sampled),
        rows=mean["rows"],
        most_rows=most_rows,
        steps_beyond_rows=float(np.mean([each["rows"] > plan.batch.rows for each in found])),
        micro_steps=mean["micro_steps"],
        fill=mean["fill"],
        cuts_per_document=mean["cuts_per_document"],
        straggler_ratio=mean["straggler_ratio"],
        fill_that_fits=_fill_that_fits(plan, found) if most_rows > plan.batch.rows else None,
        sources=tuple(
            SourceForecast(
                lane.stream,
                lane.source,
                cursors[lane.source]["samples"],
                tokens[lane.source],
                tokens[lane.source] / shards.manifest.tokens,
                tokens[lane.source] / max(1, sum(tokens.values())),
                int(read[number] * steps),
            )
            for number, (lane, shards) in enumerate(zip(plan.lanes, plan.shards, strict=True))
        ),
    )


def _look_at(plan: Plan, step: int, world: int) -> dict[str, Any]:
    planned = plan.step(step)
    dealt = packing.deal(planned.row_costs, world, plan.batch.micro_rows)
    rows = planned.rows.num_rows
    return {
        "rows": rows,
        "micro_steps": len(dealt),
        "tokens": planned.num_tokens,
        "fill": planned.num_tokens / (rows * plan.batch.row_tokens),
        "cuts_per_document": planned.num_cuts / max(1, planned.num_documents),
        "straggler_ratio": packing.straggler_ratio(planned.row_costs, dealt),
        "bytes": [
            int(planned.record["bytes"][planned.lane == lane].sum(dtype=np.int64)) for lane in range(len(plan.lanes))
        ],
    }


def _fill_that_fits(plan: Plan, found: Sequence[dict[str, Any]]) -> float:
    """What a step asks for now, less by as much as the worst step is beyond its rows."""
    capacity = plan.batch.rows * plan.batch.row_tokens
    asked = float(np.mean([each["tokens"] for each in found])) / capacity
    worst = max(each["rows"] for each in found) / plan.batch.rows
    return int(100 * asked / worst) / 100
