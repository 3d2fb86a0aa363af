"""Images from bytes to the squares that the two encoders take.

The arithmetic is the official processor's (`image_processing_vlm.py` of deepseek-ai/Janus): sides are rounded down,
resizing is bicubic with antialiasing on the 8-bit image, padding is RGB 127, centred. Invariant: whatever the bytes
are, `load` returns an RGB image or raises DataError with a reason; it never exhausts memory and never runs what it
reads.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from janus_dist.config.data import PipelineConfig
from janus_dist.errors import DataError

PADDING = (127, 127, 127)
MIN_RESIZED_SIDE = 14


@dataclass(frozen=True)
class Limits:
    """What an image must keep within."""

    min_side: int
    max_aspect: float
    max_pixels: int

    @classmethod
    def of(cls, config: PipelineConfig) -> "Limits":
        return cls(config.min_image_side, config.max_image_aspect, config.max_image_pixels)


def load(encoded: bytes, limits: Limits) -> Image.Image:
    """The RGB image in `encoded`, upright; DataError with the reason when it cannot or must not be used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images; the limit below is ours
            image = Image.open(io.BytesIO(encoded))
            _check(image.size, limits)  # from the header, before anything is decoded
            image.seek(0)
            return _to_rgb(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError("does not decode: no image format is recognised") from error
    except Exception as error:  # Pillow raises a dozen kinds on damaged files, none of them documented
        raise DataError(f"does not decode: {type(error).__name__}: {error}") from error


def pad_to_square(image: Image.Image, side: int) -> Image.Image:
    """Long side to `side` pixels, the short one padded with RGB 127 on both sides (understanding)."""
    long = max(image.size)
    width, height = (max(int(length / long * side), MIN_RESIZED_SIDE) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), PADDING)
    square.paste(resized, ((side - width) // 2, (side - height) // 2))
    return square


def resize_and_crop(image: Image.Image, side: int) -> Image.Image:
    """Short side to `side` pixels, the long one cropped at the centre (generation; the paper does not say where)."""
    short = min(image.size)
    width, height = (max(int(length / short * side), side) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return resized.crop((left, top, left + side, top + side))


def to_png(image: Image.Image) -> bytes:
    """Lossless bytes of an RGB image, the same for the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _check(size: tuple[int, int], limits: Limits) -> None:
    short, long = min(size), max(size)
    if short < max(1, limits.min_side):
        raise DataError(f"too small: {size[0]}x{size[1]} pixels, the short side must have {limits.min_side}")
    if size[0] * size[1] > limits.max_pixels:
        raise DataError(f"too large: {size[0]}x{size[1]} pixels, at most {limits.max_pixels} are decoded")
    if long / short > limits.max_aspect:
        raise DataError(f"too long: {size[0]}x{size[1]} pixels, at most {limits.max_aspect:g}:1 is allowed")


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode: 16-bit scaled down, transparency over white, the first frame of an animation."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")
