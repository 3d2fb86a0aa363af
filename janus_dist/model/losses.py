"""Cross-entropy of the two heads, summed by stream. Invariant: a row without a label adds exactly nothing."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_dist.batch import NO_LABEL


@dataclass(frozen=True)
class StreamLosses:
    """Summed cross-entropy of each stream in one micro-step (scalar float32 tensors), with their graph."""

    understanding: Tensor
    text: Tensor
    generation: Tensor


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy [row] float32 of logits [row, class] against labels [row]; 0 where the label is NO_LABEL."""
    return F.cross_entropy(logits.float(), labels, ignore_index=NO_LABEL, reduction="none")


def by_stream(text: Tensor, text_is_understanding: Tensor, image: Tensor) -> StreamLosses:
    """Sum the text head's losses [row] by stream, and the image head's losses [row]."""
    understanding = torch.where(text_is_understanding, text, 0.0).sum()
    return StreamLosses(understanding, torch.where(text_is_understanding, 0.0, text).sum(), image.sum())
