"""easy-vqa as a benchmark: held-out questions asked one by one, and judged drawings of every color and shape.

Invariant: questions come from the test split only; baselines come from the training split only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from janus_dist.data import images
from janus_dist.datasets import easy_vqa
from janus_dist.evaluation.held_out import Verdict, squares
from janus_dist.evaluation.shapes import Detection, detect


@dataclass(frozen=True)
class EasyVqaQuestion:
    """Held-out question; `image` is the position of its image among the test images."""

    image: int
    question: str
    answer: str

    @property
    def kind(self) -> str:
        """Return `color`, `shape` or `yes or no`."""
        if self.answer in easy_vqa.COLORS:
            return "color"
        return "shape" if self.answer in easy_vqa.SHAPES else "yes or no"


@dataclass(frozen=True)
class EasyVqaPrompt:
    """Prompt of a drawing: the color and the shape that it must show."""

    color: str
    shape: str

    @property
    def caption(self) -> str:
        """Return the words of the prompt."""
        return easy_vqa.caption(self.color, self.shape)


PROMPTS = tuple(EasyVqaPrompt(color, shape) for shape in easy_vqa.SHAPES for color in easy_vqa.COLORS)


class EasyVqa:
    """easy-vqa as a `held_out.DataSet`."""

    name = "easy_vqa"

    def questions(self, most: int) -> list[EasyVqaQuestion]:
        """Return the first `most` held-out questions in the data set's order, or all when 0."""
        questions = [
            EasyVqaQuestion(index, question, answer)
            for index, image in enumerate(easy_vqa.load("test"))
            for question, answer in image.questions
        ]
        return questions[:most] if most else questions

    def trained(self) -> list[tuple[str, str]]:
        """Return all (question, answer) pairs of the training split."""
        return [turn for image in easy_vqa.load("train") for turn in image.questions]

    def held_out_images(self, side: int, square: Literal["padded", "cropped"]) -> Tensor:
        """Return the test images [images, 3, side, side] uint8, `padded` (understanding) or `cropped` (generation)."""
        return squares((images.load(image.path.read_bytes()) for image in easy_vqa.load("test")), side, square)

    def prompts(self) -> list[EasyVqaPrompt]:
        """Return the prompts of every shape in every color."""
        return list(PROMPTS)

    def judge(self, prompts: Sequence[EasyVqaPrompt], drawings: Sequence[NDArray[np.uint8]]) -> list[Verdict]:
        """Return a verdict on each drawing [height, width, 3] uint8 of the prompt at the same position."""
        return [_verdict(prompt, detect(drawing)) for prompt, drawing in zip(prompts, drawings, strict=True)]

    def chance(self) -> float:
        """Return the share of right drawings of a model that does not read the prompt."""
        return 1 / len(PROMPTS)

    def detector_accuracy(self, pictures: Sequence[NDArray[np.uint8]] | None = None) -> float:
        """Return the share of correct detections in test images whose answers name shape and color.

        `pictures` [height, width, 3] uint8 are other versions of all test images, in their order; None: the files.
        """
        images = easy_vqa.load("test")
        if pictures is None:
            pictures = [np.asarray(Image.open(image.path).convert("RGB")) for image in images]
        right = [
            detection == Detection(image.shape, image.color)
            for image, detection in zip(images, map(detect, pictures), strict=True)
            if image.shape and image.color
        ]
        return sum(right) / len(right)


def _verdict(prompt: EasyVqaPrompt, detection: Detection) -> Verdict:
    parts = {"color": detection.color == prompt.color, "shape": detection.shape == prompt.shape}
    seen = f"{detection.color or 'no color'}, {detection.shape or 'no shape'}"
    return Verdict((prompt.shape, prompt.color), seen, all(parts.values()), parts)
