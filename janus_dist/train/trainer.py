"""The training loop: one step, its hooks, and the ways in which training ends.

Everything that a step needs is a function of the recipe and the step number, so a run resumes by loading a checkpoint
and starting the loop at its step. Invariant: the newest checkpoint and metrics.jsonl agree.
"""

import time

from janus_dist.data.loader import RankStep
from janus_dist.errors import PreemptedError
from janus_dist.monitor import events
from janus_dist.train.checkpointing import Checkpointing
from janus_dist.train.context import TrainingRun
from janus_dist.train.hooks import Metrics, Recorder, StragglerMonitor, Validator
from janus_dist.train.rollback import roll_back
from janus_dist.train.schedule import learning_rate
from janus_dist.train.start import start
from janus_dist.train.step import Hook, TrainedStep, train_step
from janus_dist.train.stop import StopRequest, forget_request
from janus_dist.train.validation import Validation


class Trainer:
    """Trains one run on one rank."""

    def __init__(self, run: TrainingRun, validation: Validation | None = None):
        self.run = run
        self.stop = StopRequest(run.recipe.run.dir, run.recipe.cluster.notice_file, run.world.is_first)
        self.recorder, self.checkpointing = Recorder(run), Checkpointing(run)
        stragglers = StragglerMonitor(run)
        self.hooks: list[Hook] = [
            stragglers,
            Metrics(run, stragglers),
            *([Validator(run, validation)] if validation is not None else []),
            self.recorder,
            run.watchdog,
            self.checkpointing,
        ]
        """Hooks that run after each step, in this order."""

    def fit(self) -> None:
        """Train to the last step and leave a committed checkpoint of it.

        Raises PreemptedError after saving the newest step when the run was asked to stop, DivergedError when rollbacks
        did not help, CheckpointError when a checkpoint cannot be read or the last one cannot be written.
        """
        run = self.run
        try:
            self.checkpointing.newest = start(run)
            self.recorder.open()
            run.engine.train()
            while run.progress.step < run.recipe.train.steps:
                self._train_until_rollback()
            self.checkpointing.save_last()
            run.world.barrier()
        finally:
            run.watchdog.end()
            self.recorder.close()

    def _train_until_rollback(self) -> None:
        """Train to the last step or to the next rollback."""
        run, progress = self.run, self.run.progress
        total, first = run.recipe.train.steps, progress.step
        loop_began_s = began_s = time.perf_counter()
        for rank_step in run.loader.steps(progress.plan_step, progress.plan_step + total - first):
            trained = self._train_step(rank_step, began_s)
            step_mean_s = (time.perf_counter() - loop_began_s) / (progress.step - first)
            trained.eta_s = step_mean_s * (total - progress.step)
            for hook in self.hooks:
                hook.after_step(trained)
            if run.spikes.should_roll_back:
                roll_back(run, trained.outcome, self.checkpointing)
                self.recorder.open()
                return
            if trained.outcome.is_asked_to_stop and progress.step < total:
                self.checkpointing.save_last()
                raise self._stopped()
            began_s = time.perf_counter()

    def _train_step(self, rank_step: RankStep, began_s: float) -> TrainedStep:
        """Train one step; `began_s` is the time.perf_counter at which this rank began to wait for its data."""
        run, progress, train = self.run, self.run.progress, self.run.recipe.train
        waited_s = time.perf_counter() - began_s
        if run.plan.changes(progress.previous_plan_step, rank_step.plan.step):
            run.spikes.forget()
        lr = learning_rate(run.recipe.optim, progress.step, train.steps)
        is_asked_to_stop = self.stop.reason is not None
        outcome = train_step(run.engine, rank_step, train, lr, run.spikes.check, is_asked_to_stop)
        progress.step += 1
        progress.tokens += rank_step.plan.num_tokens
        run.judge(outcome)
        return TrainedStep(rank_step, outcome, began_s, waited_s)

    def _stopped(self) -> PreemptedError:
        """Return the error that names the requests to stop and the saved step; all ranks call it."""
        recipe, step = self.run.recipe, self.run.progress.step
        reasons = enumerate(self.run.world.gather(self.stop.reason))
        requests = ", ".join(f"{reason} on rank {rank}" for rank, reason in reasons if reason is not None)
        if self.run.world.is_first:
            forget_request(recipe.run.dir)
            events.record(recipe.run.dir, "stopped", step, f"asked to stop: {requests}")
        return PreemptedError(
            f"run {recipe.run.dir} was asked to stop ({requests}) and saved step {step} of {recipe.train.steps}",
            "run the same command again to resume from there",
        )
