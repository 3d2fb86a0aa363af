"""easy-vqa as a benchmark: its held-out questions asked one by one, and drawings of every color and shape judged.

Invariant: only the test split is asked; what answers are compared with comes from the training split alone.
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
class Question:
    """A held-out question; `image` is the position of its image among the test images."""

    image: int
    question: str
    answer: str

    @property
    def kind(self) -> str:
        if self.answer in easy_vqa.COLORS:
            return "color"
        return "shape" if self.answer in easy_vqa.SHAPES else "yes or no"


@dataclass(frozen=True)
class Prompt:
    """A drawing to be asked for, and what it has to show."""

    color: str
    shape: str

    @property
    def caption(self) -> str:
        return easy_vqa.caption(self.color, self.shape)


PROMPTS = tuple(Prompt(color, shape) for shape in easy_vqa.SHAPES for color in easy_vqa.COLORS)


class EasyVqa:
    """easy-vqa, as `DataSet` of `held_out` describes a data set."""

    name = "easy_vqa"

    def questions(self, most: int) -> list[Question]:
        """Return the held-out questions in the data set's order: the first `most` of them, all when 0."""
        found = [
            Question(number, question, answer)
            for number, image in enumerate(easy_vqa.load("test"))
            for question, answer in image.questions
        ]
        return found[:most] if most else found

    def trained(self) -> list[tuple[str, str]]:
        """Return all questions and answers of the training split."""
        return [turn for image in easy_vqa.load("train") for turn in image.questions]

    def held_out_images(self, side: int, square: Literal["padded", "cropped"]) -> Tensor:
        """Return the test images [image, 3, side, side] uint8, as understanding or generation takes them."""
        return squares((images.load(image.path.read_bytes()) for image in easy_vqa.load("test")), side, square)

    def prompts(self) -> list[Prompt]:
        """Return every shape in every color."""
        return list(PROMPTS)

    def judge(self, asked: Sequence[Prompt], drawings: Sequence[NDArray[np.uint8]]) -> list[Verdict]:
        """Return what drawings [height, width, 3] show, and whether it is what was asked for."""
        return [_verdict(prompt, detect(drawing)) for prompt, drawing in zip(asked, drawings, strict=True)]

    def chance(self) -> float:
        """Return the share of drawings that would be right of one who does not read the prompt."""
        return 1 / len(PROMPTS)

    def detector_accuracy(self, pictures: Sequence[NDArray[np.uint8]] | None = None) -> float:
        """Return the share of the test images, of those whose answers say all, that the detector sees rightly.

        `pictures` [height, width, 3] are other versions of all test images, in their order; the files when absent.
        """
        images = easy_vqa.load("test")
        if pictures is None:
            pictures = [np.asarray(Image.open(image.path).convert("RGB")) for image in images]
        right = [
            found == Detection(image.shape, image.color)
            for image, found in zip(images, map(detect, pictures), strict=True)
            if image.shape and image.color
        ]
        return sum(right) / len(right)


def _verdict(prompt: Prompt, found: Detection) -> Verdict:
    parts = {"color": found.color == prompt.color, "shape": found.shape == prompt.shape}
    seen = f"{found.color or 'no color'}, {found.shape or 'no shape'}"
    return Verdict((prompt.shape, prompt.color), seen, all(parts.values()), parts)
