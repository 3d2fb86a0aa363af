"""Weights by name into a model in one process. Invariant: either every parameter is set or an error says which do not
fit."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from janus_dist.errors import CheckpointError

SHOWN = 3


@torch.no_grad()
def load_into(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Copy `weights` into the parameters of the same names; CheckpointError unless names and shapes all match.

    `where` says in the message what the weights are.
    """
    parameters = dict(model.named_parameters())
    wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
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
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
