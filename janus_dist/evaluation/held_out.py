"""What the evaluation knows of any data set: rights by kind, what words alone give away, and verdicts.

Invariant: what answers are compared with is made of the training split that is handed in, and of nothing else.
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


class Asked(Protocol):
    """A held-out question of a data set."""

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
    """What a judge says of a drawing."""

    kinds: tuple[str, ...]
    """Of the prompt."""
    seen: str
    """What the drawing shows, in words; empty: nothing."""
    right: bool
    parts: dict[str, bool] = field(default_factory=dict)
    """Further rights and wrongs, by name."""


class Captioned(Protocol):
    """A drawing to be asked for."""

    @property
    def caption(self) -> str: ...


P = TypeVar("P", bound=Captioned)


class DataSet(Protocol[P]):
    """A data set that a run is evaluated on; only its test split is asked and drawn."""

    @property
    def name(self) -> str:
        """Return the name in evaluation.json; results of another name are not reused."""
        ...

    def questions(self, most: int) -> Sequence[Asked]:
        """Return the first `most` held-out questions, or all when 0."""
        ...

    def trained(self) -> Sequence[tuple[str, str]]:
        """Return all (question, answer) pairs of the training split."""
        ...

    def held_out_images(self, side: int, square: Literal["padded", "cropped"]) -> Tensor:
        """Return the test images [image, 3, side, side] uint8, as understanding or generation takes them."""
        ...

    def prompts(self) -> list[P]:
        """Return the drawings to ask for."""
        ...

    def judge(self, asked: Sequence[P], drawings: Sequence[NDArray[np.uint8]]) -> list[Verdict]:
        """Return a verdict on each drawing [height, width, 3] uint8 of the prompt at the same position."""
        ...

    def chance(self) -> float:
        """Return the share of right drawings of a model that does not read the prompt."""
        ...

    def detector_accuracy(self, pictures: Sequence[NDArray[np.uint8]] | None = None) -> float:
        """Return the share of test images that the detector sees rightly.

        `pictures` [height, width, 3] uint8 replace the test images, in their order.
        """
        ...


def right_by_kind(kinds: Sequence[tuple[str, ...]], right: Sequence[bool]) -> dict[str, list[bool]]:
    """Return right and wrong answers of each kind, in the order in which kinds come, and all of them under `all`."""
    found: dict[str, list[bool]] = {}
    for names, is_right in zip(kinds, right, strict=True):
        for name in ("all", *names):
            found.setdefault(name, []).append(is_right)
    return found


def answers_by_kind(asked: Sequence[Asked], given: Sequence[str]) -> dict[str, list[bool]]:
    """Return whether each answer is right, by kind of question, and all of them under `all`."""
    right = [answer == question.answer for question, answer in zip(asked, given, strict=True)]
    return right_by_kind([(question.kind,) for question in asked], right)


def accuracy_by_kind(asked: Sequence[Asked], given: Sequence[str]) -> dict[str, float]:
    """Return the share of right answers to each kind of question, and of all of them under `all`."""
    return {kind: sum(right) / len(right) for kind, right in answers_by_kind(asked, given).items()}


def majority_answer(trained: Iterable[tuple[str, str]]) -> str:
    """Return the most frequent of all answers in (question, answer) pairs."""
    return Counter(answer for _, answer in trained).most_common(1)[0][0]


def blind_answers(asked: Sequence[Asked], trained: Sequence[tuple[str, str]]) -> list[str]:
    """Return the answers of someone who knows the training split and reads the question but does not see the image.

    That is the most frequent training answer to the same words, and `majority_answer` to words that were never asked.
    The distance to this is what a model gains by seeing.
    """
    counts: dict[str, Counter[str]] = {}
    for question, answer in trained:
        counts.setdefault(question, Counter())[answer] += 1
    likeliest = {question: answers.most_common(1)[0][0] for question, answers in counts.items()}
    majority = majority_answer(trained)
    return [likeliest.get(question.question, majority) for question in asked]


def balanced(asked: Sequence[Asked], number: int) -> list[int]:
    """Return the positions of about `number` questions, as many of each kind, always the same."""
    by_kind: dict[str, list[int]] = {}
    for position, question in enumerate(asked):
        by_kind.setdefault(question.kind, []).append(position)
    each = max(1, number // max(1, len(by_kind)))
    chosen = random.Random(0)
    return sorted(p for positions in by_kind.values() for p in chosen.sample(positions, min(each, len(positions))))


def squares(found: Iterable[Image.Image], side: int, square: Literal["padded", "cropped"]) -> Tensor:
    """Return [image, 3, side, side] uint8, `padded` as understanding or `cropped` as generation takes them."""
    to_square = {"padded": images.pad_to_square, "cropped": images.resize_and_crop}[square]
    return torch.from_numpy(np.stack([np.asarray(to_square(image, side)).transpose(2, 0, 1) for image in found]))
