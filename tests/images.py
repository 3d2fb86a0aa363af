"""Images as encoded bytes."""

import io

import numpy as np
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    """PNG bytes of [height, width, 3] uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """[height, width, 3] uint8 random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
