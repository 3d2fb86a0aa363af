"""VQ ids as images that a browser shows. Invariant: the pixels are those that the official demo would save."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from janus_dist.config.model import ModelConfig
from janus_dist.model import vq as vq_model
from janus_dist.weights.vq import load_vq


def painter(model: ModelConfig, weights: Path) -> Callable[[Sequence[np.ndarray]], list[bytes]]:
    """Return a function from the VQ ids of images, each [ids per image], to their PNG bytes.

    Raises CheckpointError when the weights are absent or of another VQ tokenizer than `model.vq`.
    """
    vq = load_vq(model, weights)

    def paint(ids: Sequence[np.ndarray]) -> list[bytes]:
        if not ids:
            return []
        pixels = vq_model.decode(vq, torch.from_numpy(np.stack(ids).astype(np.int64)))
        return [_png(image) for image in vq_model.to_uint8(pixels).permute(0, 2, 3, 1).numpy()]

    return paint


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
