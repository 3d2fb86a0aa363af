"""Image files of every mode and format: upright 8-bit RGB, or an error with a reason."""

import io
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from janus_dist.data import images
from janus_dist.errors import DataError
from tests.images import noise, png

MAX_PIXELS = 1_000_000
LOSSLESS = {  # or nearly so
    "JPEG": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}
COLORS = np.kron(
    np.array([[[255, 0, 0], [0, 160, 0]], [[0, 0, 220], [250, 240, 30]]], np.uint8), np.ones((16, 24, 1), np.uint8)
)
"""[32, 48, 3]: four fields, so that turning and mirroring show."""


def load(content):
    return np.asarray(images.load(content, MAX_PIXELS))


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(width, height, *chunks, depth=8, color=2):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def png_16(values):
    """Return a PNG of 16-bit values: [height, width, channel] uint16."""
    height, width, channels = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    return png_of(width, height, chunk(b"IDAT", zlib.compress(lines)), depth=16, color=color)


def many_scans(number):
    """Return a progressive JPEG of 64x64 pixels whose last scan is repeated many times."""
    content = encoded(Image.fromarray(noise(64, 64)), "JPEG", progressive=True)
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    return content[:last] + content[last:end] * number + content[end:]


def gif_that_grows(width, height):
    """Return a GIF whose header says 20x20 pixels and whose first frame is larger."""
    content = bytearray(encoded(Image.new("P", (20, 20)), "GIF"))
    frame = content.index(b",", 13)
    content[frame + 5 : frame + 9] = struct.pack("<HH", width, height)
    return bytes(content)


GOOD = png(noise(64, 48))
JPEG = encoded(Image.fromarray(noise(64, 48)), "JPEG")
WEBP = encoded(Image.fromarray(noise(64, 48)), "WEBP", lossless=True)
FLIPPED = bytes(byte ^ (255 if 100 <= place < 140 else 0) for place, byte in enumerate(GOOD))
TOO_MUCH_TEXT = chunk(b"zTXt", b"key\0\0" + zlib.compress(b" " * 50_000_000))
TOO_LARGE_PROFILE = chunk(b"iCCP", b"key\0\0" + zlib.compress(b" " * 50_000_000))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n(/tmp/x) (w) file\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty: the file has no bytes"),
        (b"GIF but not really", "does not decode: no image format is recognised"),
        (b"<html><body>404</body></html>", "does not decode: no image format"),
        (GOOD[:20], "does not decode: "),
        (GOOD[: len(GOOD) // 2], "does not decode: OSError: image file is truncated"),
        (FLIPPED, "does not decode: "),
        (JPEG[:900], "does not decode: OSError: image file is truncated"),
        (JPEG[:100], "does not decode: "),
        (JPEG[:20] + JPEG[180:], "does not decode: "),
        (WEBP[: len(WEBP) // 2], "does not decode: "),
        (WEBP[:20] + b"\xff" * 40 + WEBP[60:], "does not decode: "),
        (png(noise(13, 40)), "too small: 13x40 pixels, the short side must have 14"),
        (png_of(0, 40), "does not decode: "),
        (gif_that_grows(0, 0)[:6] + b"\0\0\0\0" + gif_that_grows(0, 0)[10:], "does not decode: no image format"),
        (png(noise(20, 401)), "too narrow: 20x401 pixels, at most 20:1 is allowed"),
        (png_of(1001, 1000, chunk(b"IDAT", b"")), "too large: 1001x1000 pixels, at most 1000000 are decoded"),
        (png_of(100_000, 100_000, chunk(b"IDAT", b"")), "too large: Image size (10000000000 pixels) exceeds"),
        (gif_that_grows(2000, 2000), "too large: 2000x2000 pixels, at most 1000000 are decoded"),
        (gif_that_grows(60_000, 60_000), "too large: Image size (3600000000 pixels) exceeds"),
        (png_of(500, 500, chunk(b"IDAT", zlib.compress(b""))), "does not decode: "),
        (png_of(64, 64, TOO_MUCH_TEXT), "does not decode: ValueError: Decompressed data too large"),
        (png_of(64, 64, TOO_LARGE_PROFILE), "does not decode: ValueError: Decompressed data too large"),
        (many_scans(5_000), "too many scans: 5009 of 64x64 pixels, each is decoded like an image"),
        (EPS, "does not decode: no image format"),
        (encoded(Image.fromarray(noise(20, 20)), "PPM"), "does not decode: no image format"),
        (encoded(Image.fromarray(noise(20, 20)), "JPEG2000"), "does not decode: no image format"),
        (encoded(Image.new("F", (20, 20)), "TIFF"), "does not decode: its mode F does not define which values"),
        (encoded(Image.new("I", (20, 20)), "TIFF"), "does not decode: its mode I does not define which values"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_bad_file_has_a_reason(content, reason):
    with pytest.raises(DataError) as caught:
        images.load(content, MAX_PIXELS)
    assert caught.value.message.startswith(reason)
    assert " at 0x" not in caught.value.message, "an address makes quarantine tables differ from run to run"


def test_a_file_that_needs_an_external_program_is_not_even_looked_at(monkeypatch):
    monkeypatch.setitem(sys.modules, "subprocess", None)  # an import of it fails
    with pytest.raises(DataError, match="no image format"):
        images.load(EPS, MAX_PIXELS)


@settings(max_examples=100)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", GOOD[:8], GOOD[:60], JPEG[:4], JPEG[:600], WEBP[:30], b"GIF89a", b"BM", b"II*\0\x08\0\0\0"]),
)
def test_no_bytes_raise_anything_but_a_data_error(content, start):
    try:
        images.load(start + content, MAX_PIXELS)
    except DataError as error:
        assert error.message


@settings(max_examples=100)
@given(st.sampled_from([GOOD, JPEG, WEBP]), st.data())
def test_a_damaged_byte_is_an_image_or_a_data_error(content, data):
    place, byte = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 255))
    try:
        found = images.load(content[:place] + bytes([byte]) + content[place + 1 :], MAX_PIXELS)
        assert found.mode == "RGB"
    except DataError as error:
        assert error.message


def test_limits_are_inclusive():
    assert images.load(png(noise(14, 280)), 14 * 280).size == (14, 280)
    assert images.load(many_scans(100), MAX_PIXELS).size == (64, 64)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "TIFF", "AVIF"])
def test_pixels_of_a_good_file_come_unchanged(form):
    found = load(encoded(Image.fromarray(noise(30, 20)), form, **LOSSLESS.get(form, {})))
    assert np.abs(found.astype(int) - noise(30, 20)).max() <= (3 if form == "AVIF" else 0)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "RGBA", "YCbCr", "RGBX"])
def test_every_mode_becomes_rgb(mode):
    grey = np.kron(np.arange(0, 256, 17, dtype=np.uint8).reshape(4, 4), np.ones((8, 8), np.uint8))
    grey = np.where(grey < 128, 0, 255).astype(np.uint8) if mode == "1" else grey
    form = "TIFF" if mode in ("CMYK", "YCbCr", "RGBX") else "PNG"
    found = load(encoded(Image.fromarray(grey).convert(mode), form))
    assert found.shape == (32, 32, 3)
    assert np.abs(found.astype(int) - grey[..., None]).max() <= (1 if mode == "YCbCr" else 0)


def test_16_bits_keep_their_high_byte():
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        values = rng.integers(0, 2**16, (20, 20, channels), dtype=np.uint16)
        expected = np.broadcast_to(values >> 8, (20, 20, 3))
        assert np.array_equal(load(png_16(values)), expected)
    grey = rng.integers(0, 2**16, (20, 20), dtype=np.uint16)
    assert np.array_equal(load(encoded(Image.fromarray(grey), "TIFF")), np.repeat((grey >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("channels", [2, 4])
def test_16_bits_with_transparency_are_laid_over_white(channels):
    values = np.full((20, 20, channels), 0x8000, np.uint16)
    values[:10, :, -1] = 0
    values[10:, :, -1] = 0xFFFF
    found = load(png_16(values))
    assert (found[:10] == 255).all() and (found[10:] == 0x80).all()


@pytest.mark.parametrize("alpha", [0, 51, 255])
def test_transparency_is_laid_over_white(alpha):
    expected = round((alpha * 100 + (255 - alpha) * 255) / 255)
    for mode, pixel, form in (("RGBA", (100,) * 3 + (alpha,), "PNG"), ("LA", (100, alpha), "PNG")):
        assert (load(encoded(Image.new(mode, (20, 20), pixel), form)) == expected).all()


def test_a_color_that_stands_for_transparent_is_white():
    palette = Image.fromarray(COLORS).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    red = palette.getpixel((0, 0))
    assert np.array_equal(load(encoded(palette, "PNG")), COLORS)
    expected = np.where((COLORS[0, 0] == COLORS).all(axis=2, keepdims=True), 255, COLORS)
    assert np.array_equal(load(encoded(palette, "PNG", transparency=red)), expected)
    assert np.array_equal(load(encoded(palette, "GIF", transparency=red)), expected)
    assert np.array_equal(load(encoded(Image.fromarray(COLORS), "PNG", transparency=(255, 0, 0))), expected)


def plain_cmyk(fields):
    """Return CMYK inks without black, each of which removes its color: [height, width, 4] uint8."""
    return np.concatenate([255 - fields, np.zeros_like(fields[..., :1])], axis=2)


def test_cmyk_is_inverted_as_adobe_stores_it_whether_it_says_so_or_not():
    inks = plain_cmyk(COLORS)
    image = Image.merge("CMYK", [Image.fromarray(np.ascontiguousarray(inks[..., ink])) for ink in range(4)])
    adobe = encoded(image, "JPEG", quality=100, subsampling=0)  # Pillow inverts, and writes Adobe's marker
    marker = adobe.index(b"\xff\xee")
    length = struct.unpack_from(">H", adobe, marker + 2)[0]
    assert adobe[marker + 4 : marker + 9] == b"Adobe"
    for content in (adobe, adobe[:marker] + adobe[marker + 2 + length :]):
        assert np.abs(load(content).astype(int) - COLORS).max() <= 4


def test_ycck_as_adobe_writes_it():
    inks = 255 - plain_cmyk(COLORS)
    content = simplejpeg.encode_jpeg(np.ascontiguousarray(inks), quality=100, colorspace="CMYK", colorsubsampling="444")
    marker = content.index(b"Adobe")
    assert content[marker + 11] == 2, "the transform is YCCK"
    assert np.abs(load(content).astype(int) - COLORS).max() <= 6


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_taken(form):
    frames = [Image.fromarray(COLORS), Image.fromarray(255 - COLORS)]
    options = LOSSLESS.get(form, {})
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(content)) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert np.abs(load(content).astype(int) - COLORS).max() <= (3 if form == "AVIF" else 0)


def test_of_a_pair_from_a_stereo_camera_the_first_is_taken():
    frames = [Image.fromarray(COLORS), Image.fromarray(255 - COLORS)]
    content = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=100, subsampling=0)
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "MPO"
    assert np.abs(load(content).astype(int) - COLORS).max() <= 3


def turned(pixels, orientation):
    """Return the pixels that a camera stores for upright pixels in an orientation (EXIF 2.3, table of tag 0x0112)."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, k=1),  # row 0 is the right side: stored turned against the clock
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, k=-1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_the_camera_s_orientation_is_undone(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = LOSSLESS.get(form, {})
    stored = Image.fromarray(np.ascontiguousarray(turned(COLORS, orientation)))
    content = encoded(stored, form, exif=exif, **options)
    found = load(content)
    assert found.shape == COLORS.shape
    assert np.abs(found.astype(int) - COLORS).max() <= (3 if form in ("JPEG", "AVIF") else 0)
    assert images.size(images.peek(content, MAX_PIXELS)) == (48, 32)


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [
        (3, 1, b"\0\0"),
        (3, 1, b"\x09\0"),
        (3, 1, b"\xff\xff"),
        (2, 4, b"six\0"),
        (7, 1, b"\x06"),
    ],
    ids=["0", "9", "65535", "text", "bytes"],
)
def test_an_orientation_that_is_none_is_passed_over(kind, count, value):
    entry = struct.pack("<HHHI", 1, 0x0112, kind, count) + value.ljust(4, b"\0")
    content = encoded(Image.fromarray(COLORS), "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0" + entry + bytes(4))
    assert np.array_equal(load(content), COLORS)
    assert images.size(images.peek(content, MAX_PIXELS)) == (48, 32)


def test_an_orientation_behind_the_pixels_of_a_png_counts_for_them():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = png(np.ascontiguousarray(turned(COLORS, 6)))
    content = content[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + content[-12:]
    assert np.array_equal(load(content), COLORS)
    assert images.size(images.peek(content, MAX_PIXELS)) == (32, 48)  # what its header says


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_metadata_that_does_not_decode_is_passed_over(exif):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = encoded(Image.fromarray(COLORS), "JPEG", quality=100, subsampling=0, exif=exif)
    assert np.abs(load(content).astype(int) - COLORS).max() <= 3
    content = encoded(Image.fromarray(COLORS), "PNG", icc_profile=b"no profile")
    assert np.array_equal(load(content), COLORS)
