"""The driver of a run: start its ranks with Ray Train, show their console lines and report the first failure.

Invariant: the driver holds no model and no data; it prints the lines of rank 0 and turns a failure into one message and
one exit code.
"""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

import ray
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.find import refuse_if_never
from janus_dist.config.recipe import RunConfig as RunSettings
from janus_dist.config.recipe import StageRecipe
from janus_dist.data.reader import PATIENCE_S
from janus_dist.errors import CheckpointError, ClusterError, ConfigError, JanusError, PreemptedError, RankError
from janus_dist.evaluation.prompts import read_prompts
from janus_dist.failures import named_line, one_line, without_worker_info
from janus_dist.launch.capacity import POLL_S, all_native, ranks_for, wait_for_others
from janus_dist.launch.restart import RestartPolicy
from janus_dist.launch.services import (
    Follower,
    RayMetrics,
    RunServices,
    SampleProcess,
    StopOnDrain,
    StopOnSignal,
    log_to_own_file,
)
from janus_dist.launch.session import connect
from janus_dist.monitor import events
from janus_dist.storage.lease import Lease, LeaseClaim
from janus_dist.train import precision
from janus_dist.train.compatible import refuse_other
from janus_dist.train.failure import log_file, told
from janus_dist.train.ownership import check_held, follow, hold_run
from janus_dist.train.stop import STOP, asked_by, forget_request

RAY_CLEANUP_TIMEOUT_S = 45.0
"""Seconds Ray may need to release the actors of a job whose node died."""

log = logging.getLogger("janus_dist")


def train(
    recipe: StageRecipe, show: Callable[[str], None], begins: Callable[[StageRecipe], object] = lambda recipe: None
) -> None:
    """Train one stage on `recipe.cluster.workers` ranks; `show` takes the lines for the console. `begins` is called
    with the recipe, its `engine.dtype` decided, when the run is this job's and its checkpoint belongs to the recipe:
    who is refused before leaves the run as it is.

    When ranks or nodes are lost the run is started again from its newest checkpoint, on fewer ranks where
    `cluster.min_workers` allows it. Raises the first JanusError of any rank, and ClusterError when ranks were lost
    `cluster.restarts` times without a new checkpoint.
    """
    connect()
    refuse_if_never(recipe.run)
    if recipe.monitor.prompts is not None:
        read_prompts(Path(recipe.monitor.prompts))  # faults in it end the run before it starts
    with hold_run(recipe, show) as leases, _lines_of(recipe, show) as lines:
        refuse_other(recipe)
        recipe, line = precision.resolve(recipe, lambda: all_native(recipe.cluster.gpu))
        if line is not None:
            show(line)
        begins(recipe)
        requested, recipe = recipe, _if_never(recipe)
        with (
            Follower(lines, show),
            StopOnSignal(lambda: [recipe]),
            StopOnDrain(lines, recipe.run.dir),
            SampleProcess(recipe, lines, show),
        ):
            _until_done(requested, recipe, lines, show, leases)


def _until_done(
    requested: StageRecipe, recipe: StageRecipe, lines: Any, show: Callable[[str], None], leases: Sequence[Lease] = ()
) -> None:
    """Start ranks, and start them again after some are lost, until training is done.

    Raises LeaseLostError when another job has taken over the run.
    """
    run = recipe.run
    policy = RestartPolicy(recipe.cluster.restarts, _latest_with_retries(run.saved_in))
    while True:
        check_held(leases)
        try:
            look = partial(_stop_if_asked, requested, policy.checkpoint)
            workers = ranks_for(recipe, policy.checkpoint is not None, policy.has_failed, look)
            ray.get(lines.begin.remote())
            wait_for_others(recipe, workers, show, look)
            look()
            show(f"starting {workers} rank{'s' if workers > 1 else ''}")
            _train_once(recipe, lines, workers, [lease.claim for lease in leases])
            return
        except TrainingFailedError as error:
            check_held(leases)
            if any(isinstance(found, WorkerGroupStartupTimeoutError) for found in _chain(error)):
                show("Ray found no place for all ranks at once: trying again")
                continue
            cause = _cause(error, requested.run)
            should_restart = policy.should_restart(isinstance(cause, LostRankError), _latest_with_retries(run.saved_in))
            if not should_restart or not isinstance(cause, LostRankError):
                raise _with_resume_command(cause, resume_command(requested.run)) from error
            events.record(run.dir, "lost", _steps(policy.checkpoint), cause.message, cause.subject)
            show(f"{cause.message}; starting again ({policy.losses} of {policy.max_losses} without a new checkpoint)")
        except RayError as error:
            raise ClusterError(
                f"Ray lost what the run hangs on, the driver's own node perhaps: {one_line(error)}",
                f"{resume_command(requested.run)} resumes from the last checkpoint under {run.saved_in}",
            ) from error


@contextmanager
def _lines_of(recipe: StageRecipe, show: Callable[[str], None]) -> Iterator[Any]:
    """Yield the run's RunServices actor and kill it at the end.

    Its name contains the run's folder, so that ranks start only after everything that an earlier job of this cluster
    left of the run has ended. Requests to stop an earlier job are deleted. Raises ConfigError when another job holds
    the name: both would write into one folder.
    """
    run = recipe.run
    lines = _actor(f"lines of {run.dir.resolve()}", f"run {run.dir}", time.monotonic() + RAY_CLEANUP_TIMEOUT_S, show)
    try:
        forget_request(run.dir)  # that of an earlier job; ranks start later, so that no request to this one is lost
        yield lines
    finally:
        with suppress(RayError):
            ray.kill(lines)


def _actor(name: str, what: str, deadline: float, show: Callable[[str], None]) -> Any:
    """Start the actor when its name is free. Raises ConfigError when it is still taken at the deadline."""
    here = ray.get_runtime_context().get_node_id()  # an actor elsewhere would be lost with its node
    only = RunServices.options(name=name, scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False))
    is_said = False
    while True:
        try:
            return only.remote()
        except ValueError as error:  # the name is taken
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{what} is being trained by another job of this cluster",
                    "follow or stop that one (ray job list), or give this run another name (run.name=...)",
                ) from error
        if not is_said:
            show(
                f"{what} belongs to another job of this cluster; if that was killed, Ray takes up to "
                f"{RAY_CLEANUP_TIMEOUT_S:.0f} s to see it"
            )
            is_said = True
        time.sleep(POLL_S)


def _latest_with_retries(saved_in: str) -> str | None:
    """Return `latest_committed`; retry a disk or store that does not answer for PATIENCE_S, as readers do.

    Raises CheckpointError after that.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return commits.latest_committed(saved_in)
        except CheckpointError:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)


def _stop_if_asked(recipe: StageRecipe, newest: str | None) -> None:
    """Raise PreemptedError when the run was asked to stop while it has no ranks that would see the request."""
    run_dir = recipe.run.dir
    if by := asked_by(run_dir / STOP):
        events.record(run_dir, "stopped", _steps(newest), f"asked to stop before its ranks began: {by}")
        raise PreemptedError(
            f"run {run_dir} was asked to stop ({by}) before its ranks began",
            f"{'the same command' if newest is None else resume_command(recipe.run)} resumes it",
        )


def _if_never(recipe: StageRecipe) -> StageRecipe:
    """Return the recipe with `run.resume=never` replaced by `auto`.

    `never` applies to the start of a job: after a lost rank the job resumes from its own checkpoints. Raises
    ConfigError when `never` is set and the run has a checkpoint.
    """
    refuse_if_never(recipe.run)
    if recipe.run.resume != "never":
        return recipe
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"resume": "auto"})})


def resume_command(run: RunSettings) -> str:
    """Return what a user runs to resume a run that has a checkpoint: `run.resume=never` would be refused."""
    return "the same command with run.resume=auto" if run.resume == "never" else "the same command"


def _with_resume_command(cause: Exception, command: str) -> Exception:
    """Return the error to raise for what ended the ranks. A stop gets its hint here: ranks do not know the command, as
    they are started without `run.resume=never`."""
    return type(cause)(cause.message, f"{command} resumes from there") if isinstance(cause, PreemptedError) else cause


def _steps(checkpoint: str | None) -> int:
    return 0 if checkpoint is None else commits.step_of(checkpoint)


def _train_once(recipe: StageRecipe, lines: Any, workers: int, claims: Sequence[LeaseClaim]) -> None:
    """Start the ranks and wait for them."""
    cluster = recipe.cluster
    recipe = recipe.model_copy(update={"cluster": cluster.model_copy(update={"workers": workers})})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "recipe": recipe.with_absolute_paths().model_dump(mode="json"),
            "lines": lines,
            "claims": list(claims),
        },
        torch_config=TorchConfig(backend="nccl" if cluster.gpu else "gloo", timeout_s=recipe.engine.timeout_s),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=cluster.gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cluster.gpu else {})},
        ),
        run_config=RunConfig(
            name=recipe.run.name,
            storage_path=str((recipe.run.dir / "ray").absolute()),
            # starting again is for `train`: Ray Train would wait for ever for the room that there was before
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
        ),
    )
    # Ray Train would take SIGINT over and end the ranks at once, without a checkpoint; StopOnSignal lets them save
    trainer._register_sigint_handler = lambda controller: None
    trainer.fit()


class LostRankError(ClusterError):
    """Loss of a rank that did not report an error: its process or node died."""

    def __init__(self, message: str, hint: str | None = None, subject: str | None = None):
        super().__init__(message, hint)
        self.subject = subject
        """Lost rank and kind of failure, as in events.Event."""


def _worker(settings: dict[str, Any]) -> None:
    """Train on one rank."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    lines, rank = settings["lines"], get_context().get_world_rank()
    lines.join.remote(ray.get_runtime_context().get_node_id())
    recipe = StageRecipe.model_validate(settings["recipe"])
    log_to_own_file(log_file(recipe.run.dir, rank))
    with told(rank, recipe.run.dir):
        watch = follow(settings["claims"]) if rank == 0 else None
        from janus_dist.train import build  # here, so that the driver needs neither DeepSpeed nor a model

        trainer = build.build_trainer(recipe, say=lambda line: lines.put.remote(line))
        if trainer.run.world.is_first:
            trainer.recorder.watchers.append(RayMetrics(recipe.run))
        if watch is not None:
            trainer.checkpointing.saver.check = watch.check
        trainer.fit()


def _cause(error: TrainingFailedError, run: RunSettings) -> Exception:
    """Return the first thing that went wrong, as an error to show."""
    failures = dict(sorted(error.worker_failures.items())) if isinstance(error, WorkerGroupError) else {}
    dead = [rank for rank, failure in failures.items() if _is_dead(failure)]
    raised = _raised_by_ranks(failures.values(), bool(dead))
    if raised is not None:
        return raised
    rank = next(iter([*dead, *failures]), None)  # a process that died says more than those that lost it
    return _lost_rank(error if rank is None else failures[rank], rank, run)


def _raised_by_ranks(failures: Iterable[BaseException], has_dead: bool) -> JanusError | None:
    """Return the JanusError of a rank that explains the failure, or None where a lost rank explains it."""
    errors = [cause for failure in failures for cause in _chain(failure) if isinstance(cause, JanusError)]
    # survivors of a rank that died in a save can only report that the save failed
    effects = (RankError, CheckpointError) if has_dead else RankError
    for error in errors:
        if not isinstance(error, effects):
            return error
    return errors[0] if errors and not has_dead else None  # after a death, survivors may report anything


def _lost_rank(failure: BaseException, rank: int | None, run: RunSettings) -> "LostRankError":
    """Return the error for a failure that no rank explained; `rank` is None when no rank had started."""
    prefix = "" if rank is None else f"rank {rank}: "
    path = run.dir / "logs" if rank is None else log_file(run.dir, rank)
    kind = "died" if _is_dead(failure) else type(list(_chain(failure))[-1]).__name__
    return LostRankError(
        f"a rank was lost: {prefix}{_in_short(failure)}",
        f"what it printed is in {path}; {resume_command(run)} resumes from the last checkpoint under {run.saved_in}",
        prefix + kind,
    )


def _is_dead(failure: BaseException) -> bool:
    return any(isinstance(found, RayActorError) for found in _chain(failure))


def _chain(failure: BaseException) -> Iterator[BaseException]:
    """Yield a failure and then its causes, which Ray keeps in several attributes."""
    found: BaseException | None = failure
    while found is not None:
        yield found
        ways = ("_base_exc", "cause", "health_check_failure", "controller_failure", "__cause__")
        found = next((why for way in ways if isinstance(why := getattr(found, way, None), BaseException)), None)


def _in_short(failure: BaseException) -> str:
    """Return one line for a failure. Ray's own text for a dead process lists its arguments and guesses why it died."""
    if _is_dead(failure):
        return "its process died, or its node"
    return without_worker_info(named_line(list(_chain(failure))[-1]))
