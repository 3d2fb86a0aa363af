"""Cross-entropy of the two heads, summed by stream. Invariant: a row without a label adds exactly nothing."""

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_dist.batch import NO_LABEL


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy [row] float32 of logits [row, class] against labels [row]; 0 where the label is NO_LABEL."""
    return F.cross_entropy(logits.float(), labels, ignore_index=NO_LABEL, reduction="none")


def by_stream(text: Tensor, text_is_understanding: Tensor, image: Tensor) -> Tensor:
    """Summed losses [3] float32 in the order of STREAMS, of the text head's losses [row] and the image head's [row]."""
    understanding = torch.where(text_is_understanding, text, 0.0).sum()
    return torch.stack([understanding, torch.where(text_is_understanding, 0.0, text).sum(), image.sum()])
