"""Encoding of pixels as VQ ids. Apart from encode.py, so that workers of the other streams need not load torch.

Invariant: weights and arithmetic are float32 on any device; ids are an arg-max and would flip with a coarser rounding.
"""

import numpy as np
import pyarrow as pa
import torch

from janus_dist.config.model import ModelConfig
from janus_dist.model import vq as vq_model
from janus_dist.model.vq_weights import load_vq


class EncodePixels:
    """Add `vq_ids` to whole blocks; an actor of its own, because the VQ tokenizer is loaded once and may sit on a GPU.

    All good rows of a block are encoded in batches of `batch` images.
    """

    def __init__(self, model: ModelConfig, weights: str, batch: int, device: str, columns: pa.Schema):
        self.vq = load_vq(model, weights)
        self.vq.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - 1.3 times as fast on a CPU
        self.vq.to(torch.device(device))  # pyright: ignore[reportArgumentType] - transformers' wrapper confuses it
        self.side, self.batch, self.device, self.columns = model.image_size, batch, device, columns

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = block.to_pylist()
        good = [row for row in rows if not row["reason"]]
        for start in range(0, len(good), self.batch):
            batch = good[start : start + self.batch]
            for row, ids in zip(batch, self.encode([row["pixels"] for row in batch]), strict=True):
                row["vq_ids"] = ids
        return pa.Table.from_pylist(rows, schema=self.columns)

    def encode(self, squares: list[bytes]) -> list[list[int]]:
        """VQ ids of squares of 8-bit RGB pixels."""
        shape = (len(squares), self.side, self.side, 3)
        pixels = np.frombuffer(b"".join(squares), dtype=np.uint8).reshape(shape).transpose(0, 3, 1, 2)
        images = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)
        return vq_model.encode(self.vq, vq_model.to_float(images)).cpu().tolist()
