"""Squares for the two encoders: the official processor's arithmetic on noise and on photographs, and their bytes."""

import io
import math
from importlib.metadata import distribution

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from janus_dist.data import images
from janus_dist.data.collate import decode_images
from janus_dist.errors import DataError
from tests.images import noise

MAX_PIXELS = 10_000_000
PHOTOS = {
    "china": ("scikit-learn", "sklearn/datasets/images/china.jpg"),
    "flower": ("scikit-learn", "sklearn/datasets/images/flower.jpg"),
    "rocket": ("scikit-image", "skimage/data/rocket.jpg"),
    "retina": ("scikit-image", "skimage/data/retina.jpg"),
    "hubble": ("scikit-image", "skimage/data/hubble_deep_field.jpg"),
    "astronaut": ("scikit-image", "skimage/data/astronaut.png"),
    "coffee": ("scikit-image", "skimage/data/coffee.png"),
    "chelsea": ("scikit-image", "skimage/data/chelsea.png"),
    "camera": ("scikit-image", "skimage/data/camera.png"),  # grey
    "logo": ("scikit-image", "skimage/data/logo.png"),  # with transparency
    "page": ("scikit-image", "skimage/data/page.png"),
}
"""Files inside Python packages; nothing of the packages is imported, nothing is downloaded."""


def photo(name):
    package, path = PHOTOS[name]
    return images.load(distribution(package).locate_file(path).read_bytes(), MAX_PIXELS)


def pixels(image):
    return np.asarray(image).astype(int)


def cubic(x):
    """Keys' kernel with a = -1/2."""
    x = np.abs(x)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


def bicubic(values, first, length, new):
    """[new, ...]: `length` of the rows from `first` on, sampled `new` times by a kernel as wide as what it melts."""
    step = length / new
    centers = first + (np.arange(new) + 0.5) * step
    weights = cubic((np.arange(len(values)) + 0.5 - centers[:, None]) / max(step, 1))
    found = np.tensordot(weights / weights.sum(axis=1, keepdims=True), values, 1)
    return np.clip(np.floor(found + 0.5), 0, 255)


def resized(values, box, width, height):
    """[height, width, 3] of a box (left, top, width, height), columns first, 8 bits in between, as Pillow does."""
    left, top, old_width, old_height = box
    columns = bicubic(values.transpose(1, 0, 2), left, old_width, width).transpose(1, 0, 2)
    return bicubic(columns, top, old_height, height)


def padded(values, side):
    """`image_processing_vlm.py`: size = max(int(side / max * 384), 14), then expand2square with 127."""
    height, width = values.shape[:2]
    new_height, new_width = (max(int(one / max(height, width) * side), 14) for one in (height, width))
    square = np.full((side, side, 3), 127)
    top, left = math.floor((side - new_height) / 2), math.floor((side - new_width) / 2)
    inner = resized(values, (0, 0, width, height), new_width, new_height)
    square[top : top + new_height, left : left + new_width] = inner
    return square


def cropped(values, side):
    height, width = values.shape[:2]
    short = min(height, width)
    return resized(values, ((width - short) // 2, (height - short) // 2, short, short), side, side)


SIDES = st.integers(14, 150)


def soft_noise(width, height):
    """Noise that no overshoot clips: whether Pillow begins with columns or with rows (it takes what is faster) changes
    its rounding alone."""
    return noise(width, height) // 2 + 64


@settings(max_examples=40)
@given(SIDES, SIDES, st.sampled_from([16, 64, 97]))
def test_padding_follows_the_official_arithmetic(width, height, side):
    found = pixels(images.pad_to_square(Image.fromarray(soft_noise(width, height)), side))
    assert np.abs(found - padded(soft_noise(width, height), side)).max() <= 2


@settings(max_examples=40)
@given(SIDES, SIDES, st.sampled_from([16, 64, 97]))
def test_cropping_resizes_the_square_in_the_middle(width, height, side):
    found = pixels(images.resize_and_crop(Image.fromarray(soft_noise(width, height)), side))
    assert np.abs(found - cropped(soft_noise(width, height), side)).max() <= 2


@pytest.mark.parametrize("name", PHOTOS)
def test_photographs_follow_it_too(name):
    image = photo(name)
    assert np.abs(pixels(images.pad_to_square(image, 384)) - padded(pixels(image), 384)).max() <= 1
    assert np.abs(pixels(images.resize_and_crop(image, 384)) - cropped(pixels(image), 384)).max() <= 1


def of_transformers(image, side):
    processor = JanusImageProcessorPil(
        size={"height": side, "width": side}, min_size=14, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        resample=Image.Resampling.BICUBIC, do_rescale=False, do_normalize=False,
    )  # fmt: skip
    return processor(images=[image], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0).astype(int)


@pytest.mark.parametrize("name", PHOTOS)
def test_transformers_gives_the_same_where_it_does_not_round_up(name):
    image, side = photo(name), 384
    short = min(image.size) / max(image.size) * side
    found, theirs = pixels(images.pad_to_square(image, side)), of_transformers(image, side)
    if int(short) == round(short):
        assert np.array_equal(found, theirs)
    else:  # it has a line more than the official processor
        assert (found != theirs).any()


def test_photographs_of_both_kinds_are_compared():
    shorts = [min(photo(name).size) / max(photo(name).size) * 384 for name in PHOTOS]
    assert {int(short) == round(short) for short in shorts} == {True, False}


def test_sides_are_rounded_down():
    # 50 / 77 * 64 = 41.56 -> 41 rows, (64 - 41) // 2 = 11 of padding above and 12 below
    square = np.asarray(images.pad_to_square(Image.new("RGB", (77, 50), (255, 0, 0)), 64))
    is_padding = (square == 127).all(axis=(1, 2))
    assert is_padding.tolist() == [True] * 11 + [False] * 41 + [True] * 12


def test_the_narrowest_image_is_not_distorted():
    assert images.MIN_SIDE <= 384 / images.MAX_ASPECT


@pytest.mark.parametrize(("width", "height"), [(64, 64), (65, 64), (64, 99), (130, 64)])
def test_an_image_of_the_right_size_is_not_resampled(width, height):
    whole, (left, top) = noise(width, height), ((width - 64) // 2, (height - 64) // 2)
    found = pixels(images.resize_and_crop(Image.fromarray(whole), 64))
    assert np.array_equal(found, whole[top : top + 64, left : left + 64])
    if width == height:
        assert np.array_equal(pixels(images.pad_to_square(Image.fromarray(whole), 64)), whole)


def test_png_is_lossless_and_the_same_each_time():
    image = Image.fromarray(noise(20, 20))
    content = images.encode(image, None)
    assert content.startswith(b"\x89PNG") and content == images.encode(image.copy(), None)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), noise(20, 20))


@pytest.mark.parametrize("name", ["china", "astronaut", "page"])
def test_jpeg_is_close_and_the_same_each_time_and_to_each_decoder(name):
    square = images.pad_to_square(photo(name), 384)
    content = images.encode(square, 95)
    assert content == images.encode(square.copy(), 95)
    assert simplejpeg.decode_jpeg_header(content)[2:] == ("YCbCr", "444")
    found = np.empty((1, 384, 384, 3), dtype=np.uint8)
    decode_images([content], found)
    assert np.array_equal(found[0], np.asarray(Image.open(io.BytesIO(content))))
    assert 10 * math.log10(255**2 / ((found[0] - pixels(square)) ** 2).mean()) > 38  # dB
    assert len(images.encode(square, 80)) < len(content) < len(images.encode(square, None))


def test_a_colored_line_stays_colored():
    lines = np.full((64, 64, 3), 255, np.uint8)
    lines[:, 32] = (255, 0, 0)
    image = Image.fromarray(lines)
    found = pixels(Image.open(io.BytesIO(images.encode(image, 95))))[:, 32].mean(axis=0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    at_half_resolution = pixels(Image.open(buffer))[:, 32].mean(axis=0)
    assert np.abs(found - (255, 0, 0)).max() < 16 < 50 < np.abs(at_half_resolution - (255, 0, 0)).max()


@pytest.mark.parametrize("quality", [95, None])
@pytest.mark.parametrize("side", [8, 32])
def test_the_loader_refuses_a_crop_of_another_size(quality, side):
    content = images.encode(Image.fromarray(noise(side, side)), quality)
    with pytest.raises(DataError, match="an image does not decode: "):
        decode_images([content], np.zeros((1, 16, 16, 3), dtype=np.uint8))
