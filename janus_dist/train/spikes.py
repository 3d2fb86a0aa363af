"""Loss spikes: which steps are skipped, and when a run rolls back to its last checkpoint.

A step is skipped when its loss is NaN or infinite, or far above the losses before. The decision is a function of the
loss that all ranks share, so every rank decides the same before anything is changed. Invariants: a skipped step changes
neither weights nor moments; the window of losses is restored with a checkpoint and holds losses of the current mixture
only.
"""

import math
from collections import deque
from collections.abc import Sequence

WINDOW_STEPS = 128
"""Number of previous losses that a loss is compared with (as in OLMo-core)."""
MIN_WINDOW_STEPS = 64
"""Minimum number of losses in the window before a finite loss can count as a spike."""
MAX_SKIPPED = 10
"""Number of steps skipped in a row that triggers a rollback."""
MAX_ROLLBACKS = 3
"""Maximum number of rollbacks; the next one ends the run."""
FORGIVEN_STEPS = 1_000
"""Number of good steps since the last rollback after which the rollback count is reset to zero."""


class LossSpikeDetector:
    """Compares the loss of each step with the losses of the steps before."""

    def __init__(self, spike_sigmas: float | None, losses: Sequence[float] = ()):
        self.spike_sigmas = spike_sigmas
        self.losses = deque(losses, maxlen=WINDOW_STEPS)
        """Losses of the last good steps, oldest first."""
        self.skipped_in_a_row = 0
        """Number of steps skipped since the last good step."""
        self.rollbacks = 0
        """Number of rollbacks since the last FORGIVEN_STEPS good steps."""
        self._good_steps = 0

    @property
    def should_roll_back(self) -> bool:
        """Return whether too many steps in a row were skipped."""
        return self.skipped_in_a_row >= MAX_SKIPPED

    def restore(self, losses: Sequence[float]) -> None:
        """Reset the window to the losses stored in a checkpoint."""
        self.forget()
        self.losses.extend(losses)
        self.skipped_in_a_row = 0

    def forget(self) -> None:
        """Empty the window, because the following losses belong to another mixture."""
        self.losses.clear()

    def check(self, loss: float) -> str | None:
        """Return the reason to skip a step with this loss, or None when the step may change the weights."""
        if not math.isfinite(loss):
            return f"loss {loss}"
        if self.spike_sigmas is None or len(self.losses) < MIN_WINDOW_STEPS:
            return None
        mean = sum(self.losses) / len(self.losses)
        sigma = math.sqrt(sum((previous - mean) ** 2 for previous in self.losses) / len(self.losses))
        if loss > mean + self.spike_sigmas * sigma:
            return f"loss {loss:.4g}, {(loss - mean) / max(sigma, 1e-12):.1f} sigma above the mean of {mean:.4g}"
        return None

    def record_step(self, loss: float) -> None:
        """Count a step that changed the weights."""
        self.losses.append(loss)
        self.skipped_in_a_row = 0
        self._good_steps += 1
        if self._good_steps == FORGIVEN_STEPS:
            self.rollbacks = 0

    def record_skip(self) -> None:
        """Count a step that was skipped."""
        self.skipped_in_a_row += 1

    def record_rollback(self) -> None:
        """Count a rollback."""
        self.rollbacks += 1
        self._good_steps = 0
