"""Wait until the Ray cluster has room for the ranks of a recipe, asking its autoscaler for nodes; then run the job.

    python cluster/wait.py jobs/stage2.py [RECIPE.yaml ...] [key.path=value ...]

A job by itself refuses a recipe that asks for more than the cluster has. This is for clusters whose nodes are still on
their way: started by an autoscaler, or joining one after another. Invariant: the recipe is read before anything is
waited for; what was asked of the autoscaler is given back however this ends, be it by a signal during the wait; the
exit code is the job's own, as a shell would say it: 143 for a job that SIGTERM ended.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray.autoscaler.sdk import request_resources

from janus_dist.cli.job import run_job, split_arguments
from janus_dist.config.load import load
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.shipped import tiny
from janus_dist.config.train import ClusterConfig
from janus_dist.errors import ClusterError, ConfigError
from janus_dist.launch.capacity import Resources, room_in
from janus_dist.launch.session import join, resources

JOBS = Path(__file__).parents[1] / "jobs"
"""The folder of jobs beside this file: a copy of the repository waits for its own recipe."""
LIMIT_S = float(os.environ.get("JANUS_WAIT_S", "1800"))
"""Longest wait; a machine with eight GPUs takes ten minutes to start, an image of 10 GB another five."""
POLL_S = 5.0
LOST_TIMEOUT_S = 60.0
"""Seconds without an answer after which the cluster counts as lost."""
TERMINATED = 128 + signal.SIGTERM
STAGES = ("stage1.py", "stage2.py", "stage3.py")


def main() -> int:
    """Return the job's exit code."""
    job, arguments = Path(sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if job.name not in STAGES:
        raise ConfigError(
            f"cluster/wait.py runs {', '.join(STAGES)}, got {str(job)!r}; other jobs take what a cluster has",
            "python cluster/wait.py jobs/stage2.py [RECIPE.yaml ...] [key.path=value ...]",
        )
    files, overrides = split_arguments(arguments)
    recipe = load(StageRecipe, files or tiny(job.stem, JOBS), overrides).recipe
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        with _connected():
            request_resources(bundles=_bundles(recipe.cluster))
            _wait(recipe)
        return _run([sys.executable, str(job), *arguments])
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would leave the nodes
        _give_back()


def _bundles(cluster: ClusterConfig) -> list[dict[str, float]]:
    """Return what the ranks take, one entry a rank."""
    rank: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    return [rank | ({"GPU": 1} if cluster.gpu else {})] * cluster.workers


def _give_back() -> None:
    """Ask the autoscaler for nothing more; a cluster that does not answer is gone, and keeps no nodes."""
    with suppress(ClusterError):
        if resources() is not None:
            with _connected():
                request_resources(bundles=[])


@contextmanager
def _connected() -> Iterator[None]:
    """Yield stay connected to the running cluster during a `with` block. ClusterError when none answers within a
    minute."""
    join()
    try:
        yield
    finally:
        ray.shutdown()


def _wait(recipe: StageRecipe) -> None:
    """Return when there is room for all ranks, or after a while for `cluster.min_workers`; ClusterError otherwise."""
    cluster, deadline, before = recipe.cluster, time.monotonic() + LIMIT_S, None
    least = cluster.min_workers or cluster.workers
    while (there := room_in(_nodes(), recipe)) < cluster.workers:
        if there != before:
            print(f"waiting for nodes: room for {there} of {cluster.workers} ranks", flush=True)
            before = there
        if time.monotonic() > deadline:
            if there >= least:
                break
            raise ClusterError(
                f"after {LIMIT_S:g} s the Ray cluster has room for {there} of cluster.workers={cluster.workers} ranks, "
                f"{least} at least are needed",
                "see `ray status` for what is missing; JANUS_WAIT_S sets the wait, cluster.min_workers what is enough",
            )
        time.sleep(POLL_S)


def _nodes() -> list[Resources]:
    """Return the resources of each node, by another process: this one would wait for a quarter of an hour for a head
    that has died. Raises ClusterError when none has answered for LOST_TIMEOUT_S: a busy head may miss a moment."""
    deadline = time.monotonic() + LOST_TIMEOUT_S
    lost = ClusterError(
        "the Ray cluster of this machine does not answer any more", "start it again, then run the same command"
    )
    while True:
        try:
            if (nodes := resources()) is not None:
                return nodes
        except ClusterError as error:
            lost = error
        if time.monotonic() >= deadline:
            raise lost
        time.sleep(POLL_S)


def _run(command: list[str]) -> int:
    """Run the job; whoever asks this process to stop asks the job."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    with subprocess.Popen(command) as job:
        signal.signal(signal.SIGTERM, lambda *_: job.terminate())
        if asked.is_set():  # while the job was started
            job.terminate()
        code = job.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    run_job(main)
