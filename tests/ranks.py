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

PRELOADED = ["janus_dist.train.trainer", "janus_dist.export.run", "tests.tiny"]

multiprocessing.set_forkserver_preload(PRELOADED)


def run_ranks(
    function: Callable[..., Any], world: int, folder: Path, *arguments: Any, backend: str = "gloo"
) -> list[Any]:
    """`function(*arguments)` on `world` ranks joined by a file in `folder`; their results, by rank."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f"meeting-{os.urandom(4).hex()}"
    context = mp.get_context("forkserver")
    results = context.Queue()
    ranks = [
        context.Process(
            target=_rank, args=(function, rank, world, backend, str(meeting), results, arguments, dict(os.environ))
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


def _rank(function, rank: int, world: int, backend: str, meeting: str, results, arguments, environment) -> None:
    os.environ.clear()
    os.environ |= environment | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_SIZE": str(world),
    }
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
