"""What a plan will do, before anything is trained: tokens and epochs of each source, rows, fill, balance, bytes.

Invariant: totals are those of the plan itself; what is a mean over planned steps says over how many; that every step
fits its rows is said only where it was shown, by planning every one or by the quotas.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus_dist.config.streams import SPECS
from janus_dist.data import packing
from janus_dist.data.plan import Plan

EVERY_STEP = 1_000
"""Runs of up to so many steps are planned whole; a step of two million tokens takes 10 ms."""
SAMPLED_STEPS = 128
"""Of each phase of the mixture of a longer run, its first and last step among them."""


WORK = ("tokens", "squared_lengths", "images", "text_labels", "image_labels")


@dataclass(frozen=True)
class SourceForecast:
    """One source over the whole run."""

    stream: str
    source: str
    samples: int
    tokens: int
    epochs: float
    share: float
    """Share of all tokens."""
    bytes: int
    """Bytes to read, from the mean over planned steps."""


@dataclass(frozen=True)
class PhaseForecast:
    """The steps between two changes of the mixture; means are over those of them that were planned."""

    first_step: int
    steps: int
    sampled_steps: int
    rows: float
    most_rows: int
    steps_beyond_rows: float
    """Share of steps that take more rows than `batch.rows`."""
    every_step_fits: bool | None
    """`batch.rows`: True and False are certain, None where all planned steps fit and not every one was planned."""
    fill: float
    straggler_ratio: float
    shares: dict[str, float]
    """Share of the planned tokens by source."""


@dataclass(frozen=True)
class Forecast:
    """A run as planned; means are over `sampled_steps` planned steps, each phase weighted by its length."""

    steps: int
    world: int
    tokens: int
    sampled_steps: int
    rows: float
    most_rows: int
    steps_beyond_rows: float
    """Share of steps that take more rows than `batch.rows`."""
    every_step_fits: bool | None
    """True and False are certain; None when all planned steps fit but not every step was planned."""
    micro_steps: float
    fill: float
    cuts_per_document: float
    straggler_ratio: float
    work: dict[str, float]
    """What a step holds of everything that takes time, by the names of `model.flops.Counts`."""
    fill_that_fits: float | None
    """The `batch.fill` with which all planned steps would fit `batch.rows`, by their overshoot; None when they do."""
    sources: tuple[SourceForecast, ...]
    phases: tuple[PhaseForecast, ...]


def forecast(
    plan: Plan, steps: int, world: int, every_step: bool = False, say: Callable[[int], None] = lambda planned: None
) -> Forecast:
    """Return plan a run of `steps` steps for `world` ranks. Raises DataError when an index cannot be read.

    All steps, when they are at most `EVERY_STEP` or `every_step` asks for it, else some of each phase of the mixture.
    `say` is told how many were planned, after each.
    """
    starts = [phase.first_step for phase in plan.mixture.phases if phase.first_step < steps]
    spans = [range(first, stop) for first, stop in zip(starts, [*starts[1:], steps], strict=True)]
    looks = _look_at_phases(plan, spans, world, every_step or steps <= EVERY_STEP, say)
    planned = list(itertools.chain.from_iterable(looks))
    weights = [len(span) / len(phase) / steps for span, phase in zip(spans, looks, strict=True) for _ in phase]

    def mean(name: str) -> Any:
        return np.average([each[name] for each in planned], axis=0, weights=weights)

    most_rows = max(each["rows"] for each in planned)
    phases = tuple(_phase(plan, number, spans[number], phase) for number, phase in enumerate(looks))
    sources = _sources(plan, steps, mean("bytes") * steps)
    return Forecast(
        steps=steps,
        world=world,
        tokens=sum(source.tokens for source in sources),
        sampled_steps=len(planned),
        rows=float(mean("rows")),
        most_rows=most_rows,
        steps_beyond_rows=float(mean("beyond_rows")),
        every_step_fits=_all_fit([phase.every_step_fits for phase in phases]),
        micro_steps=float(mean("micro_steps")),
        fill=float(mean("fill")),
        cuts_per_document=float(mean("cuts_per_document")),
        straggler_ratio=float(mean("straggler_ratio")),
        work={name: float(mean(name)) for name in WORK},
        fill_that_fits=_fill_that_fits(plan, planned) if most_rows > plan.batch.rows else None,
        sources=sources,
        phases=phases,
    )


def _look_at_phases(
    plan: Plan, spans: Sequence[range], world: int, every_step: bool, say: Callable[[int], None]
) -> list[list[dict[str, Any]]]:
    """Return plan every step of each phase, or some of it; return what `_look_at` says of each, by phase."""
    looks: list[list[dict[str, Any]]] = []
    for span in spans:
        looks.append([])
        for step in span if every_step else _spread(span):
            looks[-1].append(_look_at(plan, step, world))
            say(sum(map(len, looks)))
    return looks


def _sources(plan: Plan, steps: int, bytes_read: NDArray[np.float64]) -> tuple[SourceForecast, ...]:
    """Return what a run takes of each source; `bytes_read` [source] are to be read in all steps."""
    by_source = plan.cursors(steps)
    cursors = [by_source[lane.source] for lane in plan.lanes]
    tokens = sum(cursor["tokens"] for cursor in cursors)
    return tuple(
        SourceForecast(
            stream=lane.stream,
            source=lane.source,
            samples=cursor["samples"],
            tokens=cursor["tokens"],
            epochs=cursor["tokens"] / shards.manifest.tokens,
            share=cursor["tokens"] / max(1, tokens),
            bytes=round(size),
        )
        for lane, shards, cursor, size in zip(plan.lanes, plan.shards, cursors, bytes_read.tolist(), strict=True)
    )


def _spread(span: range) -> list[int]:
    """Return `SAMPLED_STEPS` steps of a phase including its first and last; all steps of a short phase."""
    return np.unique(np.linspace(span[0], span[-1], min(len(span), SAMPLED_STEPS)).astype(int)).tolist()


def _phase(plan: Plan, number: int, span: range, found: Sequence[dict[str, Any]]) -> PhaseForecast:
    lane_tokens = np.sum([each["lane_tokens"] for each in found], axis=0)
    shares = (lane_tokens / max(1, lane_tokens.sum())).tolist()
    planned_fit = not any(each["beyond_rows"] for each in found)
    is_certain = len(found) == len(span) or not planned_fit or _surely_fits(plan, number)
    return PhaseForecast(
        first_step=span[0],
        steps=len(span),
        sampled_steps=len(found),
        rows=float(np.mean([each["rows"] for each in found])),
        most_rows=max(each["rows"] for each in found),
        steps_beyond_rows=float(np.mean([each["beyond_rows"] for each in found])),
        every_step_fits=planned_fit if is_certain else None,
        fill=float(np.mean([each["fill"] for each in found])),
        straggler_ratio=float(np.mean([each["straggler_ratio"] for each in found])),
        shares={lane.source: share for lane, share in zip(plan.lanes, shares, strict=True)},
    )


def _surely_fits(plan: Plan, phase: int) -> bool:
    """Return whether quotas and longest samples exclude a step of more than `batch.rows` rows in a phase."""
    images = text = longest_whole = 0
    split_text = plan.batch.packing == "split_text"
    for lane, shards, quota in zip(plan.lanes, plan.shards, plan.mixture.phases[phase].per_step, strict=True):
        if quota == 0:
            continue
        longest = int(shards.manifest.shards.longest_tokens.max())
        # Rounding adds less than a unit at either end of a step, and the last sample may reach beyond the quota.
        tokens = math.ceil(quota) - 1 + longest if plan.mixture.unit == "tokens" else (math.ceil(quota) + 1) * longest
        if SPECS[lane.stream].is_cut:
            text += tokens
        else:
            images += tokens
        if not (SPECS[lane.stream].is_cut and split_text):
            longest_whole = max(longest_whole, longest)
    return packing.surely_fit(images, text, longest_whole, split_text, plan.batch.rows, plan.batch.row_tokens)


def _all_fit(phases: Sequence[bool | None]) -> bool | None:
    if False in phases:
        return False
    return None if None in phases else True


def _look_at(plan: Plan, step: int, world: int) -> dict[str, Any]:
    planned = plan.step(step)
    dealt = packing.deal(planned.row_costs, world, plan.batch.micro_rows)
    rows, lanes = planned.rows.num_rows, len(plan.lanes)
    image_labels = int(planned.record["image_ids"].sum(dtype=np.int64))
    return {
        "rows": rows,
        "beyond_rows": rows > plan.batch.rows,
        "micro_steps": len(dealt),
        "tokens": planned.num_tokens,
        "fill": planned.num_tokens / (rows * plan.batch.row_tokens),
        "cuts_per_document": planned.num_cuts / max(1, planned.num_documents),
        "straggler_ratio": packing.straggler_ratio(planned.row_costs, dealt),
        "squared_lengths": int((planned.rows.tokens.astype(np.int64) ** 2).sum()),
        "images": int(planned.record["images"].sum(dtype=np.int64)),
        "text_labels": sum(planned.labels.values()) - image_labels,
        "image_labels": image_labels,
        "bytes": np.bincount(planned.lane, planned.record["bytes"], lanes),  # exact: far below 2**53
        "lane_tokens": np.bincount(planned.lane, planned.record["tokens"], lanes),
    }


def _fill_that_fits(plan: Plan, found: Sequence[dict[str, Any]]) -> float:
    """Return the planned fill divided by the worst overshoot of `batch.rows`, rounded down to 0.01."""
    capacity = plan.batch.rows * plan.batch.row_tokens
    asked = float(np.mean([each["tokens"] for each in found])) / capacity
    worst = max(each["rows"] for each in found) / plan.batch.rows
    return int(100 * asked / worst) / 100
