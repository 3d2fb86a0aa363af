"""How fast a step was, in model FLOPs, and what memory it took. Invariant: the FLOPs counted are the plan's, so that
the same step counts the same on any number of ranks, whatever they computed beside it."""

import resource

import torch

from janus_dist.config.recipe import StageRecipe
from janus_dist.data.plan import StepPlan
from janus_dist.engine.world import World
from janus_dist.estimate.flops import Counts, model_flops, peak_flops


def speed(recipe: StageRecipe, world: World, plan: StepPlan, step_s: float) -> dict[str, float]:
    """The metrics of a step that took `step_s` seconds; `perf/mfu` where the device's peak is known."""
    flops = model_flops(recipe.model, recipe.train.trainable, counts(plan)) / step_s / world.size
    found = {"perf/tflops_per_rank": flops / 1e12}
    if world.device.type == "cuda" and recipe.engine.dtype == "bfloat16":
        peak = peak_flops(torch.cuda.get_device_name(world.device))
        found |= {"perf/mfu": flops / peak} if peak else {}
    return found


def peak_gib(device: torch.device) -> float:
    """Most memory that this process had so far: allocated on its GPU, or resident where it has none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts it in KiB


def counts(plan: StepPlan) -> Counts:
    """What a step holds over all ranks; damaged samples count as what they should have been."""
    image_labels = int(plan.record["image_ids"].sum(dtype="int64"))
    return Counts(
        tokens=plan.num_tokens,
        squared_lengths=int((plan.rows.tokens.astype("int64") ** 2).sum()),
        images=int(plan.record["images"].sum(dtype="int64")),
        text_labels=sum(plan.labels.values()) - image_labels,
        image_labels=image_labels,
    )
