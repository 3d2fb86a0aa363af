"""The checkpointing hook: starts a save at the recipe's steps and reports the outcome of the save before.

Invariant: a failed save never ends the run, except for the last checkpoint, without which a run is not complete.
"""

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.saver import Saver, SaveResult
from janus_dist.errors import CheckpointError
from janus_dist.train.context import TrainingRun
from janus_dist.train.step import TrainedStep
from janus_dist.train.watchdog import MAX_SAVE_S


class Checkpointing:
    """Saves the run every `train.save_every_steps` steps and at its end."""

    def __init__(self, run: TrainingRun):
        self.run = run
        self.saver = Saver(run.engine, run.recipe.run.saved_in)
        self.newest: str | None = None
        """The newest checkpoint of this run that this process wrote or resumed from."""
        self._is_late = False

    def after_step(self, trained: TrainedStep) -> None:
        """Start a save at the recipe's steps; postpone it while an earlier save is still being written."""
        run, step = self.run, self.run.progress.step
        if run.spikes.should_roll_back or trained.outcome.is_asked_to_stop:
            return
        self.tell(self.saver.done())
        if (step % run.recipe.train.save_every_steps and not self._is_late) or step == run.recipe.train.steps:
            return
        if run.spikes.skipped_in_a_row:  # the weights may already be damaged
            self._is_late = True
            return
        was_late, self._is_late = self._is_late, not self._begin()
        if self._is_late and not was_late:
            run.say(f"the checkpoint of step {step} is postponed: an earlier one is still being written")

    def save_last(self) -> None:
        """Save the newest step and wait for it. Raises CheckpointError when that fails."""
        self.tell(self.wait())
        if self.newest is not None and commits.step_of(self.newest) == self.run.progress.step:
            return
        self.run.world.barrier()
        self._begin()
        saved = self.wait()
        self.tell(saved)
        if saved is not None and saved.failure is not None:
            raise CheckpointError(
                f"the last checkpoint, of step {saved.step}, could not be written to {saved.path}: {saved.failure}",
                "fix the cause and run the same command again: it resumes from the previous checkpoint",
            )

    def wait(self) -> SaveResult | None:
        """Wait for the save that is being written, which may take long; return its outcome, None without a save."""
        self.run.watchdog.pause(MAX_SAVE_S)
        saved = self.saver.wait()
        self.run.watchdog.pause()
        return saved

    def tell(self, saved: SaveResult | None) -> None:
        """Report the outcome of a save."""
        if saved is None:
            return
        if saved.failure is not None:
            line = f"the checkpoint of step {saved.step} could not be written: {saved.failure}; training continues"
            self.run.note("not saved", line, saved.step, saved.subject)
            return
        self.newest = saved.path
        self.run.note("saved", f"saved {saved.path} ({saved.seconds:.1f} s)", saved.step)
        if saved.not_pruned is not None:
            line = f"older checkpoints could not be deleted: {saved.not_pruned}"
            self.run.note("not saved", line, subject=saved.subject)

    def _begin(self) -> bool:
        """Start to save the newest step; return False while another save is being written."""
        train = self.run.recipe.train
        keep = commits.RetentionPolicy(train.keep_checkpoints, train.keep_every_steps)
        return self.saver.start(self.run.progress.step, self.run.identity(), keep)
