"""`janus plan`: forecast a run before it takes a GPU.

Invariant: nothing is written, and only manifests and index records are read.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from janus_dist.config.recipe import StageRecipe
from janus_dist.data.plan import Plan, open_shards
from janus_dist.estimate.forecast import Forecast, PhaseForecast, forecast
from janus_dist.monitor.console import count, duration, print_json

PRINT_INTERVAL_S = 10.0
"""Seconds between two lines about progress."""


def show_plan(
    recipe: StageRecipe, world: int | None, as_json: bool, every_step: bool, mfu: float | None, device: str | None
) -> None:
    """Print the forecast of a recipe for `world` ranks, or for `cluster.workers` ranks if it is None.

    Raises DataError when the shards cannot be read or do not fit the recipe.
    """
    plan = Plan.of(recipe, open_shards(recipe.data, recipe.mix))
    world, steps = world or recipe.cluster.workers, recipe.train.steps
    predicted = forecast(plan, steps, world, every_step, PlanningProgress(steps))
    # here: they import PyTorch, and other commands start in a second
    from janus_dist.estimate.budget import budget
    from janus_dist.estimate.memory import predict
    from janus_dist.train.precision import resolve_here

    recipe = resolve_here(recipe)
    memory, cost = predict(recipe, world), budget(recipe, predicted, mfu, device)
    if as_json:
        print_json(asdict(predicted) | {"plan_digest": plan.digest, "memory": asdict(memory), "budget": asdict(cost)})
        return
    kind = "device" if recipe.cluster.gpu else "process"
    for line in (
        *lines(predicted, recipe), "", *budget_lines(asdict(cost), world), "",
        *memory_lines(memory.device, kind), *memory_lines(memory.host, "host"),
    ):  # fmt: skip
        print(line)


def budget_lines(cost: dict[str, Any], world: int) -> Iterator[str]:
    """Yield the lines about time, checkpoints and reading; `cost` has the fields of `estimate.budget.Budget`."""
    yield f"arithmetic       {cost['tflop_per_step']:,.3g} TFLOP a step"
    yield f"  speed          {cost['speed_from']}"
    if cost["run_s"] is not None:
        yield f"  time           {duration(cost['run_s'])} without start and saves, {cost['step_s']:.2f} s a step"
        yield f"                 {cost['rank_hours']:,.1f} hours of a rank, on {world} ranks"
    yield (
        f"checkpoints      {cost['checkpoint_bytes'] / 2**30:,.3f} GiB each, {cost['checkpoints_kept']} kept at the end"
    )
    yield f"  stall          {cost['stall_s']:.2f} s a save, copied at an assumed speed"
    rate = "" if cost["node_read_bytes_s"] is None else f", {cost['node_read_bytes_s'] / 2**20:,.1f} MiB a second"
    nodes = f"{cost['nodes']} node{'s' if cost['nodes'] > 1 else ''}"
    yield f"read by a node   {cost['node_read_bytes'] / 2**30:,.3f} GiB{rate}, of {nodes}"


def memory_lines(sizes: dict[str, int], place: str) -> Iterator[str]:
    """Yield the lines about a rank's memory of one place (device, process or host): bytes by kind, largest first."""
    yield f"{place} memory of a rank, at least {sum(sizes.values()) / 2**30:.2f} GiB:"
    for kind, size in sorted(sizes.items(), key=lambda item: -item[1]):
        yield f"  {kind:<24}{size / 2**30:>9.3f} GiB"


class PlanningProgress:
    """Progress of the planning, printed to stderr every PRINT_INTERVAL_S."""

    def __init__(self, steps: int):
        self.steps, self.start, self.last_print = steps, time.monotonic(), time.monotonic()

    def __call__(self, planned: int) -> None:
        """Print the number of planned steps and the remaining time if the last line is old enough."""
        now = time.monotonic()
        if now - self.last_print > PRINT_INTERVAL_S:
            self.last_print = now
            left = duration((now - self.start) / planned * (self.steps - planned))
            print(f"{planned:,} of {self.steps:,} steps planned, {left} left", file=sys.stderr)


def lines(predicted: Forecast, recipe: StageRecipe) -> Iterator[str]:
    """Yield the lines of a forecast, for people."""
    yield f"{recipe.run.dir}: {predicted.steps:,} steps on {predicted.world} ranks, {count(predicted.tokens)} tokens"
    yield ""
    yield f"  {'stream':<14}{'source':<18}{'share':>7}{'tokens':>10}{'samples':>10}{'epochs':>9}{'GiB read':>10}"
    for source in predicted.sources:
        yield (
            f"  {source.stream:<14}{source.source:<18}{source.share:>7.1%}{count(source.tokens):>10}"
            f"{count(source.samples):>10}{source.epochs:>9.2f}{source.bytes / 2**30:>10.3f}"
        )
    yield ""
    yield (
        "based on all steps:"
        if predicted.sampled_steps == predicted.steps
        else f"based on {predicted.sampled_steps:,} of the steps (--all plans every step):"
    )
    batch = recipe.batch
    yield (
        f"  rows a step      {predicted.rows:.1f} on average, {predicted.most_rows} in the fullest, each of at most "
        f"{batch.row_tokens:,} tokens"
    )
    yield f"  micro-steps      {predicted.micro_steps:.2f} of {batch.micro_rows} rows a rank"
    yield f"  fill             {predicted.fill:.1%}"
    yield f"  texts cut        {predicted.cuts_per_document:.2f} a document"
    yield f"  straggler ratio  {predicted.straggler_ratio:.3f} (slowest rank over the mean, by batch.cost)"
    if len(predicted.phases) > 1:
        yield ""
        for phase in predicted.phases:
            shares = ", ".join(f"{source} {share:.1%}" for source, share in phase.shares.items() if share)
            yield f"  from step {phase.first_step:>9,}  {shares}"
            yield (
                f"  {'':<19}  fill {phase.fill:.1%}, straggler ratio {phase.straggler_ratio:.3f}, "
                f"{phase.most_rows} rows at most: {_fit(phase)}"
            )
    yield ""
    advice = "" if predicted.fill_that_fits is None else f"; smaller steps of batch.fill={predicted.fill_that_fits} fit"
    yield f"batch.rows={batch.rows}: {_fit(predicted)}{advice}"


def _fit(predicted: Forecast | PhaseForecast) -> str:
    """Return whether steps fit `batch.rows`, in words, and how certain that is."""
    is_all_planned = predicted.sampled_steps == predicted.steps
    match predicted.every_step_fits:
        case True:
            return "every step fits" + ("" if is_all_planned else ", by its quotas")
        case False:
            return f"{'' if is_all_planned else 'about '}{predicted.steps_beyond_rows:.1%} of the steps need more rows"
        case None:
            return f"all {predicted.sampled_steps:,} planned steps fit"
