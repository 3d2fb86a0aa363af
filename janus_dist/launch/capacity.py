"""Capacity of a Ray cluster: the number of ranks that fit on its nodes, counted before any is started.

Invariant: a run that the cluster can never place is refused; resources that others use at present are waited for
without a limit.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from janus_dist.config.recipe import StageRecipe
from janus_dist.errors import ClusterError
from janus_dist.model import native

POLL_S = 0.5
NATIVE_TIMEOUT_S = 120.0
"""Seconds within which nodes say whether they compute in bfloat16; the first process of a node may take long."""
NODE_PING_TIMEOUT_S = 15.0
"""Seconds within which a node must answer; one that does not counts as lost."""
NODES_BACK_S = 60.0
"""Seconds to wait for lost nodes to return before a run resumes with fewer ranks."""
RELEASE_TIMEOUT_S = 5.0
"""Seconds within which the previous ranks have released their resources."""
Resources = Mapping[str, float]
"""Resources of one node, by Ray's names."""


def of_nodes() -> list[Resources]:
    """Return the resources of each node that Ray counts as alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def ranks_for(recipe: StageRecipe, is_resumed: bool, has_lost: bool, look: Callable[[], object]) -> int:
    """Return the number of ranks to start: all, or for a run that `is_resumed` fewer (at least `cluster.min_workers`)
    after NODES_BACK_S. `look` is called repeatedly and ends the wait by raising.

    Raises ClusterError when the cluster is too small.
    """
    cluster, deadline = recipe.cluster, time.monotonic() + NODES_BACK_S
    while True:
        there = _of_nodes_that_answer() if has_lost else of_nodes()
        room = room_in(there, recipe)
        if room >= cluster.workers:
            return cluster.workers
        if not is_resumed or time.monotonic() > deadline:
            break
        look()
        time.sleep(POLL_S)
    check_room_in(there, recipe)
    return room


def room_in(there: Iterable[Resources], recipe: StageRecipe) -> int:
    """Return the number of ranks that fit on the nodes; a rank does not span nodes."""
    cluster, room = recipe.cluster, 0
    for node in there:
        cores = int(node.get("CPU", 0) // cluster.cpus_per_worker)
        room += min(cores, int(node.get("GPU", 0))) if cluster.gpu else cores
    return room - room % recipe.engine.hpz_ranks


def check_room_in(there: Sequence[Resources], recipe: StageRecipe) -> None:
    """Raise ClusterError when the nodes are too small for a run."""
    cluster, room = recipe.cluster, room_in(there, recipe)
    if room >= (cluster.min_workers or cluster.workers):
        return
    kind, each = ("GPU", 1) if cluster.gpu else ("CPU", cluster.cpus_per_worker)
    raise ClusterError(
        f"cluster.workers={cluster.workers} need {cluster.workers * each} {kind}s, the Ray cluster has "
        f"{sum(node.get(kind, 0) for node in there):g} on {len(there)} nodes, room for {room} ranks",
        "add nodes, or lower cluster.workers (a run resumes on any number), cluster.min_workers or "
        "cluster.cpus_per_worker",
    )


def wait_for_others(recipe: StageRecipe, workers: int, show: Callable[[str], None], look: Callable[[], object]) -> None:
    """Wait until the resources of `workers` ranks are free, and show a line when that takes longer than
    RELEASE_TIMEOUT_S. `look` is called repeatedly and ends the wait by raising."""
    cluster = recipe.cluster
    kind, needed = ("GPU", workers) if cluster.gpu else ("CPU", workers * cluster.cpus_per_worker)
    deadline, is_said = time.monotonic() + RELEASE_TIMEOUT_S, False
    while (free := int(ray.available_resources().get(kind, 0))) < needed:
        look()
        if not is_said and time.monotonic() > deadline:
            ranks = f"{workers} rank{'s' if workers > 1 else ''}"
            show(f"waiting until others on the cluster leave {ranks} {needed} {kind}s: {free} are free")
            is_said = True
        time.sleep(POLL_S)


@ray.remote(num_cpus=0)
def _answer() -> None:
    """Do nothing; the node that runs this task is alive."""


@ray.remote(num_cpus=0)
def _is_native(gpu: bool) -> bool:
    """Return whether the node that runs this task computes in bfloat16 natively."""
    return native.is_native(gpu)


def all_native(gpu: bool) -> bool:
    """Return whether every node with GPUs (else with CPUs) that answers computes in bfloat16 natively."""
    kind = "GPU" if gpu else "CPU"
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(kind)]
    return all(answer for _, answer in _ask(nodes, _is_native, gpu, timeout_s=NATIVE_TIMEOUT_S))


def _of_nodes_that_answer() -> list[Resources]:
    """Return the resources of each node that answers; Ray lists a dead node for another 30 s."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [node["Resources"] for node, _ in _ask(nodes, _answer, timeout_s=NODE_PING_TIMEOUT_S)]


def _ask(
    nodes: Sequence[Mapping[str, Any]], task: Any, *arguments: Any, timeout_s: float
) -> list[tuple[Mapping[str, Any], Any]]:
    """Run a task on each node; return (node, result) of those that answer in time."""
    strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    asked = {
        task.options(scheduling_strategy=strategy).remote(*arguments): node
        for node, strategy in zip(nodes, strategies, strict=True)
    }
    answers: list[tuple[Mapping[str, Any], Any]] = []
    for answer in ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)[0] if asked else []:
        with suppress(RayError):
            answers.append((asked[answer], ray.get(answer)))
    return answers
