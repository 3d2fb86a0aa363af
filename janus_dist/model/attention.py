"""Attention over packed documents: each attends causally to itself and to nothing else.

This is the one place that chooses how. On CUDA torch's variable-length flash attention is used; on CPU, where it does
not exist (nor a backward of flex attention), the documents are taken one by one. Invariant: the result of a document
is the same, whatever stands beside it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

PACKED = "janus_packed"
CAUSAL = (-1, 0)  # any number of keys before a query, none after it


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    document_lengths: tuple[int, ...] = (),
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Return attention for transformers' registry: query [1, head, token, dim] in, [1, token, head, dim] out."""
    assert attention_mask is None and sum(document_lengths) == query.shape[2]
    key, value = _repeat_heads(query, key), _repeat_heads(query, value)
    if query.is_cuda:
        return _flash(query, key, value, document_lengths, scaling), None
    # in float32: torch's CPU kernel takes more than twice as long in bfloat16
    documents = [x.float().split(document_lengths, dim=2) for x in (query, key, value)]
    pieces = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        for q, k, v in zip(*documents, strict=True)
    ]
    return torch.cat(pieces, dim=2).to(query.dtype).transpose(1, 2), None


def _flash(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scaling: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # exists for CUDA only

    starts = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    starts[1:] = torch.tensor(lengths, dtype=torch.int32).cumsum(0)
    starts = starts.to(query.device, non_blocking=True)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    out = varlen_attn(q, k, v, starts, starts, max(lengths), max(lengths), window_size=CAUSAL, scale=scaling)
    assert isinstance(out, Tensor)
    return out[None]


def _repeat_heads(query: Tensor, shared: Tensor) -> Tensor:
    groups = query.shape[1] // shared.shape[1]
    return shared if groups == 1 else shared.repeat_interleave(groups, dim=1)


AttentionInterface.register(PACKED, packed_attention)
