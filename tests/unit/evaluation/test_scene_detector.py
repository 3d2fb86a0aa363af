"""The judge of scenes, itself judged: on scenes as they are, worse ones, and on what is no scene."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from janus_dist.datasets import scenes
from janus_dist.datasets.easy_vqa import COLORS
from janus_dist.evaluation.scene_detector import detect
from janus_dist.evaluation.scenes import is_seen

Y, X = np.mgrid[:64, :64] + 0.5


def accuracy(change, number: int) -> float:
    """Share of scenes of another seed than the data set's of which all is seen after `change`, and nothing else."""
    found = [scenes.scene(1, "train", one) for one in range(number)]
    return sum(is_seen(scene, detect(change(scenes.draw(scene)))) for scene in found) / number


def blurred(deviation: float):
    return lambda image: np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(deviation)))


def noisy(deviation: float):
    rng = np.random.default_rng(0)
    return lambda image: np.clip(image + rng.normal(0, deviation, image.shape), 0, 255).astype(np.uint8)


def jpeg(quality: int):
    def change(image):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)  # colors at half the resolution
        return np.asarray(Image.open(buffer))

    return change


def test_clean_scenes_are_all_seen():
    """docs/scenes.md has the figure of thousands."""
    assert accuracy(lambda image: image, 600) == 1.0


def test_boxes_are_exact_within_a_fifth_of_a_pixel():
    for number in range(120):
        found = scenes.scene(1, "train", number)
        seen = detect(scenes.draw(found))
        for thing in found.things:
            assert min(max(abs(np.subtract(one.box, thing.box))) for one in seen) < 0.2


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (blurred(0.8), 0.99),
        (blurred(1.5), 0.97),
        (noisy(8), 0.99),
        (noisy(16), 0.95),
        (jpeg(90), 0.98),
        (jpeg(75), 0.93),
        (lambda image: np.asarray(Image.fromarray(image).resize((256, 256), Image.Resampling.BICUBIC)), 1.0),
    ],
    ids=["blur 0.8", "blur 1.5", "noise 8", "noise 16", "jpeg 90", "jpeg 75", "four times as large"],
)
def test_worse_scenes_are_nearly_all_seen(change, least):
    assert accuracy(change, 120) >= least


def canvas() -> np.ndarray:
    return np.full((64, 64, 3), 240, np.uint8)


def names(image: np.ndarray) -> list[tuple[str | None, str]]:
    return sorted(((one.shape, one.color) for one in detect(image)), key=str)


@pytest.mark.parametrize("one", COLORS)
@pytest.mark.parametrize("other", COLORS)
def test_touching_shapes_of_two_colors_are_two(one, other):
    image = canvas()
    image[20:36, 10:26], image[20:36, 26:42] = COLORS[one], COLORS[other]
    expected = [("square", one), ("square", other)] if one != other else [(None, one)]
    assert names(image) == sorted(expected, key=str)


def test_overlapping_shapes_of_one_color_are_a_blot():
    image = canvas()
    image[((X - 20) ** 2 + (Y - 30) ** 2 < 64) | ((X - 34) ** 2 + (Y - 30) ** 2 < 64)] = COLORS["red"]
    assert names(image) == [(None, "red")]


@pytest.mark.parametrize(
    ("mask", "shape"),
    [
        ((abs(X - 30) < 8) & (abs(Y - 35) < 8), "square"),
        ((X - 30) ** 2 + (Y - 35) ** 2 < 81, "circle"),
        (((X - 30) ** 2 + (Y - 35) ** 2 < 100) & ((X - 30) ** 2 + (Y - 35) ** 2 > 25), "ring"),
        ((Y > 20) & (Y < 40) & (abs(X - 30) < (Y - 20) / 2), "triangle"),
        (((abs(X - 30) < 9) & (abs(Y - 30) < 3)) | ((abs(Y - 30) < 9) & (abs(X - 30) < 3)), "cross"),
        ((abs(X - 30) < 16) & (abs(Y - 35) < 8), None),  # a bar
        ((Y > 20) & (Y < 40) & (abs(X - 30) < (40 - Y) / 2), None),  # a triangle upside down
        ((X > 20) & (Y > 20) & (X < 44) & (Y < 44) & ((X < 32) | (Y < 32)), None),  # a corner
        (abs(X - Y) < 4, None),  # a stroke
    ],
    ids=["square", "circle", "ring", "triangle", "cross", "bar", "upside down", "corner", "stroke"],
)
@pytest.mark.parametrize("color", COLORS)
def test_drawn_by_formula_without_smoothing(mask, shape, color):
    image = canvas()
    image[mask] = COLORS[color]
    assert names(image) == [(shape, color)]


@pytest.mark.parametrize("gray", [0, 128, 240])
def test_an_empty_image_shows_nothing(gray):
    assert detect(np.full((64, 64, 3), gray, np.uint8)) == []


def test_noise_shows_no_shape():
    rng = np.random.default_rng(1)
    for _ in range(20):
        assert not [one for one in detect(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) if one.shape]


def test_half_an_image_is_no_shape():
    image = canvas()
    image[:32] = COLORS["blue"]
    assert not [one for one in detect(image) if one.shape]


def test_on_a_background_of_a_named_color_nothing_has_that_color():
    image = np.full((64, 64, 3), 128, np.uint8)
    image[20:40, 20:40] = 90  # nearest to gray, which the background is
    assert detect(image) == []
