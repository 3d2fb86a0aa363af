"""`janus plan`: what a run will do, before a GPU is taken.

Invariant: nothing is written and nothing but manifests and index records is read.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict

from janus_dist.config.recipe import StageRecipe
from janus_dist.data.forecast import Forecast, forecast
from janus_dist.data.plan import Plan, open_shards
from janus_dist.monitor.console import count


def show_plan(recipe: StageRecipe, world: int | None, as_json: bool) -> None:
    """Print the forecast of a recipe for `world` ranks, or those that it asks for."""
    plan = Plan(
        open_shards(recipe.data, recipe.mix), recipe.mix, recipe.batch, recipe.run.seed, recipe.train.answers_only
    )
    found = forecast(plan, recipe.train.steps, world or recipe.cluster.workers)
    if as_json:
        print(json.dumps(asdict(found) | {"plan_digest": plan.digest}))
        return
    for line in lines(found, recipe):
        print(line)


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
    yield f"by {found.sampled_steps} of the steps:"
    batch = recipe.batch
    yield f"  rows a step      {found.rows:.1f} of at most {batch.row_tokens} tokens, {found.most_rows} at most"
    yield f"  micro-steps      {found.micro_steps:.2f} of {batch.micro_rows} rows a rank"
    yield f"  fill             {found.fill:.1%}"
    yield f"  texts cut        {found.cuts_per_document:.2f} a document"
    yield f"  straggler ratio  {found.straggler_ratio:.3f} (slowest rank over the mean, by batch.cost)"
    if found.fill_that_fits is not None:
        yield (
            f"{found.steps_beyond_rows:.0%} of the steps take more than batch.rows={batch.rows}; "
            f"batch.fill={found.fill_that_fits} would fit them"
        )
