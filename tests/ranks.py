"""Run a function on several ranks, each a fresh process; get what each returned or the first failure.

Ranks are forked from a server that has imported what they all import, which takes each 5 s of a core otherwise.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from tests.limits import HANG_S

PRELOADED = ["janus_dist.train.trainer", "janus_dist.weights.export", "tests.tiny"]

multiprocessing.set_forkserver_preload(PRELOADED)


def run_ranks(
    function: Callable[..., Any],
    world: int,
    folder: Path,
    *arguments: Any,
    backend: str = "gloo",
    ranks_per_node: int | None = None,
) -> list[Any]:
    """Call `function(*arguments)` on `world` ranks joined by a file in `folder` and return their results, by rank.

    All ranks see one node, or nodes of `ranks_per_node` ranks each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f"meeting-{os.urandom(4).hex()}"
    context = mp.get_context("forkserver")
    results = context.Queue()
    ranks = [
        context.Process(
            target=_rank,
            args=(
                function,
                rank,
                world,
                backend,
                str(meeting),
                results,
                arguments,
                dict(os.environ) | launched_as(rank, world, ranks_per_node or world),
            ),
        )
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    found: dict[int, Any] = {}
    try:
        while len(found) < world:
            rank, ok, value = results.get(timeout=HANG_S)
            if not ok:
                raise AssertionError(f"rank {rank} failed:\n{value}")
            found[rank] = torch.load(value, weights_only=False)
    finally:
        for process in ranks:
            process.join(timeout=10 if len(found) == world else 0)
            process.kill()
    return [found[rank] for rank in range(world)]


def launched_as(rank: int, world: int, ranks_per_node: int) -> dict[str, str]:
    """Return the variables that Ray Train sets for a rank when nodes are filled in the order of ranks.

    The last node has fewer ranks when `world` is not a multiple of `ranks_per_node`.
    """
    node, local_rank = divmod(rank, ranks_per_node)
    found = {
        "RANK": rank,
        "LOCAL_RANK": local_rank,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": min(ranks_per_node, world - node * ranks_per_node),
        "NODE_RANK": node,
    }
    return {name: str(number) for name, number in found.items()}


def _rank(function, rank: int, world: int, backend: str, meeting: str, results, arguments, environment) -> None:
    os.environ.clear()
    os.environ |= environment
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=world)
        value = function(*arguments)
        saved = f"{meeting}-result-{rank}"
        torch.save(value, saved)  # by a file: tensors in a queue need their sender to stay alive
        results.put((rank, True, saved))
    except BaseException:
        results.put((rank, False, traceback.format_exc()))
    finally:
        results.close()
        results.join_thread()
        os._exit(0)  # a rank whose peer failed must not wait for it in a destructor
