"""Weights by name into a model in one process. Invariant: either every parameter is set or an error says which do not
fit."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from janus_dist.model.size import check_shapes


@torch.no_grad()
def load_into(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Copy `weights` into the parameters of the same names; CheckpointError unless names and shapes all match."""
    parameters = dict(model.named_parameters())
    check_shapes(shapes_of(parameters), shapes_of(weights), where)
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
