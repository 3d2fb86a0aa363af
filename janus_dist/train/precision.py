"""The dtype that a run computes in: what `engine.dtype=auto` stands for on the machines and checkpoint of a run.

Invariant: it is decided once, before any rank builds a model; a run that goes on keeps the dtype of its checkpoint.
"""

from collections.abc import Callable

import torch

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.find import goes_on_from
from janus_dist.config.recipe import StageRecipe
from janus_dist.engine.world import World
from janus_dist.errors import ClusterError
from janus_dist.model import native

RULE = "engine.dtype=auto takes bfloat16 where every node computes in it natively, else float32"


def resolve(recipe: StageRecipe, is_native: Callable[[], bool]) -> tuple[StageRecipe, str | None]:
    """Return the recipe with `engine.dtype` decided, and the line that says how; None where the recipe itself says it.

    `is_native` tells whether every node of the run computes in bfloat16 natively; it is called only when that decides.
    Raises CheckpointError when the checkpoint that the run goes on from cannot be read.
    """
    if recipe.engine.dtype != "auto":
        return recipe, None
    path = goes_on_from(recipe)
    if path is not None:
        dtype = commits.read(path).recipe["engine"].get("dtype", "bfloat16")
        reason = f"as its checkpoint {path} was trained"
    elif is_native():
        dtype, reason = "bfloat16", "native on every node"
    else:
        kind = "GPU older than compute capability 8.0" if recipe.cluster.gpu else "CPU that would emulate bfloat16"
        dtype, reason = "float32", f"a node has a {kind}"
    engine = recipe.engine.model_copy(update={"dtype": dtype})
    return recipe.model_copy(update={"engine": engine}), f"computing in {dtype}: {reason} (engine.dtype=auto)"


def is_native_here(recipe: StageRecipe) -> bool:
    """Return whether this machine computes a run in bfloat16 natively; without a GPU here, a run on GPUs is taken to
    have ones that do."""
    return native.is_native(recipe.cluster.gpu) or (recipe.cluster.gpu and not native.gpu_capabilities())


def resolve_here(recipe: StageRecipe) -> StageRecipe:
    """Return the recipe with `engine.dtype` decided for this machine, for tools that forecast a run or measure it."""
    return resolve(recipe, lambda: is_native_here(recipe))[0]


def resolve_on_ranks(recipe: StageRecipe, world: World) -> StageRecipe:
    """Return the recipe with `engine.dtype` decided by all ranks together; a job has usually done it before.

    Raises ClusterError when a rank's GPU cannot compute in it, CheckpointError as `resolve`.
    """
    if recipe.engine.dtype == "auto":
        natives = all(world.gather(native.is_native(recipe.cluster.gpu)))
        recipe = world.run_on_rank0(lambda: resolve(recipe, lambda: natives)[0])
    world.run_on_all_ranks(lambda: check_device(recipe, world.device))
    return recipe


def check_device(recipe: StageRecipe, device: torch.device) -> None:
    """Raise ClusterError when the device cannot compute in the recipe's dtype."""
    if device.type != "cuda" or recipe.engine.dtype != "bfloat16":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < native.MIN_CAPABILITY:
        wanted, there = (".".join(map(str, each)) for each in (native.MIN_CAPABILITY, capability))
        raise ClusterError(
            f"engine.dtype=bfloat16 needs GPUs of compute capability {wanted} or more (A100, H100, RTX 30), "
            f"{torch.cuda.get_device_name(device)} has {there}",
            f"take engine.dtype=float32 or auto: {RULE}",
        )


def slow_lines(recipe: StageRecipe) -> list[str]:
    """Return the line that says how slow bfloat16 is on this CPU, measured for a second; none where it is native."""
    if recipe.cluster.gpu or recipe.engine.dtype != "bfloat16" or native.is_native(gpu=False):
        return []
    remedy = "a new run with engine.dtype=float32 or auto would be faster here"
    return [native.slow_line(native.emulation_slowdown(), remedy)]
