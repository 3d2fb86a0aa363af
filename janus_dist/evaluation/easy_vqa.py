"""easy-vqa as a benchmark: its held-out questions asked one by one, and drawings of every color and shape judged.

Invariant: only the test split is asked; what answers are compared with comes from the training split alone.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from janus_dist.data import easy_vqa, images
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


def questions(most: int) -> list[Question]:
    """The held-out questions in the data set's order; the first `most` of them, all when 0."""
    found = [
        Question(number, question, answer)
        for number, image in enumerate(easy_vqa.load("test"))
        for question, answer in image.questions
    ]
    return found[:most] if most else found


def held_out_images(side: int, square: str) -> Tensor:
    """The test images [image, 3, side, side] uint8, `padded` as understanding or `cropped` as generation takes them."""
    to_square = {"padded": images.pad_to_square, "cropped": images.resize_and_crop}[square]
    loaded = (images.load(image.path.read_bytes()) for image in easy_vqa.load("test"))
    return torch.from_numpy(np.stack([np.asarray(to_square(image, side)).transpose(2, 0, 1) for image in loaded]))


def majority_answer() -> str:
    """The most frequent answer of the training split."""
    counts = Counter(answer for image in easy_vqa.load("train") for _, answer in image.questions)
    return counts.most_common(1)[0][0]


def blind_answers(asked: Sequence[Question]) -> list[str]:
    """What one would answer who knows the training split and reads the question, but does not see the image.

    The most frequent training answer to the same words, `majority_answer` to words that were never asked. Far better
    than the majority answer alone (`is there not a circle?` is mostly answered `yes`), so what a model gains by seeing
    is its distance to this.
    """
    counts: dict[str, Counter[str]] = {}
    for image in easy_vqa.load("train"):
        for question, answer in image.questions:
            counts.setdefault(question, Counter())[answer] += 1
    likeliest = {question: answers.most_common(1)[0][0] for question, answers in counts.items()}
    majority = majority_answer()
    return [likeliest.get(question.question, majority) for question in asked]


def accuracy_by_kind(asked: Sequence[Question], given: Sequence[str]) -> dict[str, float]:
    """Share of right answers to each kind of question, and of all of them under `all`."""
    right: dict[str, list[bool]] = {}
    for question, answer in zip(asked, given, strict=True):
        for kind in ("all", question.kind):
            right.setdefault(kind, []).append(answer == question.answer)
    return {kind: sum(values) / len(values) for kind, values in right.items()}


def judge(drawings: Sequence[NDArray[np.uint8]]) -> list[Detection]:
    """What drawings [height, width, 3] show."""
    return [detect(drawing) for drawing in drawings]


def detector_accuracy(pictures: Sequence[NDArray[np.uint8]] | None = None) -> float:
    """Share of the test images, of those whose answers say all, that the detector sees rightly.

    `pictures` [height, width, 3] are other versions of all test images, in their order; the files when absent.
    """
    images = easy_vqa.load("test")
    if pictures is None:
        pictures = [np.asarray(Image.open(image.path).convert("RGB")) for image in images]
    right = [
        found == Detection(image.shape, image.color)
        for image, found in zip(images, judge(pictures), strict=True)
        if image.shape and image.color
    ]
    return sum(right) / len(right)


def balanced(asked: Sequence[Question], number: int) -> list[int]:
    """Positions of about `number` questions, as many of each kind, always the same."""
    by_kind: dict[str, list[int]] = {}
    for position, question in enumerate(asked):
        by_kind.setdefault(question.kind, []).append(position)
    each = max(1, number // max(1, len(by_kind)))
    chosen = random.Random(0)
    return sorted(p for positions in by_kind.values() for p in chosen.sample(positions, min(each, len(positions))))
