"""Work distributed as Ray tasks: several runs in parallel, and the jobs of an evaluation.

Invariant: the output of a task is complete or absent, so that the same command completes an interrupted job; when one
task fails, the others are asked to end before its error is raised.
"""

import logging
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from janus_dist.checkpoint.find import is_complete
from janus_dist.config.recipe import StageRecipe
from janus_dist.errors import ClusterError, JanusError, PreemptedError
from janus_dist.failures import one_line
from janus_dist.launch.capacity import POLL_S, of_nodes, room_in
from janus_dist.launch.launcher import train
from janus_dist.launch.services import Follower, RunServices, StopOnSignal
from janus_dist.launch.session import connect
from janus_dist.storage import fs
from janus_dist.train.stop import request_stop

SAY_EVERY_S = 30.0

log = logging.getLogger("janus_dist")


def train_all(
    recipes: Sequence[StageRecipe], show: Callable[[str], None], then: Callable[[StageRecipe], object] | None = None
) -> None:
    """Train runs of equal size beside each other, as many at once as the cluster has room for, those that are complete
    not again; after each `then`, in a task with the cores or the GPU of one rank.

    Each has its own driver, in a Ray task that takes no core. The first error is raised when the others, asked to save
    and stop, have ended; PreemptedError when a signal came while none of them trained.
    """
    connect()
    waiting, running = deque(recipes), dict[ray.ObjectRef, StageRecipe]()
    lines = RunServices.remote()  # pyright: ignore[reportAttributeAccessIssue]
    stop = StopOnSignal(running.values)
    with Follower(lines, show), stop:
        try:
            while running or (waiting and not stop.by):
                if waiting and not stop.by and len(running) < _runs_at_once(waiting[0]):
                    recipe = waiting.popleft()
                    running[_driver.remote(recipe.with_absolute_paths().model_dump(mode="json"), lines, then)] = recipe
                    continue
                for done in _ended(running, stop.by):
                    del running[done]
                    _get(done)
        except Exception:  # a second Ctrl-C does not wait
            while running:
                for done in _ended(running, stop.by or "another run of its job failed"):
                    del running[done]
            raise
        if waiting:
            names = ", ".join(recipe.run.name for recipe in waiting)
            raise PreemptedError(f"asked to stop before {names} began", "the same command resumes it")


def _ended(running: Mapping[ray.ObjectRef, StageRecipe], stopped_by: str | None) -> list[ray.ObjectRef]:
    """Return those that end within POLL_S. `stopped_by` says who asks them to stop; they are asked each time, as one
    that has only begun forgets what was asked before."""
    if stopped_by:
        for recipe in running.values():
            with suppress(OSError):  # asked again
                request_stop(recipe.run.dir, stopped_by)
    return ray.wait(list(running), num_returns=len(running), timeout=POLL_S)[0]


def _runs_at_once(recipe: StageRecipe) -> int:
    """Return how many runs of this size fit on the cluster, at least 1: the driver refuses a run that never fits."""
    return max(1, room_in(of_nodes(), recipe) // recipe.cluster.workers)


@ray.remote(num_cpus=0, max_retries=0)
def _driver(settings: dict[str, Any], lines: Any, then: Callable[[StageRecipe], object] | None) -> None:
    """Drive one of several runs."""
    recipe = StageRecipe.model_validate(settings)
    if not is_complete(recipe):
        train(recipe, show=lambda line: lines.put.remote(f"{recipe.run.name}: {line}"))
    if then is not None:
        cluster = recipe.cluster
        _get(_do.options(num_cpus=cluster.cpus_per_worker, num_gpus=int(cluster.gpu)).remote(settings, then))


@ray.remote
def _do(settings: dict[str, Any], what: Callable[[StageRecipe], object]) -> None:
    """Call `what` with the recipe of a trained run."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    what(StageRecipe.model_validate(settings))


def _get(task: ray.ObjectRef) -> None:
    """Wait for a task; raises its JanusError as such."""
    try:
        ray.get(task)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, JanusError) else error from error


def do_jobs(recipe: StageRecipe, checkpoint: str | None, jobs: Sequence[Any]) -> None:
    """Do jobs of benchmarks in up to `cluster.workers` processes, every one of which does its share of them.

    A process that dies is started again by Ray, `cluster.restarts` times at most, and leaves alone what it has done.
    Raises the first JanusError of any of them, ClusterError when one is lost for good: what was done stays.
    """
    connect()
    cluster = recipe.cluster
    workers = min(cluster.workers, len(jobs))
    share = _share.options(num_cpus=cluster.cpus_per_worker, num_gpus=int(cluster.gpu), max_retries=cluster.restarts)
    settings = recipe.model_dump(mode="json")
    running = [share.remote(settings, checkpoint, jobs[number::workers]) for number in range(workers)]
    try:
        while running:
            ended, running = ray.wait(running, timeout=SAY_EVERY_S)
            ray.get(ended)
            log.info("%d of %d jobs", sum(fs.size(job.marker) is not None for job in jobs), len(jobs))
    except RayTaskError as error:
        if isinstance(error.cause, JanusError):
            raise error.cause from error
        raise
    except RayError as error:
        raise ClusterError(
            f"a process was lost {cluster.restarts + 1} times: {one_line(error)}",
            "what was done stays: run the same command again",
        ) from error
    finally:
        cancel(running)


def cancel(running: Sequence[ray.ObjectRef]) -> None:
    """End tasks of which one has failed. Those that fail together with it are left to themselves: Ray aborts the driver
    that cancels a task at the moment that it ends."""
    if running:
        for left in ray.wait(list(running), num_returns=len(running), timeout=POLL_S)[1]:
            ray.cancel(left, force=True)


@ray.remote(scheduling_strategy="SPREAD")
def _share(settings: dict[str, Any], checkpoint: str | None, jobs: Sequence[Any]) -> None:
    """Do the jobs of one process of an evaluation."""
    from janus_dist.evaluation.benchmarks.run import do_here  # here, so that a driver that trains needs no model

    warnings.filterwarnings("ignore", category=FutureWarning)
    do_here(StageRecipe.model_validate(settings), checkpoint, jobs)
