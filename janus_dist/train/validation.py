"""Validation: the loss of each stream on held-out shards, at intervals of a run.

Invariants: the same samples each time, whatever the number of ranks; nothing that training depends on is touched: no
gradient, no random number, no place in the plan.
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
from janus_dist.data.reader import Reader
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.engine.world import World
from janus_dist.engine.zero import ZeroEngine
from janus_dist.errors import ConfigError
from janus_dist.train.compatible import check_data

STEPS = 4
"""So many steps' worth of samples are read each time: with the shipped recipes some thousands."""


class Validation:
    """Held-out samples of a run, and how to find their losses."""

    def __init__(self, recipe: StageRecipe, tokenizer: Tokenizer, trained: Mapping[Lane, ShardSet], world: World):
        """Open the shard sets under `data.validation_root`; ConfigError when there is none, or one holds what is
        `trained`, DataError when one does not fit the recipe."""
        shards = held_out(recipe, trained)
        check_data(recipe, tokenizer, shards)
        mix = MixConfig.model_validate({name: float(Lane(name, name) in shards) for name in STREAMS})
        batch = recipe.batch.model_copy(update={"cfg_drop": 0.0, "fill": None, "samples": None, "packing": "whole"})
        plan = Plan(shards, mix, batch, seed=0, answers_only=recipe.train.answers_only)
        form = DocumentFormat.of(recipe, tokenizer)
        share = recipe.data.max_bad_share
        self.loader = Loader(plan, form, world.rank, world.size, threads=0, max_bad_share=share)

    def losses(self, engine: ZeroEngine) -> dict[Stream, float]:
        """Mean cross-entropy per label of each stream; all ranks call it, and get the same."""
        device, labels = engine.world.device, dict.fromkeys(STREAMS, 0)
        sums, factors = torch.zeros(len(STREAMS), device=device), torch.zeros(len(STREAMS), device=device)
        for step in self.loader.steps(0, STEPS):
            for batch in step.batches:
                sums += engine.forward(batch.to(device), factors)
            for name in STREAMS:
                labels[name] += step.plan.labels[name]
        found = engine.world.sum(sums).tolist()
        return {name: value / labels[name] for name, value in zip(STREAMS, found, strict=True) if labels[name]}


def held_out(recipe: StageRecipe, trained: Mapping[Lane, ShardSet]) -> dict[Lane, ShardSet]:
    """The held-out shard sets that are there, of the streams that are trained."""
    root = recipe.data.validation_root
    assert root is not None, "no validation was asked for"
    streams: list[Stream] = [name for name in STREAMS if any(lane.stream == name for lane in trained)]
    folders = {Lane(name, name): f"{root}/{name}" for name in streams if is_there(f"{root}/{name}")}
    if not folders:
        raise ConfigError(
            f"data.validation_root={root} has none of {', '.join(f'{name}/{NAME}' for name in streams)}",
            "make held-out shards with jobs/prepare.py into it (data.root=...), or leave data.validation_root out",
        )
    # without the node's cache, which knows what training will read
    reader = Reader(recipe.data.read.model_copy(update={"cache_dir": None}))
    found = {lane: ShardSet.open(folder, reader) for lane, folder in folders.items()}
    for shards in found.values():
        for lane, other in trained.items():
            if shards.manifest.digest == other.manifest.digest:
                raise ConfigError(
                    f"{shards.folder} holds the very samples of {other.folder}, source {lane.source}, "
                    "which is trained on",
                    "set data.validation_root to a folder with held-out shards",
                )
    return found
