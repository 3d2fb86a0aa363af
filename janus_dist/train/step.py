"""One optimizer step: the micro-steps of this rank, the losses of all ranks, the update.

Invariant: losses are divided by label counts that the plan knows for the whole step, so that the update does not
depend on how rows were dealt to ranks and micro-steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from janus_dist.config.mix import STREAMS, Stream
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


def loss_weights(labels: dict[Stream, int], loss_mean: str) -> dict[Stream, float]:
    """Factor on each stream's summed loss, such that the sum over streams is the mean asked for."""
    present: list[Stream] = [name for name in STREAMS if labels[name]]
    if loss_mean == "labels":
        factors = [1 / sum(labels.values())] * len(present)
    else:
        factors = [1 / (len(present) * labels[name]) for name in present]
    return dict(zip(present, factors, strict=True))


def train_step(engine: ZeroEngine, rank_step: RankStep, config: TrainConfig, lr: float) -> StepOutcome:
    """Train one step; all ranks call it with their own batches of the same plan."""
    labels = rank_step.plan.labels
    weights = loss_weights(labels, config.loss_mean)
    scale = torch.tensor([weights.get(name, 0.0) for name in STREAMS], device=engine.world.device)

    def loss_of(by_stream: Tensor) -> tuple[Tensor, Tensor]:
        return (by_stream * scale).sum(), by_stream.detach()

    sums = torch.zeros(len(STREAMS), device=engine.world.device)
    last = len(rank_step.batches) - 1
    for number, batch in enumerate(rank_step.batches):
        sums += engine.micro_step(loss_of, batch.to(engine.world.device), last=number == last)
    grad_norm = engine.step(lr)
    values = engine.world.sum(sums).tolist()
    losses: dict[Stream, float] = {
        name: value / labels[name] for name, value in zip(STREAMS, values, strict=True) if labels[name]
    }
    return StepOutcome(
        losses, sum(value * weights.get(name, 0.0) for name, value in zip(STREAMS, values, strict=True)), grad_norm, lr
    )
