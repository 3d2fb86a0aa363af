"""Conversion of image files into the squares that the two encoders read.

The arithmetic is the official processor's (`image_processing_vlm.py` of deepseek-ai/Janus): sides are rounded down,
resizing is bicubic with antialiasing on the 8-bit image, padding is RGB 127, centred. Invariant: for any bytes, `load`
returns an RGB image or raises RecordError with a reason; it decodes no more pixels than its limit and starts no other
program.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image, UnidentifiedImageError, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.MpoImagePlugin import MpoImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from janus_dist.errors import DataError, RecordError

# The only formats that Pillow may try: by default it tries every format that it knows, and EPS starts Ghostscript.
READERS = (JpegImageFile, PngImageFile, WebPImageFile, GifImageFile, BmpImageFile, TiffImageFile, AvifImageFile)
OPTIONAL_FORMATS = ("WEBP", "AVIF")
"""Formats that a build of Pillow may lack."""
FORMATS = tuple(
    reader.format
    for reader in READERS
    if reader.format and (reader.format not in OPTIONAL_FORMATS or features.check(reader.format.lower()))
)
ENDINGS = frozenset(
    ending.removeprefix(".")
    for ending, form in Image.EXTENSION.items()
    if form in FORMATS or form == MpoImageFile.format  # the JPEG reader opens MPO
)
"""Endings of file names, without the dot, of the formats that this build of Pillow decodes."""
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # every core already runs a job

PADDING = (127, 127, 127)
"""RGB colour of padding."""
WHITE = (255, 255, 255)
"""RGB colour behind transparent pixels."""
MIN_SIDE = 14
"""Shortest side in pixels. It is `min_size` of the official processor, which stretches sides that would become shorter
and so distorts the picture. Pictures that are smaller to begin with show nothing."""
MAX_ASPECT = 20
"""Largest ratio of the long side to the short one. At 384 pixels the short side falls below MIN_SIDE from 27:1; images
near that ratio are rulers, banners and page breaks."""
MAX_PIXELS = 178_956_970
"""Most pixels of an image: Pillow's own limit for decompression bombs, and the limit of recipes."""
MAX_SCANS = 20
"""Most scans of a JPEG that has the most pixels; libjpeg's progressive files have 10, a few kilobytes can hold
thousands."""
START_OF_SCAN = re.compile(b"\xff\xda")  # counts three times as fast as bytes.count
ORIENTATION = 0x0112
"""EXIF tag of the orientation (EXIF 2.3)."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that undoes each orientation."""
SWAPPING = (5, 6, 7, 8)
"""Orientations that swap width and height."""


def load(encoded: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the RGB image in `encoded`, upright; raise RecordError when it cannot or must not be used."""
    return decode(peek(encoded, max_pixels))


def peek(encoded: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the image in `encoded` with only its header read, for `size` and `decode`.

    Raises RecordError when the image cannot or must not be used.
    """
    if not encoded:
        raise RecordError("empty", "the file has no bytes")
    with _reasons():
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        _check(image, encoded, max_pixels)
        return image


def size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) in pixels of the upright image, from its header."""
    # Pillow turns a TIFF itself, and a PNG may store its orientation after its pixels, which are not decoded here.
    is_as_stored = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
    width, height = image.size
    return (height, width) if is_as_stored and _orientation(image) in SWAPPING else (width, height)


def decode(image: Image.Image) -> Image.Image:
    """Return the first frame of an image from `peek`, upright, as 8-bit RGB.

    Raises RecordError when its pixels do not decode.
    """
    with _reasons():
        image.load()
        orientation = _orientation(image)
        image = _to_rgb(image)
        return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def pad_to_square(image: Image.Image, side: int) -> Image.Image:
    """Return the image with its long side resized to `side` pixels and its short side padded with RGB 127 at both ends.

    Used for understanding.
    """
    long = max(image.size)
    width, height = (max(int(length / long * side), MIN_SIDE) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), PADDING)
    square.paste(resized, ((side - width) // 2, (side - height) // 2))
    return square


def resize_and_crop(image: Image.Image, side: int, position: float = 0.5) -> Image.Image:
    """Return the image with its short side resized to `side` pixels and its long side cropped to the same length.

    `position` places the crop: 0 keeps the left or top end, 0.5 the middle. Only that square is resized, with no pixels
    beyond its edges: the rest costs no time, and the square consists of whole pixels of the image.
    """
    short = min(image.size)
    left, top = (int((length - short) * position) for length in image.size)
    box = (left, top, left + short, top + short)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def encode(image: Image.Image, jpeg_quality: int | None) -> bytes:
    """Return JPEG bytes of an RGB image, or lossless PNG when the quality is None; equal pixels give equal bytes.

    Colour keeps its full resolution (4:4:4): coloured text and lines of charts, a pixel wide at 384, turn grey at half.
    """
    buffer = io.BytesIO()
    if jpeg_quality is None:
        image.save(buffer, "PNG", compress_level=6)
    else:
        image.save(buffer, "JPEG", quality=jpeg_quality, subsampling="4:4:4")
    return buffer.getvalue()


@contextmanager
def _reasons() -> Iterator[None]:
    """Raise RecordError in place of any error of Pillow inside the block."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images and odd metadata; this module decides what to refuse
            yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise RecordError("does not decode", "no image format is recognised") from error
    except Image.DecompressionBombError as error:
        raise RecordError("too large", f"{error}") from error
    except Exception as error:  # Pillow raises a dozen kinds on damaged files, none of them documented
        raise RecordError("does not decode", f"{type(error).__name__}: {error}") from error


def _check(image: Image.Image, encoded: bytes, max_pixels: int) -> None:
    """Raise RecordError when an image is too small, too large, too narrow or has too many scans."""
    width, height = image.size
    short, long = min(image.size), max(image.size)
    if short < MIN_SIDE:
        raise RecordError("too small", f"{width}x{height} pixels, the short side must have {MIN_SIDE}")
    if width * height > max_pixels:
        raise RecordError("too large", f"{width}x{height} pixels, at most {max_pixels} are decoded")
    if long / short > MAX_ASPECT:
        raise RecordError("too narrow", f"{width}x{height} pixels, at most {MAX_ASPECT}:1 is allowed")
    # In compressed pixels another byte always follows 0xff, so the count is that of scans, and a few in metadata.
    scans = len(START_OF_SCAN.findall(encoded)) if image.format in ("JPEG", "MPO") else 0
    if scans * width * height > MAX_SCANS * max_pixels:
        raise RecordError("too many scans", f"{scans} of {width}x{height} pixels, each is decoded like an image")


def _orientation(image: Image.Image) -> Any:
    """Return the orientation that the file states, which may be of any type that compares."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken metadata does not make the pixels unusable
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as 8-bit RGB: the high byte of 16 bits, transparency over white.

    Raises RecordError for a mode whose black and white are not defined.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise RecordError("does not decode", f"its mode {image.mode} does not define which values are black and white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        over_white = Image.new("RGB", image.size, WHITE)
        over_white.paste(image, mask=image)
        return over_white
    return image if image.mode == "RGB" else image.convert("RGB")  # convert copies an RGB image too
