"""Checks of all ranks before the first step, for faults that would otherwise fail hours later or go unnoticed.

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
"""Packages whose versions must be the same on all ranks."""
MAX_NAMED_RANKS = 4
"""Maximum number of differing ranks that an error names."""
GIB = 2**30


def check_same(recipe: StageRecipe, world: World) -> None:
    """Raise ClusterError when ranks differ in settings, versions or the number of ranks per node.

    Call it before any collective that depends on these.
    """
    settings = hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    facts = {
        "settings": settings[:12],
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "ranks a node": world.local_size,
    }
    _refuse_differences(world.gather((platform.node(), facts)))


def check_world(recipe: StageRecipe, world: World, plan_digest: str, checkpoint_bytes: int) -> list[str]:
    """Return the console line about ranks, nodes and bandwidth; all ranks call it.

    Raises ClusterError when ranks have different data, the disk has too little space for checkpoints, or the network
    is slower than `cluster.min_bandwidth_gb_s`.
    """
    node_facts: list[Any] = world.gather((platform.node(), {"plan": plan_digest[:12]}))
    _refuse_differences(node_facts)
    world.run_on_rank0(lambda: check_room(recipe, checkpoint_bytes))
    bandwidth = world.bandwidth()
    floor = recipe.cluster.min_bandwidth_gb_s
    if bandwidth is not None and bandwidth < floor:
        raise ClusterError(
            f"the all-reduce bandwidth is {bandwidth:.2f} GB/s, less than cluster.min_bandwidth_gb_s={floor:g}",
            "set NCCL_DEBUG=INFO to see which network NCCL uses (NCCL_SOCKET_IFNAME, NCCL_IB_HCA), or lower the limit",
        )
    nodes = len({node for node, _ in node_facts})
    speed = "" if bandwidth is None else f", {bandwidth:.2f} GB/s between them"
    return [f"{world.size} ranks on {nodes} node{'s' if nodes > 1 else ''}{speed}"]


def _refuse_differences(node_facts: list[Any]) -> None:
    """Raise ClusterError, naming the ranks that differ from the majority, when ranks differ in a fact.

    `node_facts` has the node and the facts of every rank.
    """
    for name in node_facts[0][1]:
        values = Counter(str(facts[name]) for _, facts in node_facts)
        if len(values) == 1:
            continue
        majority = values.most_common(1)[0][0]
        others = [
            f"rank {rank} on {node} has {facts[name]}"
            for rank, (node, facts) in enumerate(node_facts)
            if str(facts[name]) != majority
        ]
        more = f" and {len(others) - MAX_NAMED_RANKS} more" if len(others) > MAX_NAMED_RANKS else ""
        raise ClusterError(
            f"ranks differ in {name}: most have {majority}, {'; '.join(others[:MAX_NAMED_RANKS])}{more}",
            "start all ranks from the same image and code, and the same number of ranks on every node",
        )


def check_room(recipe: StageRecipe, checkpoint_bytes: int) -> None:
    """Raise ClusterError unless the folders of the run and its checkpoints are writable and have enough free space.

    The space is that of the checkpoints that the run keeps and of the one being written; existing checkpoints count
    with the space that they use already.
    """
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
    existing = commits.folders(run.saved_in)
    existing_bytes = sum(sum(fs.sizes(path).values()) for path in existing)
    count = _max_checkpoints(recipe, existing)
    if free < count * checkpoint_bytes - existing_bytes:  # the oldest one is only deleted after the next is committed
        used = f", of which {existing_bytes / GIB:.3f} GiB are in use already" if existing else ""
        raise ClusterError(
            f"{run.saved_in} has {free / GIB:.3f} GiB free, but {count} checkpoints need "
            f"{count * checkpoint_bytes / GIB:.3f} GiB{used}: those that train.keep_checkpoints="
            f"{recipe.train.keep_checkpoints} keeps and the one being written",
            "free space (janus ckpt prune), lower train.keep_checkpoints, or choose another run.checkpoints",
        )


def _max_checkpoints(recipe: StageRecipe, existing: Sequence[str]) -> int:
    """Return the largest number of checkpoints that exist at once, without those kept by `train.keep_every_steps`.

    `existing` are the folders of the checkpoints that exist now.
    """
    train = recipe.train
    step = max(map(commits.step_of, existing), default=0)
    remaining = -(-max(0, train.steps - step) // train.save_every_steps)
    return min(train.keep_checkpoints + 1, len(existing) + remaining)
