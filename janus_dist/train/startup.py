"""Checks of the whole world before the first step: what would otherwise fail hours later, or never be noticed.

Invariant: every rank raises the same error, and nothing has been trained or written yet.
"""

import hashlib
import json
import platform
import shutil
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from janus_dist.checkpoint import commits
from janus_dist.config.recipe import StageRecipe
from janus_dist.engine.world import World
from janus_dist.errors import ClusterError
from janus_dist.storage import fs

PACKAGES = ("torch", "deepspeed", "transformers", "numpy")
SHOWN = 4
GIB = 2**30


def check_same(recipe: StageRecipe, world: World) -> None:
    """ClusterError when ranks differ in settings or versions, or a node has other ranks than the rest. To be called
    before anything that ranks do together and that depends on any of these."""
    settings = hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    facts = {
        "settings": settings[:12],
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "ranks a node": world.local_size,
    }
    _refuse_differences(world.gather((platform.node(), facts)))


def check_world(recipe: StageRecipe, world: World, plan_digest: str, checkpoint_bytes: int) -> list[str]:
    """Lines for the console; ClusterError when ranks have other data, there is no room for checkpoints, or the network
    is slower than `cluster.min_bandwidth_gb_s`."""
    every: list[Any] = world.gather((platform.node(), {"plan": plan_digest[:12]}))
    _refuse_differences(every)
    world.run_on_rank0(lambda: check_room(recipe, checkpoint_bytes))
    bandwidth = world.bandwidth()
    floor = recipe.cluster.min_bandwidth_gb_s
    if bandwidth is not None and bandwidth < floor:
        raise ClusterError(
            f"the ranks sum {bandwidth:.2f} GB a second, less than cluster.min_bandwidth_gb_s={floor:g}",
            "see NCCL_DEBUG=INFO for the network that it took (NCCL_SOCKET_IFNAME, NCCL_IB_HCA), or lower the floor",
        )
    nodes = len({node for node, _ in every})
    found = "" if bandwidth is None else f", {bandwidth:.2f} GB/s between them"
    return [f"{world.size} ranks on {nodes} node{'s' if nodes > 1 else ''}{found}"]


def _refuse_differences(every: list[Any]) -> None:
    """ClusterError when ranks, each with its node and facts, differ in a fact; it names those that differ from most."""
    for name in every[0][1]:
        values = Counter(str(facts[name]) for _, facts in every)
        if len(values) == 1:
            continue
        usual = values.most_common(1)[0][0]
        others = [
            f"rank {rank} on {node} has {facts[name]}"
            for rank, (node, facts) in enumerate(every)
            if str(facts[name]) != usual
        ]
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise ClusterError(
            f"ranks differ in {name}: most have {usual}, {'; '.join(others[:SHOWN])}{more}",
            "start all ranks from the same image and code; a node must have as many ranks as the others",
        )


def check_room(recipe: StageRecipe, checkpoint_bytes: int) -> None:
    """ClusterError unless the run's folder and that of its checkpoints can be written and there is room for those that
    the run keeps and the one that it writes beside them; those that are there have their room."""
    run = recipe.run
    for folder, setting in ((str(run.dir), "run.root"), (run.saved_in, "run.checkpoints")):
        probe = f"{folder}/.writable"
        try:
            fs.write_whole(probe, b"")
            fs.remove(probe)
        except fs.FAILURES as error:
            raise ClusterError(
                f"{folder} cannot be written: {' '.join(str(error).split())}", f"choose another {setting}"
            ) from error
    if not fs.is_local(run.saved_in):
        return
    free = shutil.disk_usage(run.saved_in).free
    there = commits.folders(run.saved_in)
    bytes_there = sum(sum(fs.sizes(path).values()) for path in there)
    number = _checkpoints_at_once(recipe, there)
    if free < number * checkpoint_bytes - bytes_there:  # the oldest that is kept stays until the next one is whole
        are_there = f", of which {bytes_there / GIB:.3f} GiB are there" if there else ""
        raise ClusterError(
            f"{run.saved_in} has {free / GIB:.3f} GiB free, {number} checkpoints take "
            f"{number * checkpoint_bytes / GIB:.3f} GiB{are_there}: those that train.keep_checkpoints="
            f"{recipe.train.keep_checkpoints} keeps, and the one that is being written",
            "make room (janus ckpt prune), lower train.keep_checkpoints, or choose another run.checkpoints",
        )


def _checkpoints_at_once(recipe: StageRecipe, there: Sequence[str]) -> int:
    """Return the most checkpoints that there will be at once, but for those of `train.keep_every_steps`; `there`: the
    folders of those that exist."""
    train = recipe.train
    step = max(map(commits.step_of, there), default=0)
    to_come = -(-max(0, train.steps - step) // train.save_every_steps)
    return min(train.keep_checkpoints + 1, len(there) + to_come)
