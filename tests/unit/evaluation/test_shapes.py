"""The judge of drawings, itself judged on images that people made and on what is no image of a shape."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from janus_dist.datasets import easy_vqa
from janus_dist.datasets.easy_vqa import COLORS
from janus_dist.evaluation.shapes import NOTHING, Detection, detect

KNOWN = [image for image in easy_vqa.load("test") if image.shape and image.color]


def accuracy(change) -> float:
    """Share of every third held-out image that is seen rightly after `change`."""
    some = KNOWN[::3]
    seen = [detect(np.asarray(change(Image.open(image.path).convert("RGB")))) for image in some]
    return sum(found == Detection(image.shape, image.color) for found, image in zip(seen, some, strict=True)) / len(
        some
    )


def test_real_images_are_seen_rightly():
    """What is missed are shapes that the image's edge cuts off."""
    assert accuracy(lambda image: image) >= 0.98


def test_blurred_images_are_seen_rightly():
    assert accuracy(lambda image: image.filter(ImageFilter.GaussianBlur(0.8))) >= 0.9


def test_noisy_images_are_seen_rightly():
    rng = np.random.default_rng(0)

    def noisy(image):
        return np.clip(np.asarray(image) + rng.normal(0, 8, (64, 64, 3)), 0, 255).astype(np.uint8)

    assert accuracy(noisy) >= 0.95


@pytest.mark.parametrize("gray", [0, 128, 240])
def test_a_blank_image_shows_nothing(gray):
    assert detect(np.full((64, 64, 3), gray, np.uint8)) == NOTHING


def test_noise_shows_nothing():
    rng = np.random.default_rng(1)
    for _ in range(5):
        assert detect(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) == NOTHING


def test_two_objects_show_nothing():
    image = np.full((64, 64, 3), 240, np.uint8)
    image[5:20, 5:20] = image[40:55, 40:55] = COLORS["red"]
    assert detect(image) == NOTHING


@pytest.mark.parametrize("color", COLORS)
def test_drawn_by_formula(color):
    y, x = np.mgrid[:64, :64]
    masks = {
        "rectangle": (abs(x - 30) < 12) & (abs(y - 35) < 8),
        "circle": (x - 30) ** 2 + (y - 35) ** 2 < 100,
        "triangle": (y > 20) & (y < 41) & (abs(x - 30) < (y - 20) * 0.6),
    }
    for shape, mask in masks.items():
        image = np.full((64, 64, 3), 238, np.uint8)
        image[mask] = COLORS[color]
        assert detect(image) == Detection(shape, color)
