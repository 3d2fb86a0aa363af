"""Batch: the packed rows of one rank in one micro-step, the one type that data makes and the model eats.

The documents of all rows lie one behind the other on a single token line; there is no padding. Invariants: every
position carries exactly one input (a text id, a feature of an image, or the embedding of a VQ id); there is at least
one image, one VQ id and one label row per head, because every rank must call every module (dummies have no position
and no label).
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

NO_LABEL = -100


@dataclass(frozen=True)
class Batch:
    """Tensors of one micro-step; T tokens, N images, K VQ ids, R text label rows, S image label rows."""

    input_ids: Tensor
    """[T] int64; 0 where an image feature or a VQ id stands."""
    position_ids: Tensor
    """[T] int64, starting at 0 in every document."""
    document_lengths: tuple[int, ...]
    """Tokens of each document, in order; they add up to T."""
    pixels: Tensor
    """[max(N, 1), 3, side, side] uint8."""
    pixel_positions: Tensor
    """[N * image_tokens] int64: where the image features go; empty when the only image is a dummy."""
    vq_ids: Tensor
    """[max(K, 1)] int64."""
    vq_positions: Tensor
    """[K] int64; empty when the only id is a dummy."""
    text_rows: Tensor
    """[max(R, 1)] int64: positions that the text head reads."""
    text_labels: Tensor
    """[max(R, 1)] int64: the ids they predict, NO_LABEL in a dummy."""
    text_streams: Tensor
    """[max(R, 1)] int64: the stream of each label, its place in STREAMS."""
    image_rows: Tensor
    """[max(S, 1)] int64: positions that the image head reads."""
    image_labels: Tensor
    """[max(S, 1)] int64: the VQ ids they predict, NO_LABEL in a dummy."""

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_bytes(self) -> int:
        values = (getattr(self, field.name) for field in fields(self))
        return sum(value.nbytes for value in values if isinstance(value, Tensor))

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})
