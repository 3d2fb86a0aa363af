"""Images as encoded bytes."""

import io

import numpy as np
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    """PNG bytes of [height, width, 3] uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
