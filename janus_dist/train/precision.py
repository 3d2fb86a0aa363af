"""The dtype that a run computes in: resolves `engine.dtype=auto` from the machines and the checkpoint of a run.

Invariant: the dtype is decided once, before any rank builds a model; a resumed run keeps the dtype of its checkpoint.
"""

from collections.abc import Callable

import torch

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.find import goes_on_from
from janus_dist.config.recipe import StageRecipe
from janus_dist.engine.world import World
from janus_dist.errors import ClusterError
from janus_dist.model import native

AUTO_DTYPE_RULE = "engine.dtype=auto uses bfloat16 when every node computes in it natively, otherwise float32"


def resolve(recipe: StageRecipe, is_native: Callable[[], bool]) -> tuple[StageRecipe, str | None]:
    """Return the recipe with `engine.dtype` resolved, and the line that explains the choice.

    The line is None when the recipe sets a dtype. `is_native` returns whether every node of the run computes in
    bfloat16 natively; it is only called when no checkpoint decides. Raises CheckpointError when the checkpoint that the
    run resumes from cannot be read, ConfigError when `run.resume=never` and the run has a checkpoint.
    """
    if recipe.engine.dtype != "auto":
        return recipe, None
    path = goes_on_from(recipe)
    if path is not None:
        dtype = commits.read(path).recipe["engine"].get("dtype", "bfloat16")
        reason = f"the dtype of its checkpoint {path}"
    elif is_native():
        dtype, reason = "bfloat16", "native on every node"
    else:
        kind = "GPU older than compute capability 8.0" if recipe.cluster.gpu else "CPU that would emulate bfloat16"
        dtype, reason = "float32", f"a node has a {kind}"
    engine = recipe.engine.model_copy(update={"dtype": dtype})
    return recipe.model_copy(update={"engine": engine}), f"computing in {dtype}: {reason} (engine.dtype=auto)"


def is_native_here(recipe: StageRecipe) -> bool:
    """Return whether this machine computes in bfloat16 natively.

    For a run on GPUs on a machine without one, assume GPUs that do.
    """
    return native.is_native(recipe.cluster.gpu) or (recipe.cluster.gpu and not native.gpu_capabilities())


def resolve_here(recipe: StageRecipe) -> StageRecipe:
    """Return the recipe with `engine.dtype` resolved for this machine, for tools that forecast or measure a run.

    Raises the errors of `resolve`.
    """
    return resolve(recipe, lambda: is_native_here(recipe))[0]


def resolve_on_ranks(recipe: StageRecipe, world: World) -> StageRecipe:
    """Return the recipe with `engine.dtype` resolved by all ranks; usually the job has resolved it already.

    Raises ClusterError when a rank's GPU cannot compute in the dtype, and the errors of `resolve`.
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
        required, actual = (".".join(map(str, version)) for version in (native.MIN_CAPABILITY, capability))
        raise ClusterError(
            f"engine.dtype=bfloat16 needs GPUs of compute capability {required} or more (A100, H100, RTX 30), "
            f"but {torch.cuda.get_device_name(device)} has {actual}",
            f"set engine.dtype=float32 or auto: {AUTO_DTYPE_RULE}",
        )


def slow_lines(recipe: StageRecipe) -> list[str]:
    """Return a line with the slowdown of bfloat16 on a CPU that emulates it, else an empty list.

    The measurement takes a second.
    """
    if recipe.cluster.gpu or recipe.engine.dtype != "bfloat16" or native.is_native(gpu=False):
        return []
    remedy = "a new run with engine.dtype=float32 or auto would be faster here"
    return [native.slow_line(native.emulation_slowdown(), remedy)]
