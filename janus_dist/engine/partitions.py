"""ZeRO-3's partitions as sharded tensors keyed by parameter name.

This is the only module that reads DeepSpeed's private names (pinned version; a test fails when they change). A ZeRO-3
partition of a parameter with n elements on W ranks is `ceil(n / W)` consecutive elements, so its first element and its
length describe it exactly (shares.py). Invariants: a view of a piece shares memory with DeepSpeed's tensors and is
never a copy; after weights are written into views, `end(restored=True)` updates the low-precision weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from janus_dist.engine.shares import Share
from janus_dist.engine.zero import ZeroEngine

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class ParameterPiece:
    """This rank's share of one parameter, as consecutive elements of a flat tensor."""

    name: str
    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    first: int
    """Index of the share's first element in the flattened parameter."""
    valid: int
    """Number of the share's elements that belong to the parameter; the rest is padding."""
    flat: Tensor
    """Flat tensor that contains the share: float32 master weights, or the partition of a frozen parameter."""
    offset: int
    """Index of the share's first element in `flat`."""
    trainable: bool

    @property
    def elements(self) -> int:
        """Return the number of elements of the whole parameter."""
        total = 1
        for side in self.shape:
            total *= side
        return total

    def view(self, flat: Tensor) -> Tensor:
        """Return this share's elements of a tensor laid out like `self.flat`, as a view: [valid]."""
        return flat.detach().narrow(0, self.offset, self.valid)

    def share(self, values: Tensor) -> Share:
        """Return `values`: [valid] as this rank's share of the parameter."""
        return Share(values, self.first, self.elements)


class ModuleOrderMonitor:
    """Counts how often modules ran in another order than the one that ZeRO-3 recorded for prefetching parameters.

    ZeRO-3 then records the order again, and meanwhile every module waits for its parameters. DeepSpeed reports this
    only in a log.
    """

    def __init__(self, engine: ZeroEngine):
        self._changes = 0
        coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
        self._invalidate_trace, coordinator._invalidate_trace = coordinator._invalidate_trace, self._count_change

    def changes(self) -> int:
        """Return the number of changes since the last call."""
        changes, self._changes = self._changes, 0
        return changes

    def _count_change(self) -> None:
        """Count a change, then run DeepSpeed's own method."""
        self._changes += 1
        self._invalidate_trace()


def pieces(engine: ZeroEngine) -> list[ParameterPiece]:
    """Return this rank's share of every parameter, including frozen ones, sorted by name."""
    unsorted = []
    zero = engine.optimizer
    for flat, group in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        offset = 0
        for parameter in group:
            unsorted.append(_piece(engine, parameter, flat, offset, trainable=True))
            offset += parameter.partition_numel()
    for parameter in engine.module.parameters():
        if not parameter.requires_grad:
            unsorted.append(_piece(engine, parameter, parameter.ds_tensor, 0, trainable=False))
    return sorted(unsorted, key=lambda piece: piece.name)


def moments(engine: ZeroEngine, piece: ParameterPiece) -> dict[str, Tensor]:
    """Return the AdamW moments of a trainable piece by name, float32 in the shape of `piece.flat`.

    They are created as zeros before the first step.
    """
    adamw = engine.optimizer.optimizer
    state = adamw.state[piece.flat]
    if not state:  # AdamW uses an existing state as its own, including the step count
        state["step"] = _step(adamw, piece.flat, 0)
        state.update({name: torch.zeros_like(piece.flat, requires_grad=False) for name in MOMENTS})
    return {name: state[name] for name in MOMENTS}


def optimizer_steps(engine: ZeroEngine) -> int:
    """Return the number of steps that AdamW has taken, which its bias correction uses."""
    states = [engine.optimizer.optimizer.state[flat] for flat in engine.optimizer.fp32_partitioned_groups_flat]
    return int(states[0]["step"]) if states and "step" in states[0] else 0


def set_optimizer_steps(engine: ZeroEngine, steps: int) -> None:
    """Set the number of steps that AdamW has taken."""
    adamw = engine.optimizer.optimizer
    for flat in engine.optimizer.fp32_partitioned_groups_flat:
        adamw.state[flat]["step"] = _step(adamw, flat, steps)


def _step(adamw: torch.optim.AdamW, flat: Tensor, steps: int) -> Tensor:
    """Return AdamW's step count as a float32 scalar; the fused AdamW keeps it on the device."""
    device = flat.device if adamw.defaults.get("fused") else None
    return torch.tensor(float(steps), dtype=torch.float32, device=device)


def begin(engine: ZeroEngine) -> None:
    """Partition every parameter, before `pieces` are read or written."""
    engine.optimizer.checkpoint_event_prologue()


def end(engine: ZeroEngine, restored: bool) -> None:
    """Resume normal operation; with `restored`, first update the low-precision weights from the full-precision ones."""
    zero = engine.optimizer
    if restored:
        for index in range(len(zero.fp32_partitioned_groups_flat)):
            if zero.fp16_partitioned_groups_flat[index] is not zero.fp32_partitioned_groups_flat[index]:
                zero.fp16_partitioned_groups_flat[index].data.copy_(zero.fp32_partitioned_groups_flat[index].data)
            zero._unflatten_partitioned_parameters(index)
        for parameter in engine.module.parameters():  # DeepSpeed's own function omits the frozen ones
            parameter.ds_secondary_tensor = None  # pyright: ignore[reportAttributeAccessIssue]  # hpZ's old weights
    zero.checkpoint_event_epilogue()


def _piece(engine: ZeroEngine, parameter: Tensor, flat: Tensor, offset: int, trainable: bool) -> ParameterPiece:
    """Return this rank's share of a partitioned parameter that begins at `offset` of `flat`."""
    total, share = parameter.ds_numel, parameter.partition_numel()  # pyright: ignore[reportAttributeAccessIssue]
    valid = max(0, min(share, total - engine.world.rank * share))
    name = engine.names[parameter.ds_id]  # pyright: ignore[reportAttributeAccessIssue]
    first = min(total, engine.world.rank * share)
    return ParameterPiece(name, tuple(parameter.ds_shape), first, valid, flat, offset, trainable)  # pyright: ignore[reportAttributeAccessIssue]
