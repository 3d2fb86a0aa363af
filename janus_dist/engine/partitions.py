"""ZeRO-3's partitions as sharded tensors keyed by parameter name.

This is the one module that reads DeepSpeed's private names (pinned version; a test fails when they change). A ZeRO-3
partition of a parameter with n elements on W ranks is `ceil(n / W)` consecutive elements, so each is described exactly
by where it begins and how many there are (shares.py). Invariant: `views` are copies of nothing; writing
what was loaded goes through `restore`, which also renews the low-precision weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from janus_dist.engine.shares import Share
from janus_dist.engine.zero import ZeroEngine

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """This rank's share of one parameter: elements of flat tensors that hold it in full precision."""

    name: str
    shape: tuple[int, ...]
    first: int
    """The parameter's element that the share begins with."""
    valid: int
    """Elements of the share that belong to the parameter; the rest is padding."""
    flat: Tensor
    """The flat tensor that holds the share: fp32 master weights, or the frozen parameter's own partition."""
    offset: int
    trainable: bool

    @property
    def elements(self) -> int:
        total = 1
        for side in self.shape:
            total *= side
        return total

    def view(self, flat: Tensor) -> Tensor:
        """This share's elements [valid] of a tensor laid out like `flat`."""
        return flat.detach().narrow(0, self.offset, self.valid)

    def share(self, values: Tensor) -> Share:
        """`values` [valid] as this share of the parameter."""
        return Share(values, self.first, self.elements)


class Order:
    """Counts how often ZeRO-3 met modules in another order than it had recorded, by which it fetches parameters ahead.

    It records anew each time, and meanwhile every module waits for its parameters: DeepSpeed says so in a log alone.
    """

    def __init__(self, engine: ZeroEngine):
        self._changes = 0
        coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
        self._real, coordinator._invalidate_trace = coordinator._invalidate_trace, self._changed

    def changes(self) -> int:
        """Since this was asked last."""
        found, self._changes = self._changes, 0
        return found

    def _changed(self) -> None:
        self._changes += 1
        self._real()


def pieces(engine: ZeroEngine) -> list[Piece]:
    """This rank's share of every parameter, frozen ones included, in the order of their names."""
    found = []
    zero = engine.optimizer
    for flat, group in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        offset = 0
        for parameter in group:
            found.append(_piece(engine, parameter, flat, offset, trainable=True))
            offset += parameter.partition_numel()
    for parameter in engine.module.parameters():
        if not parameter.requires_grad:
            found.append(_piece(engine, parameter, parameter.ds_tensor, 0, trainable=False))
    return sorted(found, key=lambda piece: piece.name)


def moments(engine: ZeroEngine, piece: Piece) -> dict[str, Tensor]:
    """The flat AdamW moments beside a trainable piece; zeros before the first step."""
    adamw = engine.optimizer.optimizer
    state = adamw.state[piece.flat]
    if not state:  # then AdamW takes what it finds for its own, its count of steps included
        state["step"] = _step(adamw, piece.flat, 0)
        state.update({name: torch.zeros_like(piece.flat, requires_grad=False) for name in MOMENTS})
    return {name: state[name] for name in MOMENTS}


def optimizer_steps(engine: ZeroEngine) -> int:
    """Steps that AdamW has taken, for its bias correction."""
    states = [engine.optimizer.optimizer.state[flat] for flat in engine.optimizer.fp32_partitioned_groups_flat]
    return int(states[0]["step"]) if states and "step" in states[0] else 0


def set_optimizer_steps(engine: ZeroEngine, steps: int) -> None:
    """Tell AdamW how many steps it has taken."""
    adamw = engine.optimizer.optimizer
    for flat in engine.optimizer.fp32_partitioned_groups_flat:
        adamw.state[flat]["step"] = _step(adamw, flat, steps)


def _step(adamw: torch.optim.AdamW, flat: Tensor, steps: int) -> Tensor:
    """AdamW's count of steps; its fused form counts on the device."""
    device = flat.device if adamw.defaults.get("fused") else None
    return torch.tensor(float(steps), dtype=torch.float32, device=device)


def begin(engine: ZeroEngine) -> None:
    """Bring every parameter into its partitioned form, before `pieces` are read or written."""
    engine.optimizer.checkpoint_event_prologue()


def end(engine: ZeroEngine, restored: bool) -> None:
    """Take up work again; after writing full-precision weights (`restored`), renew the low-precision ones from them."""
    zero = engine.optimizer
    if restored:
        for number in range(len(zero.fp32_partitioned_groups_flat)):
            if zero.fp16_partitioned_groups_flat[number] is not zero.fp32_partitioned_groups_flat[number]:
                zero.fp16_partitioned_groups_flat[number].data.copy_(zero.fp32_partitioned_groups_flat[number].data)
            zero._unflatten_partitioned_parameters(number)
        for parameter in engine.module.parameters():  # DeepSpeed's own function forgets the frozen ones
            parameter.ds_secondary_tensor = None  # pyright: ignore[reportAttributeAccessIssue]  # hpZ's: weights before
    zero.checkpoint_event_epilogue()


def _piece(engine: ZeroEngine, parameter: Tensor, flat: Tensor, offset: int, trainable: bool) -> Piece:
    total, share = parameter.ds_numel, parameter.partition_numel()  # pyright: ignore[reportAttributeAccessIssue]
    valid = max(0, min(share, total - engine.world.rank * share))
    name = engine.names[parameter.ds_id]  # pyright: ignore[reportAttributeAccessIssue]
    first = min(total, engine.world.rank * share)
    return Piece(name, tuple(parameter.ds_shape), first, valid, flat, offset, trainable)  # pyright: ignore[reportAttributeAccessIssue]
