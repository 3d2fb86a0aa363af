"""One optimizer step: the micro-steps of this rank, the losses of all ranks, the update.

Invariant: losses are divided by label counts that the plan knows for the whole step, so that the update does not
depend on how rows were dealt to ranks and micro-steps.
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
    """What one step gave, the same on every rank."""

    losses: dict[Stream, float]
    """Mean cross-entropy per label of each stream that had labels."""
    loss: float
    """What was minimised."""
    grad_norm: float
    """Before clipping; infinite when the step was skipped because a gradient was not finite."""
    lr: float
    objection: str | None
    """Why the step was skipped by its loss; None when it was not."""
    is_asked_to_stop: bool
    """Whether some rank was asked to stop."""

    @property
    def fault(self) -> str | None:
        """Name why the step was skipped, without figures; None when it was taken."""
        if self.objection is not None:
            return "loss spike" if math.isfinite(self.loss) else "loss that is not finite"
        return None if self.grad_norm < math.inf else "gradient that is not finite"


@dataclass
class TrainedStep:
    """A step that was trained, as hooks see it."""

    rank_step: RankStep
    outcome: StepOutcome
    began_s: float
    """When this rank began to wait for the step's data, by time.perf_counter."""
    waited_s: float
    """Seconds that it waited."""
    step_s: float = 0.0
    """Seconds that the step took, waiting included."""
    eta_s: float = 0.0
    """Seconds until the last step at the pace so far."""
    values: dict[str, float] = field(default_factory=dict[str, float])
    """The step's metrics, by the names of monitor/metrics.py."""


class Hook(Protocol):
    """Runs after each step; all ranks run the same hooks in the same order."""

    def after_step(self, trained: TrainedStep) -> None: ...


def loss_weights(labels: dict[Stream, int], loss_mean: str) -> dict[Stream, float]:
    """Factor on each stream's summed loss, such that the sum over streams is the mean asked for."""
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

    `objection` says by the loss, which is the same on every rank, why the step is to be skipped.
    """
    labels = rank_step.plan.labels
    weights = loss_weights(labels, config.loss_mean)
    factors = torch.tensor([weights.get(name, 0.0) for name in STREAMS], device=engine.world.device)
    sums = torch.zeros(len(STREAMS), device=engine.world.device)
    last = len(rank_step.batches) - 1
    for number, batch in enumerate(rank_step.batches):
        sums += engine.micro_step(batch.to(engine.world.device), factors, last=number == last)
    asked = torch.tensor([float(asked_to_stop)], device=engine.world.device)
    *values, asked_ranks = engine.world.sum(torch.cat([sums, asked])).tolist()
    loss = sum(value * weights.get(name, 0.0) for name, value in zip(STREAMS, values, strict=True))
    why = objection(loss)
    grad_norm = engine.step(lr, skip=why is not None)
    losses: dict[Stream, float] = {
        name: value / labels[name] for name, value in zip(STREAMS, values, strict=True) if labels[name]
    }
    return StepOutcome(losses, loss, grad_norm, lr, why, asked_ranks > 0)
