"""Batch: the packed rows of one rank in one micro-step, the only type that passes from the data to the model.

The documents of all rows are concatenated along one token axis without padding. Invariants: every position has exactly
one input (a text id, an image feature, or the embedding of a VQ id); a batch has at least one image, one VQ id and one
label row per head, because every rank must call every module (dummies have no position and no label).
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

NO_LABEL = -100


@dataclass(frozen=True)
class Batch:
    """Tensors of one micro-step with T tokens, N images, K VQ ids, R text label rows and S image label rows."""

    input_ids: Tensor
    """[T] int64: text ids; 0 at positions of an image feature or a VQ id."""
    position_ids: Tensor
    """[T] int64: positions that start at 0 in every document."""
    document_lengths: tuple[int, ...]
    """Tokens of each document, in order; their sum is T."""
    pixels: Tensor
    """[max(N, 1), 3, side, side] uint8: RGB images."""
    pixel_positions: Tensor
    """[N * image_tokens] int64: positions of the image features; empty when the only image is a dummy."""
    vq_ids: Tensor
    """[max(K, 1)] int64: VQ ids."""
    vq_positions: Tensor
    """[K] int64: positions of the VQ ids; empty when the only id is a dummy."""
    text_rows: Tensor
    """[max(R, 1)] int64: positions that the text head reads."""
    text_labels: Tensor
    """[max(R, 1)] int64: the text ids that these rows predict, NO_LABEL in a dummy."""
    text_streams: Tensor
    """[max(R, 1)] int64: the stream of each label, as an index into STREAMS."""
    image_rows: Tensor
    """[max(S, 1)] int64: positions that the image head reads."""
    image_labels: Tensor
    """[max(S, 1)] int64: the VQ ids that these rows predict, NO_LABEL in a dummy."""

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens T."""
        return len(self.input_ids)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all tensors."""
        values = (getattr(self, field.name) for field in fields(self))
        return sum(value.nbytes for value in values if isinstance(value, Tensor))

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch with its tensors on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})
