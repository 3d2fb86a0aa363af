"""Which steps are skipped, and when a run goes back: losses that are no number, or far above the ones before.

The decision is a function of the agreed losses alone, so every rank comes to the same one before anything is changed.
Invariant: a skipped step changes nothing, neither weights nor moments; what is judged by comes back with a checkpoint,
and is of the mixture that is trained on.
"""

import math
from collections import deque
from collections.abc import Sequence

WINDOW_STEPS = 128
"""Losses that a spike is measured by (OLMo-core has the same)."""
LEAST_STEPS = 64
MAX_SKIPPED = 10
"""Steps in a row that are skipped before the run goes back to its last checkpoint."""
MAX_RETURNS = 3
"""After so many returns a run ends."""
FORGIVEN_STEPS = 1_000
"""Steps taken since the last return after which returns are counted anew: a month has room for more than three."""


class Guard:
    """Judges each step's loss by those before it."""

    def __init__(self, spike_sigmas: float | None, losses: Sequence[float] = ()):
        self.spike_sigmas = spike_sigmas
        self.losses = deque(losses, maxlen=WINDOW_STEPS)
        """Of the last steps that were taken, oldest first."""
        self.skipped_in_a_row = 0
        self.returns = 0
        """Not long ago."""
        self._taken = 0

    def go_on(self, losses: Sequence[float]) -> None:
        """Stand where a checkpoint does."""
        self.losses.clear()
        self.losses.extend(losses)
        self.skipped_in_a_row = 0

    def went_back(self) -> None:
        """The run goes back to a checkpoint."""
        self.returns += 1
        self._taken = 0

    def forget(self) -> None:
        """What comes is of another mixture, whose losses are not to be judged by those before."""
        self.losses.clear()

    def objection(self, loss: float) -> str | None:
        """Why a step with this loss must not be taken; None when it may."""
        if not math.isfinite(loss):
            return f"loss {loss}"
        if self.spike_sigmas is None or len(self.losses) < LEAST_STEPS:
            return None
        mean = sum(self.losses) / len(self.losses)
        sigma = math.sqrt(sum((one - mean) ** 2 for one in self.losses) / len(self.losses))
        if loss > mean + self.spike_sigmas * sigma:
            return f"loss {loss:.4g}, {(loss - mean) / max(sigma, 1e-12):.1f} sigma above the mean of {mean:.4g}"
        return None

    def took(self, loss: float) -> None:
        """A step was taken."""
        self.losses.append(loss)
        self.skipped_in_a_row = 0
        self._taken += 1
        if self._taken == FORGIVEN_STEPS:
            self.returns = 0

    def skipped(self) -> None:
        """A step was skipped."""
        self.skipped_in_a_row += 1

    @property
    def is_lost(self) -> bool:
        """Whether so many steps were skipped that the run should go back."""
        return self.skipped_in_a_row >= MAX_SKIPPED
