"""The progress of a run. Invariant: the recipe and the progress determine which samples are trained next."""

from dataclasses import dataclass, field

from janus_dist.checkpoint.commits import Commit
from janus_dist.train.left_out import plan_step


@dataclass
class RunProgress:
    """Position of a run; a checkpoint stores all fields except `skipped_steps`."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    tokens: int = 0
    """Tokens of these steps, summed over all ranks."""
    skipped_steps: int = 0
    """Steps of the whole run that did not change the weights; on rank 0 the count continues that of metrics.jsonl."""
    left_out: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Ranges [first, stop) of the plan's steps that are not trained."""

    @property
    def plan_step(self) -> int:
        """Return the step of the plan that is trained next."""
        return plan_step(self.step, self.left_out)

    @property
    def previous_plan_step(self) -> int:
        """Return the step of the plan that was trained last."""
        return plan_step(self.step - 1, self.left_out)

    def restore(self, commit: Commit) -> None:
        """Reset to the position stored in a checkpoint."""
        self.step, self.tokens = commit.step, commit.tokens
        self.left_out = [(first, stop) for first, stop in commit.left_out]
