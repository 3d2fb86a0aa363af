"""Weights by name into a model in one process. Invariant: either every parameter is set or an error says which do not
fit."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from janus_dist.errors import CheckpointError

SHOWN = 3


@torch.no_grad()
def load_into(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Copy `weights` into the parameters of the same names; CheckpointError unless names and shapes all match."""
    check_shapes(model, {name: tuple(weight.shape) for name, weight in weights.items()}, where)
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


def check_shapes(model: nn.Module, found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """CheckpointError unless `found` are the names and shapes of the model's parameters; `where` says in the message
    what they are of."""
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        shown = "; ".join(
            f"{name}: {found.get(name, 'absent')} there, {wanted.get(name, 'absent')} in this recipe"
            for name in differing[:SHOWN]
        )
        raise CheckpointError(
            f"{where} holds a model of another size: {len(differing)} parameters differ, {shown}",
            "use the recipe that it was trained with (config.json in its run folder)",
        )
