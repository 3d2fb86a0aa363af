"""Validation: the loss of each stream on held-out shards, at intervals of a run.

Invariants: every validation uses the same samples, on any number of ranks; validation changes nothing that training
depends on: no gradient, no random state, no position in the plan.
"""

from collections.abc import Mapping

import torch

from janus_dist.config.mix import Lane, MixConfig
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.streams import STREAMS, Stream
from janus_dist.data.collate import DocumentFormat
from janus_dist.data.loader import Loader
from janus_dist.data.manifest import NAME, ShardSet, is_there
from janus_dist.data.plan import Plan
from janus_dist.data.reader import RangeReader
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.engine.world import World
from janus_dist.engine.zero import ZeroEngine
from janus_dist.errors import ConfigError
from janus_dist.train.compatible import check_data

STEPS = 4
"""Number of steps whose samples each validation reads: a few thousand samples with the shipped recipes."""


class Validation:
    """Computes the losses on the held-out samples of a run."""

    def __init__(self, recipe: StageRecipe, tokenizer: Tokenizer, trained: Mapping[Lane, ShardSet], world: World):
        """Open the shard sets under `data.validation_root`; `trained` are the shard sets of the training data.

        Raises ConfigError when no held-out shard set exists or one of them is also trained on, DataError when one does
        not fit the recipe.
        """
        shards = held_out(recipe, trained)
        check_data(recipe, tokenizer, shards)
        mix = MixConfig.model_validate({name: float(Lane(name, name) in shards) for name in STREAMS})
        batch = recipe.batch.model_copy(update={"cfg_drop": 0.0, "fill": None, "samples": None, "packing": "whole"})
        plan = Plan(shards, mix, batch, seed=0, answers_only=recipe.train.answers_only)
        form = DocumentFormat.of(recipe, tokenizer)
        share = recipe.data.max_bad_share
        self.loader = Loader(plan, form, world.rank, world.size, threads=0, max_bad_share=share)

    def losses(self, engine: ZeroEngine) -> dict[Stream, float]:
        """Return the mean cross-entropy per label of each stream; all ranks call it and get the same values."""
        device, labels = engine.world.device, dict.fromkeys(STREAMS, 0)
        sums, factors = torch.zeros(len(STREAMS), device=device), torch.zeros(len(STREAMS), device=device)
        for step in self.loader.steps(0, STEPS):
            for batch in step.batches:
                sums += engine.forward(batch.to(device), factors)
            for name in STREAMS:
                labels[name] += step.plan.labels[name]
        totals = engine.world.sum(sums).tolist()
        return {name: total / labels[name] for name, total in zip(STREAMS, totals, strict=True) if labels[name]}


def held_out(recipe: StageRecipe, trained: Mapping[Lane, ShardSet]) -> dict[Lane, ShardSet]:
    """Return the existing held-out shard sets of the streams that are trained.

    Raises ConfigError when none exists or one of them is also trained on.
    """
    root = recipe.data.validation_root
    assert root is not None, "data.validation_root is not set"
    streams: list[Stream] = [name for name in STREAMS if any(lane.stream == name for lane in trained)]
    folders = {Lane(name, name): f"{root}/{name}" for name in streams if is_there(f"{root}/{name}")}
    if not folders:
        raise ConfigError(
            f"data.validation_root={root} contains none of {', '.join(f'{name}/{NAME}' for name in streams)}",
            "make held-out shards there with jobs/prepare.py (data.root=...), or leave data.validation_root out",
        )
    # without the node's cache, whose eviction follows the plan of training
    reader = RangeReader(recipe.data.read.model_copy(update={"cache_dir": None}))
    shard_sets = {lane: ShardSet.open(folder, reader) for lane, folder in folders.items()}
    for shards in shard_sets.values():
        for lane, other in trained.items():
            if shards.manifest.digest == other.manifest.digest:
                raise ConfigError(
                    f"{shards.folder} contains the same samples as {other.folder}, source {lane.source}, "
                    "which is trained on",
                    "set data.validation_root to a folder with held-out shards",
                )
    return shard_sets
