"""The start of a run: from its own newest checkpoint, another run's weights, published weights, or random weights.

Invariant: all ranks start from the same weights, or all end with the same error.
"""

from functools import partial
from pathlib import Path

from janus_dist.checkpoint import commits, state
from janus_dist.config.recipe import RunConfig
from janus_dist.errors import CheckpointError
from janus_dist.estimate.budget import checkpoint_bytes
from janus_dist.train import resume
from janus_dist.train.compatible import changed_settings
from janus_dist.train.context import TrainingRun
from janus_dist.train.precision import slow_lines
from janus_dist.train.startup import check_world
from janus_dist.weights.start import open_weights


def start(run: TrainingRun) -> str | None:
    """Load the initial state; return the checkpoint of this run that it resumed from, or None when it did not resume.

    Raises CheckpointError when weights are absent, damaged or belong to another model, ClusterError when ranks have
    different data, disk space is short or the network is too slow, ConfigError when `run.resume=never` and the run has
    a checkpoint.
    """
    recipe = run.recipe
    run.watchdog.pause()
    checkpoint = resume.chosen(run.engine, recipe.run, run.say)
    run.watchdog.pause()
    lines = check_world(recipe, run.world, run.plan.digest, checkpoint_bytes(recipe))
    for line in [*lines, *run.world.run_on_rank0(partial(slow_lines, recipe))]:
        run.say(line)
    resumed = None
    if checkpoint is not None:
        resumed = _resume(run, checkpoint)
    elif recipe.run.start_from is not None:
        _load_run(run, recipe.run, recipe.run.start_from)
    elif recipe.run.start_weights:
        _load_published(run, recipe.run)
    else:
        run.note("started", f"starting {recipe.run.name} from random weights")
    run.watchdog.pause()
    return resumed


def _resume(run: TrainingRun, checkpoint: str) -> str | None:
    """Restore a checkpoint; return it when it belongs to this run, else None."""
    name, saved_in = run.recipe.run.name, run.recipe.run.saved_in
    stored = run.world.run_on_rank0(lambda: commits.read(checkpoint))
    plan, line = resume.plan_from(run.plan, run.recipe, run.engine.trainable, checkpoint, stored)
    run.use(plan)
    if line:
        run.note("note", line)
    commit = state.restore(run.engine, checkpoint)
    run.restore(commit)
    run.note("resumed", f"resuming {name} at step {run.progress.step} from {checkpoint}")
    if changed := changed_settings(run.recipe, commit):
        run.note("note", f"settings changed since the checkpoint: {changed}")
    return checkpoint if checkpoint == commits.folder(saved_in, commit.step) else None


def _load_run(run: TrainingRun, config: RunConfig, other: str) -> None:
    """Load the weights of another run's newest checkpoint. Raises CheckpointError when no intact checkpoint exists."""
    saved_in = config.saved_in_of(other)
    checkpoint = commits.latest_verified(run.world, saved_in, run.say)
    if checkpoint is None:
        raise CheckpointError(
            f"run.start_from={other}: no committed checkpoint under {saved_in}",
            "train that run first, or set run.start_from=null to start from random weights",
        )
    run.watchdog.pause()
    state.restore_weights(run.engine, checkpoint)
    run.note("started", f"starting {config.name} from the weights of {checkpoint}")


def _load_published(run: TrainingRun, config: RunConfig) -> None:
    """Load the weights in the folders of `run.start_weights`. Raises CheckpointError when they do not fit the model."""
    weights = run.world.run_on_all_ranks(partial(open_weights, run.recipe.model, config.start_weights))
    state.fill(run.engine, weights)
    sources = ", ".join(f"{part} of {_shortened(path)}" for part, path in config.start_weights.items())
    run.note("started", f"starting {config.name} from {sources}")


def _shortened(path: str) -> str:
    """Return a path below the repository without the repository's own path.

    In a submitted job the repository is a copy that Ray deletes when the job ends.
    """
    return path.removeprefix(f"{Path(__file__).parents[2]}/")
