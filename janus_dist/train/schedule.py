"""The learning rate as a function of the step. Invariant: no state, so that a resumed run has the same rate."""

import math

from janus_dist.config.train import OptimConfig


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Return the rate of step `step` (counted from 0) of `steps`.

    The rate rises linearly during warm-up, then is constant or follows a cosine down to `final_lr`.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    progress = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    return optim.final_lr + (optim.lr - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
