"""Rollback: after too many skipped steps the run restores its newest checkpoint and leaves out the steps since.

Invariant: every later checkpoint and left_out.jsonl list the steps of the plan that are left out.
"""

from janus_dist.checkpoint import state
from janus_dist.errors import DivergedError
from janus_dist.train.checkpointing import Checkpointing
from janus_dist.train.context import TrainingRun
from janus_dist.train.left_out import write_left_out
from janus_dist.train.spikes import MAX_ROLLBACKS
from janus_dist.train.step import StepOutcome


def roll_back(run: TrainingRun, outcome: StepOutcome, checkpointing: Checkpointing) -> None:
    """Restore the newest checkpoint and leave out the plan's steps trained since; all ranks call it.

    Raises DivergedError when no checkpoint exists or MAX_ROLLBACKS rollbacks did not help, CheckpointError when all
    checkpoints are damaged.
    """
    checkpointing.tell(checkpointing.wait())
    path = state.latest_to_resume(run.engine, run.recipe.run.saved_in, run.say)
    run.watchdog.pause()
    last_step, stop = run.progress.step, run.progress.plan_step
    run.spikes.record_rollback()
    if path is None or run.spikes.rollbacks > MAX_ROLLBACKS:
        reason = "before the first checkpoint" if path is None else f"and {MAX_ROLLBACKS} rollbacks did not help"
        raise DivergedError(
            f"{run.spikes.skipped_in_a_row} steps in a row were skipped, up to step {last_step} "
            f"(loss {outcome.loss:.4g}), {reason}",
            f"lower optim.lr (now {run.recipe.optim.lr:g}) or raise optim.warmup_steps, then run again "
            "to resume from the last checkpoint",
        )
    run.restore(state.restore(run.engine, path))
    run.watchdog.pause()
    first = run.progress.plan_step
    run.progress.left_out.append((first, stop))
    checkpointing.newest = None  # the list of left-out steps has changed, so the next save must be written
    if run.world.is_first:
        write_left_out(run.recipe.run.dir / "left_out.jsonl", run.plan, first, stop)
    run.note(
        "went back",
        f"rolled back from step {last_step} to {path}; steps {first} to {stop - 1} of the plan are left out",
        subject="",
    )
