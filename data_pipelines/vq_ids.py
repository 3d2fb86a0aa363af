"""VQ ids of crops on one device.

Invariant: weights and arithmetic are float32 on any device, since ids are an arg-max, which coarser rounding would
change.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from janus_dist.config.model import ModelConfig
from janus_dist.model import vq as vq_model
from janus_dist.weights.vq import load_vq


class VqIds:
    """A VQ tokenizer with its weights on a device; raises CheckpointError when they are absent or do not fit."""

    def __init__(self, model: ModelConfig, weights: str, device: str):
        self.vq = load_vq(model, weights)
        self.vq.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - 1.3 times as fast on a CPU
        self.vq.to(torch.device(device))  # pyright: ignore[reportArgumentType] - transformers' wrapper confuses it
        self.device = device

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Return the VQ ids, [images, ids] uint16, of crops: `pixels`, [images, side, side, 3] uint8."""
        images = torch.tensor(pixels).to(self.device).permute(0, 3, 1, 2)  # a copy: Ray's arrays are read-only
        return vq_model.encode(self.vq, vq_model.to_float(images)).cpu().numpy().astype(np.uint16)
