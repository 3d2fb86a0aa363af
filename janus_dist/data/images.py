"""Images from bytes to the squares that the two encoders take.

The arithmetic is the official processor's (`image_processing_vlm.py` of deepseek-ai/Janus): sides are rounded down,
resizing is bicubic with antialiasing on the 8-bit image, padding is RGB 127, centred. Invariant: whatever the bytes
are, `load` returns an RGB image or raises DataError with a reason; it never exhausts memory and never runs what it
reads.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from janus_dist.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is decoded; some others of Pillow's start programs or fetch what they name."""
Image.init()  # or formats beside the most common ones would be unknown to `Image.open(formats=...)`
PADDING = (127, 127, 127)
MIN_RESIZED_SIDE = 14
"""The official processor stretches what would be narrower."""
MIN_SIDE = 14
MAX_ASPECT = 20.0
"""Beyond 27:1 a short side falls below 14 of 384 pixels; long before that an image is a banner, a line or a fault."""
MAX_PIXELS = 178_956_970
"""Pillow's own limit for decompression bombs, and the default of the recipes."""
ORIENTATION = 0x0112  # of EXIF
SWAPPING = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load(encoded: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB image in `encoded`, upright; DataError with the reason when it cannot or must not be decoded.

    What is more than 8 bits of color loses the lower ones, transparency is laid over white, of an animation the first
    frame is taken.
    """
    with _opened(encoded) as image:
        _check(image.size, max_pixels)  # from the header, before anything is decoded
        turn = TURNS.get(_orientation(image))
        image.seek(0)
        is_simple = image.format == "JPEG" and image.mode == "RGB"
        pixels = _jpeg_pixels(encoded, image) if is_simple else _to_rgb(image)
        return pixels if turn is None else pixels.transpose(turn)


def upright_size(encoded: bytes) -> tuple[int, int]:
    """(width, height) that `load` would give, from the header alone; DataError when there is none."""
    with _opened(encoded) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in SWAPPING else (width, height)


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


def encode(image: Image.Image, jpeg_quality: int | None) -> bytes:
    """JPEG of an RGB image with all of its color (4:4:4), PNG without a quality; the same bytes for the same pixels."""
    if jpeg_quality is None:
        return to_png(image)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), jpeg_quality, "RGB", "444")


@contextmanager
def _opened(encoded: bytes) -> Iterator[Image.Image]:
    """The image, of which no more than the header is read yet; whatever fails on the way becomes a DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images; the limit is ours
            yield Image.open(io.BytesIO(encoded), formats=FORMATS)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError("does not decode: no image format is recognised") from error
    except Exception as error:  # Pillow raises a dozen kinds on damaged files, none of them documented
        raise DataError(f"does not decode: {type(error).__name__}: {error}") from error


def _orientation(image: Image.Image) -> int:
    """How EXIF says that the image is to be turned; of a PNG what stands before the pixels, or it would be decoded."""
    if image.format != "PNG":
        return image.getexif().get(ORIENTATION, 1)
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return exif.get(ORIENTATION, 1)


def _check(size: tuple[int, int], max_pixels: int) -> None:
    short, long = min(size), max(size)
    if short < MIN_SIDE:
        raise DataError(f"too small: {size[0]}x{size[1]} pixels, the short side must have {MIN_SIDE}")
    if size[0] * size[1] > max_pixels:
        raise DataError(f"too large: {size[0]}x{size[1]} pixels, at most {max_pixels} are decoded")
    if long / short > MAX_ASPECT:
        raise DataError(f"too long: {size[0]}x{size[1]} pixels, at most {MAX_ASPECT:g}:1 is allowed")


def _jpeg_pixels(encoded: bytes, image: Image.Image) -> Image.Image:
    """A JPEG by libjpeg-turbo in one call, which gives Pillow's pixels sooner; by Pillow what is not quite whole."""
    try:
        return Image.fromarray(simplejpeg.decode_jpeg(encoded, "RGB"))
    except ValueError:
        return image.convert("RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode: 16-bit scaled down, transparency over white."""
    if image.mode == "F":
        raise DataError("does not decode: pixels are floating-point numbers, whose range no one tells")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")
