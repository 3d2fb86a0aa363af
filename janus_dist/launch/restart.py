"""The decision to start lost ranks again or to give up.

Invariant: the decision depends on the arguments alone; this module names neither Ray nor a disk.
"""

from dataclasses import dataclass


@dataclass
class RestartPolicy:
    """Count of the losses of ranks since the newest checkpoint, and the decision that follows from it."""

    max_losses: int
    """Losses in a row without a new checkpoint after which ranks are started again (cluster.restarts)."""
    checkpoint: str | None
    """Newest checkpoint at the last start of ranks, or None."""
    losses: int = 0
    """Losses since `checkpoint` was found; the first loss after a new checkpoint counts as 1."""
    has_failed: bool = False
    """Whether ranks have ended with an error before."""

    def should_restart(self, is_lost_rank: bool, newest: str | None) -> bool:
        """Count a failure and return whether to start ranks again.

        `is_lost_rank` tells a process or node that died from an error that would occur again; `newest` is the newest
        checkpoint after the failure.
        """
        self.losses = self.losses + 1 if newest == self.checkpoint else 1
        self.checkpoint, self.has_failed = newest, True
        return is_lost_rank and self.losses <= self.max_losses
