"""One optimizer step: the micro-steps of this rank, the losses of all ranks, the update.

Invariant: losses are divided by the label counts of the whole step, which the plan knows, so that the update does not
depend on how rows are distributed over ranks and micro-steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from janus_dist.config.streams import STREAMS, Stream
from janus_dist.config.train import TrainConfig
from janus_dist.data.loader import RankStep
from janus_dist.engine.zero import ZeroEngine


@dataclass(frozen=True)
class StepOutcome:
    """Outcome of one step, the same on every rank."""

    losses: dict[Stream, float]
    """Mean cross-entropy per label of each stream that had labels."""
    loss: float
    """Minimised loss: the mean over labels or streams, by `train.loss_mean`."""
    grad_norm: float
    """Norm of the gradient before clipping; infinite when the step was skipped because a gradient was not finite."""
    lr: float
    """Learning rate of the step."""
    objection: str | None
    """Reason for which the step was skipped because of its loss; None when its loss was accepted."""
    is_asked_to_stop: bool
    """True when at least one rank was asked to stop."""

    @property
    def fault(self) -> str | None:
        """Return why the step was skipped, without figures, or None when it changed the weights."""
        if self.objection is not None:
            return "loss spike" if math.isfinite(self.loss) else "loss that is not finite"
        return None if self.grad_norm < math.inf else "gradient that is not finite"


@dataclass
class TrainedStep:
    """A trained step and its metrics, as passed to hooks."""

    rank_step: RankStep
    outcome: StepOutcome
    began_s: float
    """Time (time.perf_counter) at which this rank began to wait for the step's data."""
    waited_s: float
    """Seconds that this rank waited for the step's data."""
    step_s: float = 0.0
    """Seconds that the step took, including the wait for data."""
    eta_s: float = 0.0
    """Estimated seconds until the last step, at the mean pace so far."""
    values: dict[str, float] = field(default_factory=dict[str, float])
    """Metrics of the step, by the names of monitor/metrics.py."""


class Hook(Protocol):
    """An action that runs after each step; all ranks run the same hooks in the same order."""

    def after_step(self, trained: TrainedStep) -> None:
        """Act on a trained step, which may add to its metrics."""
        ...


def loss_weights(labels: dict[Stream, int], loss_mean: str) -> dict[Stream, float]:
    """Return the factor on each stream's summed loss; the weighted sum over streams is the mean named by `loss_mean`.

    `labels` are the label counts of the whole step; streams without labels get no factor.
    """
    present: list[Stream] = [name for name in STREAMS if labels[name]]
    if loss_mean == "labels":
        factors = [1 / sum(labels.values())] * len(present)
    else:
        factors = [1 / (len(present) * labels[name]) for name in present]
    return dict(zip(present, factors, strict=True))


def train_step(
    engine: ZeroEngine,
    rank_step: RankStep,
    config: TrainConfig,
    lr: float,
    objection: Callable[[float], str | None] = lambda loss: None,
    asked_to_stop: bool = False,
) -> StepOutcome:
    """Train one step; all ranks call it with their own batches of the same plan.

    `objection` returns the reason to skip a step with the given loss, which is the same on every rank, or None.
    """
    labels = rank_step.plan.labels
    weights = loss_weights(labels, config.loss_mean)
    factors = torch.tensor([weights.get(name, 0.0) for name in STREAMS], device=engine.world.device)
    sums = torch.zeros(len(STREAMS), device=engine.world.device)
    last = len(rank_step.batches) - 1
    for index, batch in enumerate(rank_step.batches):
        sums += engine.micro_step(batch.to(engine.world.device), factors, last=index == last)
    stop_requests = torch.tensor([float(asked_to_stop)], device=engine.world.device)
    *loss_sums, num_stop_requests = engine.world.sum(torch.cat([sums, stop_requests])).tolist()
    loss = sum(value * weights.get(name, 0.0) for name, value in zip(STREAMS, loss_sums, strict=True))
    reason = objection(loss)
    grad_norm = engine.step(lr, skip=reason is not None)
    losses: dict[Stream, float] = {
        name: value / labels[name] for name, value in zip(STREAMS, loss_sums, strict=True) if labels[name]
    }
    return StepOutcome(losses, loss, grad_norm, lr, reason, num_stop_requests > 0)
