"""`janus plan`: what a run will do, before a GPU is taken.

Invariant: nothing is written and nothing but manifests and index records is read.
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

SAY_EVERY_S = 10.0


def show_plan(
    recipe: StageRecipe, world: int | None, as_json: bool, every_step: bool, mfu: float | None, device: str | None
) -> None:
    """Print the forecast of a recipe for `world` ranks, or those that it asks for."""
    plan = Plan.of(recipe, open_shards(recipe.data, recipe.mix))
    world, steps = world or recipe.cluster.workers, recipe.train.steps
    found = forecast(plan, steps, world, every_step, Progress(steps))
    # here: they take PyTorch, and other commands start in a second
    from janus_dist.estimate.budget import budget
    from janus_dist.estimate.memory import predict
    from janus_dist.train.precision import resolve_here

    recipe = resolve_here(recipe)
    memory, taken = predict(recipe, world), budget(recipe, found, mfu, device)
    if as_json:
        print_json(asdict(found) | {"plan_digest": plan.digest, "memory": asdict(memory), "budget": asdict(taken)})
        return
    said = [*lines(found, recipe), "", *budget_lines(asdict(taken), world), ""]
    where = "device" if recipe.cluster.gpu else "process"
    for line in [*said, *memory_lines(memory.device, where), *memory_lines(memory.host, "host")]:
        print(line)


def budget_lines(taken: dict[str, Any], world: int) -> Iterator[str]:
    """What a run takes, by the fields of `train.budget.Budget`."""
    yield f"arithmetic       {taken['tflop_per_step']:,.3g} TFLOP a step"
    yield f"  speed          {taken['speed_from']}"
    if taken["run_s"] is not None:
        yield f"  time           {duration(taken['run_s'])} without start and saves, {taken['step_s']:.2f} s a step"
        yield f"                 {taken['rank_hours']:,.1f} hours of a rank, on {world} ranks"
    yield (
        f"checkpoints      {taken['checkpoint_bytes'] / 2**30:,.3f} GiB each, "
        f"{taken['checkpoints_kept']} kept at the end"
    )
    yield f"  stall          {taken['stall_s']:.2f} s a save, copied at an assumed speed"
    rate = "" if taken["node_read_bytes_s"] is None else f", {taken['node_read_bytes_s'] / 2**20:,.1f} MiB a second"
    nodes = f"{taken['nodes']} node{'s' if taken['nodes'] > 1 else ''}"
    yield f"read by a node   {taken['node_read_bytes'] / 2**30:,.3f} GiB{rate}, of {nodes}"


def memory_lines(kinds: dict[str, int], where: str) -> Iterator[str]:
    """What a rank needs somewhere, in bytes by kind, largest first."""
    yield f"{where} memory of a rank, at least {sum(kinds.values()) / 2**30:.2f} GiB:"
    for kind, size in sorted(kinds.items(), key=lambda one: -one[1]):
        yield f"  {kind:<24}{size / 2**30:>9.3f} GiB"


class Progress:
    """A line on stderr now and then: how many steps were planned."""

    def __init__(self, steps: int):
        self.steps, self.began, self.said = steps, time.monotonic(), time.monotonic()

    def __call__(self, planned: int) -> None:
        now = time.monotonic()
        if now - self.said > SAY_EVERY_S:
            self.said = now
            left = duration((now - self.began) / planned * (self.steps - planned))
            print(f"{planned:,} of {self.steps:,} steps planned, {left} left", file=sys.stderr)


def lines(found: Forecast, recipe: StageRecipe) -> Iterator[str]:
    """The forecast for people."""
    yield f"{recipe.run.dir}: {found.steps:,} steps on {found.world} ranks, {count(found.tokens)} tokens"
    yield ""
    yield f"  {'stream':<14}{'source':<18}{'share':>7}{'tokens':>10}{'samples':>10}{'epochs':>9}{'GiB read':>10}"
    for source in found.sources:
        yield (
            f"  {source.stream:<14}{source.source:<18}{source.share:>7.1%}{count(source.tokens):>10}"
            f"{count(source.samples):>10}{source.epochs:>9.2f}{source.bytes / 2**30:>10.3f}"
        )
    yield ""
    yield (
        "by all steps:"
        if found.sampled_steps == found.steps
        else f"by {found.sampled_steps:,} of the steps (--all plans every one):"
    )
    batch = recipe.batch
    yield (
        f"  rows a step      {found.rows:.1f} on average, {found.most_rows} in the fullest, each of at most "
        f"{batch.row_tokens:,} tokens"
    )
    yield f"  micro-steps      {found.micro_steps:.2f} of {batch.micro_rows} rows a rank"
    yield f"  fill             {found.fill:.1%}"
    yield f"  texts cut        {found.cuts_per_document:.2f} a document"
    yield f"  straggler ratio  {found.straggler_ratio:.3f} (slowest rank over the mean, by batch.cost)"
    if len(found.phases) > 1:
        yield ""
        for phase in found.phases:
            shares = ", ".join(f"{source} {share:.1%}" for source, share in phase.shares.items() if share)
            yield f"  from step {phase.first_step:>9,}  {shares}"
            yield (
                f"  {'':<19}  fill {phase.fill:.1%}, straggler ratio {phase.straggler_ratio:.3f}, "
                f"{phase.most_rows} rows at most: {_fit(phase)}"
            )
    yield ""
    more = (
        ""
        if found.fill_that_fits is None
        else f"; batch.fill={found.fill_that_fits} would fit them, with smaller steps"
    )
    yield f"batch.rows={batch.rows}: {_fit(found)}{more}"


def _fit(found: Forecast | PhaseForecast) -> str:
    """How sure it is that steps fit `batch.rows`."""
    all_planned = found.sampled_steps == found.steps
    match found.every_step_fits:
        case True:
            return "every step fits" + ("" if all_planned else ", by its quotas")
        case False:
            return f"{'' if all_planned else 'about '}{found.steps_beyond_rows:.1%} of the steps take more"
        case None:
            return f"all {found.sampled_steps:,} planned steps fit"
