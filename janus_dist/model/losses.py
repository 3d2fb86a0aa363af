"""Cross-entropy of a linear head over labelled rows, in chunks, so that the logits of all rows never exist.

What each row counts in the sum that is minimised is known before the forward. So the gradients of the hidden states
and of the head's weight are made in the forward, while the logits of a chunk are there, as Liger-Kernel's fused
linear cross-entropy does; the backward only hands them on. Invariant: a row without a label adds exactly nothing, to
the loss and to the gradients.
"""

from typing import Any

import torch
from torch import Tensor, nn

from janus_dist.batch import NO_LABEL

try:
    from liger_kernel.ops.cross_entropy import cross_entropy_forward  # pyright: ignore[reportMissingImports]
except ImportError:  # no Triton, or not installed
    cross_entropy_forward = None

CHUNK_LOGITS = 2**27
"""Logits of one chunk: 256 MiB in bfloat16, which is 1,310 rows of Janus's text head."""
BLOCK_LOGITS = 2**19
"""Logits that a CPU works on in float32 at once: 2 MiB, so that they stay in its cache from the first look at them to
the last."""


class LossLinear(nn.Linear):
    """The last layer of a head: logits, or the loss at labels.

    The loss is computed inside the layer's own forward, because ZeRO-3 has its weight there only.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden: Tensor, labels: Tensor | None = None, factors: Tensor | None = None
    ) -> Any:
        """Return the logits [..., class] of hidden states; with `labels` what `linear_cross_entropy` gives."""
        if labels is None:
            return super().forward(hidden)
        assert factors is not None, "a label counts so much"
        return linear_cross_entropy(hidden, self.weight, self.bias, labels, factors)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (sum over rows of factor times cross-entropy, float32 scalar; cross-entropies [row] float32, without
    gradient).

    Of logits `hidden` [row, in] @ `weight` [class, in] + `bias` [class] against `labels` [row] int64, NO_LABEL where
    there is none; `factors` [row] float32. Logits are as coarse as `hidden`, all that follows is float32.
    """
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels, factors, torch.is_grad_enabled())  # pyright: ignore[reportReturnType]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        factors: Tensor,
        learning: bool,
    ) -> tuple[Tensor, Tensor]:
        of_hidden, of_weight, of_bias = (learning and needed for needed in ctx.needs_input_grad[:3])
        learning = of_hidden or of_weight or of_bias
        labelled = labels != NO_LABEL
        factors, labels = factors * labelled, labels.clamp(min=0)
        rows = max(1, CHUNK_LOGITS // len(weight))
        # the sum of many chunks would lose what bfloat16 cannot hold
        summed = torch.float32 if len(hidden) > rows else hidden.dtype
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if of_hidden else None
        weight_grad: Tensor | None = None
        bias_grad = torch.zeros_like(weight[:, 0], dtype=torch.float32) if of_bias else None
        for first in range(0, max(1, len(hidden)), rows):  # once without rows too, for gradients of zeros
            chunk = slice(first, first + rows)
            logits = hidden[chunk] @ weight.T
            if bias is not None:
                logits += bias
            losses[chunk] = _losses_and_slopes(logits, labels[chunk], factors[chunk], bias_grad, learning)
            if hidden_grad is not None:
                torch.mm(logits, weight, out=hidden_grad[chunk])
            if of_weight:
                found = logits.T @ hidden[chunk]
                weight_grad = found.to(summed) if weight_grad is None else weight_grad.add_(found)
        ctx.grads = (
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None else bias_grad.to(weight.dtype),
        )
        losses = losses * labelled
        ctx.mark_non_differentiable(losses)
        return (losses * factors).sum(), losses

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # of what is minimised, and of the losses
        grad, _ = slopes
        grads = (None if found is None else found.mul_(grad) for found in ctx.grads)
        return *grads, None, None, None


def _losses_and_slopes(
    logits: Tensor, labels: Tensor, factors: Tensor, bias_grad: Tensor | None, learning: bool
) -> Tensor:
    """Return the cross-entropies [row] float32 of logits [row, class].

    If `learning`, their derivatives times `factors` [row] take the logits' place, and their sum over rows is added to
    `bias_grad` [class] float32.
    """
    rows = len(logits) if logits.is_cuda else BLOCK_LOGITS // logits.shape[1]
    losses: list[Tensor] = []
    for block, of, counted in zip(*(x.split(max(1, rows)) for x in (logits, labels, factors)), strict=True):
        found, slopes = _cross_entropy(block.float(), of, learning)
        losses.append(found)
        if not learning:
            continue
        slopes *= counted[:, None]
        if bias_grad is not None:
            bias_grad += slopes.sum(dim=0)
        block.copy_(slopes)
    return torch.cat(losses)


def _cross_entropy(logits: Tensor, labels: Tensor, learning: bool) -> tuple[Tensor, Tensor]:
    """Return the cross-entropies [row] of float32 logits [row, class] and, in the logits' own memory, their
    derivatives."""
    if cross_entropy_forward is not None and logits.is_cuda:
        logits = logits.detach().requires_grad_(learning)  # how the kernel is told to write derivatives
        losses, *_, slopes = cross_entropy_forward(  # last in every release; what is between differs
            logits, labels, None, NO_LABEL, 0.0, 0.0, "none", None, return_z_loss=False
        )
        return losses, slopes.detach()
    total = logits.logsumexp(dim=-1)
    losses = total - logits.gather(1, labels[:, None])[:, 0]
    if learning:
        logits.sub_(total[:, None]).exp_()
        logits.scatter_add_(1, labels[:, None], torch.full_like(labels, -1, dtype=logits.dtype)[:, None])
    return losses, logits
