"""One training run on one rank: the state that the loop, its hooks, start and rollback share.

Invariant: every rank holds the same recipe, plan, progress and loss window.
"""

from collections.abc import Callable
from typing import Any

from janus_dist.checkpoint.commits import Commit
from janus_dist.config.recipe import StageRecipe
from janus_dist.data.loader import Loader
from janus_dist.data.plan import Plan
from janus_dist.engine.zero import ZeroEngine
from janus_dist.monitor import events
from janus_dist.train.progress import RunProgress
from janus_dist.train.spikes import LossSpikeDetector
from janus_dist.train.step import StepOutcome
from janus_dist.train.watchdog import Watchdog


class TrainingRun:
    """Recipe, data, engine, progress and loss window of a run."""

    def __init__(self, recipe: StageRecipe, plan: Plan, loader: Loader, engine: ZeroEngine, say: Callable[[str], None]):
        self.recipe, self.plan, self.loader, self.engine = recipe, plan, loader, engine
        self.world = engine.world
        self.say = say if self.world.is_first else lambda line: None
        self.progress = RunProgress()
        self.spikes = LossSpikeDetector(recipe.train.spike_sigmas)
        stacks = recipe.run.dir / "logs" / f"stacks-{self.world.rank:04d}.txt"
        self.watchdog = Watchdog(stacks, recipe.engine.timeout_s)

    def note(self, kind: events.Kind, line: str, step: int | None = None, subject: str | None = None) -> None:
        """Print a line and add it to events.jsonl as an event of `step`, by default the newest step.

        Reports show events of the same kind and `subject` as one event with a count.
        """
        self.say(line)
        if self.world.is_first:
            events.record(self.recipe.run.dir, kind, self.progress.step if step is None else step, line, subject)

    def use(self, plan: Plan) -> None:
        """Train on another plan from here on."""
        self.plan = plan
        self.loader.use(plan)

    def restore(self, commit: Commit) -> None:
        """Reset progress and loss window to the state stored in a checkpoint."""
        self.progress.restore(commit)
        self.spikes.restore(commit.losses)

    def judge(self, outcome: StepOutcome) -> None:
        """Record whether the step changed the weights, or was skipped because of its loss or a non-finite gradient."""
        if outcome.grad_norm < float("inf"):
            self.spikes.record_step(outcome.loss)
            return
        self.progress.skipped_steps += 1
        self.spikes.record_skip()
        reason = outcome.objection or "a gradient that is not finite"
        self.note("skipped", f"step {self.progress.step} was skipped: {reason}", subject=outcome.fault)

    def identity(self) -> dict[str, Any]:
        """Return the fields of a checkpoint's marker that describe the newest step, without those of the engine."""
        return {
            "plan_digest": self.plan.digest,
            "plan": self.plan.identity,
            "cursors": self.plan.cursors(self.progress.plan_step),
            "recipe": self.recipe.model_dump(mode="json"),
            "tokens": self.progress.tokens,
            "losses": list(self.spikes.losses),
            "left_out": [list(steps) for steps in self.progress.left_out],
        }
