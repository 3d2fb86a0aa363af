"""Ray: find or start a cluster, start the ranks of a run by Ray Train, relay their lines and the first failure.

The only module of the library that names ray. Invariant: the driver holds no model and no data; it prints what the
first rank says and turns what happened into one message and one exit code.
"""

import logging
import os
import secrets
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep CUDA_VISIBLE_DEVICES of a process without GPUs
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

import ray
from ray.exceptions import AuthenticationError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from janus_dist.config.recipe import StageRecipe
from janus_dist.errors import ClusterError, JanusError

POLL_S = 0.5
LINES_NAMESPACE = "janus_dist"
RAY_TOKEN = Path.home() / ".ray" / "auth_token"
"""Where Ray keeps a token of this user."""


def connect() -> None:
    """Join the running Ray cluster (that of the submitted job, or of this machine), or start a local one."""
    if ray.is_initialized():
        return
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": LINES_NAMESPACE}
    try:
        try:
            ray.init(address="auto", **settings)
        except (ConnectionError, AuthenticationError):  # there is none, or it is someone else's and wants their token
            if os.environ.get("RAY_ADDRESS"):
                raise
            # A token of its own: Ray would write one to ~/.ray/auth_token, and from then on `ray start` would demand it
            # of a `ray job submit` that does not send it.
            # Where there is that file, the token in it is the one that this process has tried by now.
            if not RAY_TOKEN.exists():
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            ray.init(address="local", **settings)
    except (ConnectionError, TimeoutError, RuntimeError, AuthenticationError) as error:
        raise ClusterError(
            f"Ray cannot be reached or started: {error}",
            "see `ray status`; unset RAY_ADDRESS to start a local Ray; a cluster that wants a token takes it from "
            "RAY_AUTH_TOKEN with RAY_AUTH_MODE=token",
        ) from error


def train(recipe: StageRecipe, show: Callable[[str], None]) -> None:
    """Train one stage on `recipe.cluster.workers` ranks; `show` takes the lines for the console.

    Raises the first JanusError of any rank, and ClusterError when a rank or a node was lost.
    """
    connect()
    cluster = recipe.cluster
    _check_resources(recipe)
    lines = Lines.remote()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"recipe": recipe.with_absolute_paths().model_dump(mode="json"), "lines": lines},
        torch_config=TorchConfig(backend="nccl" if cluster.gpu else "gloo", timeout_s=recipe.engine.timeout_s),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=cluster.gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cluster.gpu else {})},
        ),
        run_config=RunConfig(
            name=recipe.run.name,
            storage_path=str((recipe.run.dir / "ray").absolute()),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    with _Follower(lines, show):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error, recipe.run.dir) from error


@ray.remote(num_cpus=0)
class Lines:
    """Lines on their way from the first rank to the driver's console."""

    def __init__(self) -> None:
        self.waiting: list[str] = []

    def put(self, line: str) -> None:
        self.waiting.append(line)

    def take(self) -> list[str]:
        taken, self.waiting = self.waiting, []
        return taken


class _Follower:
    """Shows the lines of an actor while a `with` block runs, to the last one."""

    def __init__(self, lines: Any, show: Callable[[str], None]):
        self.lines, self.show = lines, show
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._follow, name="console", daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.thread.join()
        self._take()

    def _follow(self) -> None:
        while not self.ended.wait(POLL_S):
            self._take()

    def _take(self) -> None:
        for line in ray.get(self.lines.take.remote()):
            self.show(line)


def _worker(settings: dict[str, Any]) -> None:
    """What each rank does."""
    from janus_dist.train.trainer import Trainer  # here, so that the driver needs neither DeepSpeed nor a model

    warnings.filterwarnings("ignore", category=FutureWarning)
    lines = settings["lines"]
    recipe = StageRecipe.model_validate(settings["recipe"])
    Trainer.build(recipe, say=lambda line: lines.put.remote(line)).fit()


def _check_resources(recipe: StageRecipe) -> None:
    """Refuse what the cluster can never place, rather than wait for it for ever."""
    cluster = recipe.cluster
    wanted = {"CPU": cluster.workers * cluster.cpus_per_worker, "GPU": cluster.workers if cluster.gpu else 0}
    there = ray.cluster_resources()
    for kind, number in wanted.items():
        if number > there.get(kind, 0):
            raise ClusterError(
                f"cluster.workers={cluster.workers} need {number} {kind}s, the Ray cluster has {there.get(kind, 0):g}",
                "add nodes, or lower cluster.workers (a run resumes on any number) or cluster.cpus_per_worker",
            )


def _cause(error: TrainingFailedError, run_dir: Path) -> Exception:
    """The first thing that went wrong, as an error to show."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    for _, failure in sorted(failures.items()):
        found: BaseException | None = failure
        while found is not None:
            if isinstance(found, JanusError):
                return found
            found = getattr(found, "_base_exc", None) or getattr(found, "cause", None) or found.__cause__
    return ClusterError(
        f"training failed: {error}",
        f"the same command goes on from the last checkpoint under {run_dir / 'checkpoints'}",
    )
