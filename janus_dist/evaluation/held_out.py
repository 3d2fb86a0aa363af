"""Evaluation of any data set: accuracies by kind, baselines that do not see the image, and verdicts on drawings.

Invariant: baselines are made from the given training split only.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from janus_dist.data import images


class HeldOutQuestion(Protocol):
    """Held-out question of a data set."""

    @property
    def image(self) -> int: ...
    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def kind(self) -> str: ...


@dataclass(frozen=True)
class Verdict:
    """Judgement of a drawing."""

    kinds: tuple[str, ...]
    """Kinds of the prompt."""
    seen: str
    """Content of the drawing in words; empty when nothing is recognized."""
    right: bool
    parts: dict[str, bool] = field(default_factory=dict)
    """Further criteria by name, True when met."""


class DrawingPrompt(Protocol):
    """Prompt of a drawing."""

    @property
    def caption(self) -> str: ...


P = TypeVar("P", bound=DrawingPrompt)


class DataSet(Protocol[P]):
    """Data set that a run is evaluated on; questions and prompts come from its test split only."""

    @property
    def name(self) -> str:
        """Name in evaluation.json; results of another name are not reused."""
        ...

    def questions(self, most: int) -> Sequence[HeldOutQuestion]:
        """Return the first `most` held-out questions, or all when 0."""
        ...

    def trained(self) -> Sequence[tuple[str, str]]:
        """Return all (question, answer) pairs of the training split."""
        ...

    def held_out_images(self, side: int, square: Literal["padded", "cropped"]) -> Tensor:
        """Return the test images [images, 3, side, side] uint8, `padded` (understanding) or `cropped` (generation)."""
        ...

    def prompts(self) -> list[P]:
        """Return the prompts of the drawings."""
        ...

    def judge(self, prompts: Sequence[P], drawings: Sequence[NDArray[np.uint8]]) -> list[Verdict]:
        """Return a verdict on each drawing [height, width, 3] uint8 of the prompt at the same position."""
        ...

    def chance(self) -> float:
        """Return the share of right drawings of a model that does not read the prompt."""
        ...

    def detector_accuracy(self, pictures: Sequence[NDArray[np.uint8]] | None = None) -> float:
        """Return the share of test images that the detector recognizes correctly.

        `pictures` [height, width, 3] uint8 replace the test images, in their order.
        """
        ...


def right_by_kind(kinds: Sequence[tuple[str, ...]], right: Sequence[bool]) -> dict[str, list[bool]]:
    """Return the values of `right` by kind, kinds in their order of appearance, and all values under `all`."""
    by_kind: dict[str, list[bool]] = {}
    for names, is_right in zip(kinds, right, strict=True):
        for name in ("all", *names):
            by_kind.setdefault(name, []).append(is_right)
    return by_kind


def answers_by_kind(questions: Sequence[HeldOutQuestion], answers: Sequence[str]) -> dict[str, list[bool]]:
    """Return True for each right answer, by kind of question, and for all of them under `all`."""
    right = [answer == question.answer for question, answer in zip(questions, answers, strict=True)]
    return right_by_kind([(question.kind,) for question in questions], right)


def accuracy_by_kind(questions: Sequence[HeldOutQuestion], answers: Sequence[str]) -> dict[str, float]:
    """Return the share of right answers to each kind of question, and to all of them under `all`."""
    return {kind: sum(right) / len(right) for kind, right in answers_by_kind(questions, answers).items()}


def majority_answer(trained: Iterable[tuple[str, str]]) -> str:
    """Return the most frequent answer of (question, answer) pairs."""
    return Counter(answer for _, answer in trained).most_common(1)[0][0]


def blind_answers(questions: Sequence[HeldOutQuestion], trained: Sequence[tuple[str, str]]) -> list[str]:
    """Return the best answers from the training split and the question alone, without the image.

    These are the most frequent training answer to the same question, or `majority_answer` for a question that the
    training split does not have. The accuracy above this baseline is what a model gains from the image.
    """
    counts: dict[str, Counter[str]] = {}
    for question, answer in trained:
        counts.setdefault(question, Counter())[answer] += 1
    likeliest = {question: answers.most_common(1)[0][0] for question, answers in counts.items()}
    majority = majority_answer(trained)
    return [likeliest.get(question.question, majority) for question in questions]


def balanced(questions: Sequence[HeldOutQuestion], number: int) -> list[int]:
    """Return the positions of about `number` questions, the same number of each kind; always the same positions."""
    by_kind: dict[str, list[int]] = {}
    for position, question in enumerate(questions):
        by_kind.setdefault(question.kind, []).append(position)
    per_kind = max(1, number // max(1, len(by_kind)))
    generator = random.Random(0)
    return sorted(
        p for positions in by_kind.values() for p in generator.sample(positions, min(per_kind, len(positions)))
    )


def squares(pictures: Iterable[Image.Image], side: int, square: Literal["padded", "cropped"]) -> Tensor:
    """Return images as [images, 3, side, side] uint8, `padded` (understanding) or `cropped` (generation)."""
    to_square = {"padded": images.pad_to_square, "cropped": images.resize_and_crop}[square]
    return torch.from_numpy(np.stack([np.asarray(to_square(image, side)).transpose(2, 0, 1) for image in pictures]))
