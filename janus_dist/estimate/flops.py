"""Model FLOPs: the arithmetic that a step needs, whatever it is run on and however it is arranged.

A product of matrices [m, k] and [k, n] counts 2 m k n. A matrix of w values that is applied to r rows counts 2 w r
forward, as much again where it learns and as much again where a gradient is wanted of its input: 6 a value and row
where all learns, 4 where a frozen part hands a gradient on, 2 where none passes. Attention counts two products forward
and four backward, halved in the language model because a token sees only what stands before it in its document. Heads
count their labelled rows. Invariant: nothing that is computed again, padded or multiplied by zero is counted, nor
embeddings, norms, rotary positions and other work by element (as in PaLM, arXiv 2204.02311, appendix B).
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from janus_dist.batch import Batch
from janus_dist.config.model import ModelConfig
from janus_dist.config.train import Part

PEAKS: tuple[tuple[frozenset[str], float], ...] = (
    (frozenset({"A100"}), 312e12),
    (frozenset({"H100", "PCIe"}), 756e12),
    (frozenset({"H100", "NVL"}), 835e12),
    (frozenset({"H100"}), 989e12),
    (frozenset({"H200", "NVL"}), 835e12),
    (frozenset({"H200"}), 989e12),
    (frozenset({"GH200"}), 989e12),
    (frozenset({"B200"}), 2_250e12),
    (frozenset({"GB200"}), 2_500e12),
    (frozenset({"L40S"}), 362e12),
)
"""Words of a device's name and its dense bfloat16 FLOP/s, from NVIDIA's data sheets; where those give the figure with
sparsity, half of it. The first that fits counts."""


@dataclass(frozen=True)
class Counts:
    """What a step or a micro-step holds of everything that takes time."""

    tokens: int
    squared_lengths: int
    """Sum over documents (pieces of them, where they are cut) of their tokens, squared."""
    images: int
    """Images that are read."""
    text_labels: int
    image_labels: int
    """As many as VQ ids are read."""

    @classmethod
    def of(cls, batch: Batch) -> "Counts":
        """Return the counts of one micro-step; dummies do not count."""
        return cls(
            tokens=sum(batch.document_lengths),
            squared_lengths=sum(length * length for length in batch.document_lengths),
            images=len(batch.pixels) if len(batch.pixel_positions) else 0,
            text_labels=int((batch.text_labels >= 0).sum()),
            image_labels=int((batch.image_labels >= 0).sum()),
        )


def model_flops(model: ModelConfig, trainable: Collection[Part], counts: Counts) -> int:
    """Return the FLOPs of forward and backward for `counts` when the parts `trainable` are trained."""
    text, vision = model.text, model.vision
    tower, adaptor, llm, text_head, embedding, drawing, image_head = (
        part in trainable
        for part in (
            "vision_tower", "understanding_adaptor", "language_model", "text_head",
            "generation_embedding", "generation_adaptor", "image_head",
        )
    )  # fmt: skip
    seen = counts.images * model.image_tokens if model.reads_by == "siglip" else 0
    embedded = counts.image_labels + (0 if model.reads_by == "siglip" else counts.images * model.image_ids)
    tower_layer = 4 * vision.hidden**2 + 2 * vision.hidden * vision.mlp
    llm_layer = 4 * text.hidden**2 + 3 * text.hidden * text.mlp
    before_llm = tower or adaptor or embedding or drawing
    return (
        _linears((3 * vision.patch**2, vision.hidden), seen, tower, False)
        + vision.layers * _layer(tower_layer, seen, 4 * vision.hidden * seen * model.image_tokens, tower, False)
        + _linears((vision.hidden, text.hidden, text.hidden), seen, adaptor, tower)
        + _linears((model.vq.code_dim, text.hidden, text.hidden), embedded, drawing, embedding)
        + text.layers * _layer(llm_layer, counts.tokens, 4 * text.hidden * counts.squared_lengths // 2, llm, before_llm)
        + _linears((text.hidden, text.vocab), counts.text_labels, text_head, before_llm or llm)
        + _linears((text.hidden, text.hidden, model.vq.codes), counts.image_labels, image_head, before_llm or llm)
    )


def peak_flops(device_name: str) -> float | None:
    """Return the dense bfloat16 FLOP/s of a device by its CUDA name; None when unknown or a slice of a GPU (MIG)."""
    words = set(re.split(r"[^A-Za-z0-9]+", device_name))
    if "MIG" in words:
        return None
    return next((peak for wanted, peak in PEAKS if wanted <= words), None)


def _linears(widths: Sequence[int], rows: int, learns: bool, before: bool) -> int:
    """Return the FLOPs of consecutive linear layers; `before`: the input of the first needs a gradient."""
    total = 0
    for width, out in pairwise(widths):
        total += 2 * width * out * rows * (1 + learns + before)
        before |= learns
    return total


def _layer(matrices: int, rows: int, attention: int, learns: bool, before: bool) -> int:
    """Return the FLOPs of a transformer layer with `matrices` weights and `attention` FLOPs of forward attention.

    Where a layer is trained, so are the embeddings before it, so the gradient of the first layer's input is needed too.
    """
    passes = learns or before
    return 2 * matrices * rows * (1 + learns + passes) + attention * (1 + 2 * passes)
