"""Images: the official processor's arithmetic, and whatever can be wrong with a file."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from janus_dist.data import images
from janus_dist.errors import DataError
from tests.images import png

LIMIT = 1_000_000


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def resized_by_the_official_rule(image, side):
    """`image_processing_vlm.py`: size = max(int(side / max * 384), 14), torchvision's bicubic on the PIL image."""
    width, height = image.size
    size = [max(int(height / max(width, height) * side), 14), max(int(width / max(width, height) * side), 14)]
    return image.resize((size[1], size[0]), resample=Image.Resampling.BICUBIC, reducing_gap=None)


@settings(max_examples=40, deadline=None)
@given(st.integers(14, 150), st.integers(14, 150), st.sampled_from([16, 64, 97]))
def test_padding_follows_the_official_arithmetic(width, height, side):
    image = Image.fromarray(noise(width, height))
    resized = np.asarray(resized_by_the_official_rule(image, side))
    # expand2square: a square of the background, the image pasted at half of what is missing, rounded down
    expected = np.full((side, side, 3), 127, dtype=np.uint8)
    top, left = math.floor((side - resized.shape[0]) / 2), math.floor((side - resized.shape[1]) / 2)
    expected[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
    assert np.array_equal(np.asarray(images.pad_to_square(image, side)), expected)


def test_sides_are_rounded_down():
    # 50 / 77 * 64 = 41.56 -> 41 rows, (64 - 41) // 2 = 11 of padding above and 12 below
    square = np.asarray(images.pad_to_square(Image.new("RGB", (77, 50), (255, 0, 0)), 64))
    is_padding = (square == 127).all(axis=(1, 2))
    assert is_padding.tolist() == [True] * 11 + [False] * 41 + [True] * 12


def test_an_image_of_the_right_size_is_not_resampled():
    pixels = noise(64, 64)
    for crop in (images.pad_to_square, images.resize_and_crop):
        assert np.array_equal(np.asarray(crop(Image.fromarray(pixels), 64)), pixels)


@settings(max_examples=40, deadline=None)
@given(st.integers(14, 150), st.integers(14, 150), st.sampled_from([16, 64, 97]))
def test_cropping_keeps_the_middle(width, height, side):
    cropped = images.resize_and_crop(Image.fromarray(noise(width, height)), side)
    short = min(width, height)
    scaled = [max(side, int(length / short * side)) for length in (width, height)]
    whole = np.asarray(Image.fromarray(noise(width, height)).resize((scaled[0], scaled[1]), Image.Resampling.BICUBIC))
    top, left = (scaled[1] - side) // 2, (scaled[0] - side) // 2
    assert np.array_equal(np.asarray(cropped), whole[top : top + side, left : left + side])


def test_png_is_lossless_and_the_same_each_time():
    image = Image.fromarray(noise(20, 20))
    assert images.to_png(image) == images.to_png(image.copy())
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(images.to_png(image)))), noise(20, 20))


def test_pixels_of_a_good_file_come_unchanged():
    assert np.array_equal(np.asarray(images.load(png(noise(30, 20)), LIMIT)), noise(30, 20))


def bomb(width, height):
    """A PNG that claims a size and holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


GOOD = png(noise(64, 48))
FLIPPED = bytes(byte ^ (255 if 100 <= place < 140 else 0) for place, byte in enumerate(GOOD))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not decode: no image format is recognised"),
        (b"GIF but not really", "does not decode: no image format is recognised"),
        (GOOD[:20], "does not decode"),
        (GOOD[: len(GOOD) // 2], "does not decode: OSError: image file is truncated"),
        (FLIPPED, "does not decode"),
        (encoded(Image.fromarray(noise(64, 48)), "JPEG")[:900], "does not decode: OSError: image file is truncated"),
        (png(noise(13, 40)), "too small: 13x40 pixels, the short side must have 14"),
        (png(noise(15, 301)), "too long: 15x301 pixels, at most 20:1 is allowed"),
        (bomb(1001, 1000), "too large: 1001x1000 pixels, at most 1000000 are decoded"),
        (bomb(60_000, 60_000), "DecompressionBombError"),
        (bomb(500, 500), "does not decode"),
    ],
    ids=["empty", "text", "header", "half", "flipped", "jpeg", "small", "long", "large", "bomb", "hollow"],
)
def test_a_bad_file_has_a_reason(content, reason):
    with pytest.raises(DataError, match=reason) as caught:
        images.load(content, LIMIT)
    assert "0x" not in caught.value.message, "an address in a reason makes quarantine tables differ from run to run"


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", GOOD[:8], GOOD[:60], b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\x10\0\0\0WEBP"]),
)
def test_no_bytes_raise_anything_but_a_data_error(content, start):
    try:
        images.load(start + content, LIMIT)
    except DataError as error:
        assert error.message


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "RGBA", "I;16", "I", "YCbCr"])
def test_every_mode_becomes_rgb(mode):
    grey = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    if mode in ("I;16", "I"):
        image = Image.fromarray((grey.astype(np.uint16) * 257).astype(np.uint16))
        image = image if mode == "I;16" else image.convert("I")
    else:
        image = Image.fromarray(grey).convert(mode)
    form = "TIFF" if mode in ("CMYK", "YCbCr", "I") else "PNG"
    found = images.load(encoded(image, form), LIMIT)
    assert found.mode == "RGB" and found.size == (32, 32)
    if mode not in ("1", "P"):
        assert np.abs(np.asarray(found).astype(int) - grey[..., None]).max() <= 2


def test_transparency_is_laid_over_white():
    found = images.load(encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG"), LIMIT)
    assert np.asarray(found).min() == 255


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_the_camera_s_orientation_is_undone(mode):
    image = Image.fromarray(noise(40, 20)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    found = images.load(encoded(image, "PNG", exif=exif), LIMIT)
    assert found.size == (20, 40)
    assert np.array_equal(np.asarray(found), np.rot90(np.asarray(image.convert("RGB")), k=-1))


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    found = images.load(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), LIMIT)
    assert np.asarray(found)[0, 0].tolist() == [255, 0, 0]
