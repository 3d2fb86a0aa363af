"""Speed of a step in model FLOPs, and memory use.

Invariant: FLOPs are counted from the plan, so that the same step counts the same on any number of ranks, regardless of
additional work of the ranks.
"""

import resource

import torch

from janus_dist.config.recipe import StageRecipe
from janus_dist.data.plan import StepPlan
from janus_dist.engine.world import World
from janus_dist.estimate.flops import Counts, model_flops, peak_flops


def speed(recipe: StageRecipe, world: World, plan: StepPlan, step_s: float) -> dict[str, float]:
    """Return the speed metrics of a step of `step_s` seconds; `perf/mfu` only when the device's peak is known."""
    flops = model_flops(recipe.model, recipe.train.trainable, counts(plan)) / step_s / world.size
    metrics = {"perf/tflops_per_rank": flops / 1e12}
    if world.device.type == "cuda" and recipe.engine.dtype == "bfloat16":
        peak = peak_flops(torch.cuda.get_device_name(world.device))
        metrics |= {"perf/mfu": flops / peak} if peak else {}
    return metrics


def peak_gib(device: torch.device) -> float:
    """Return the peak memory of this process in GiB: allocated on its GPU, or resident in host memory without a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts it in KiB


def counts(plan: StepPlan) -> Counts:
    """Return the tokens, images and labels of a step over all ranks; damaged samples count as if they were intact."""
    image_labels = int(plan.record["image_ids"].sum(dtype="int64"))
    return Counts(
        tokens=plan.num_tokens,
        squared_lengths=int((plan.rows.tokens.astype("int64") ** 2).sum()),
        images=int(plan.record["images"].sum(dtype="int64")),
        text_labels=sum(plan.labels.values()) - image_labels,
        image_labels=image_labels,
    )
