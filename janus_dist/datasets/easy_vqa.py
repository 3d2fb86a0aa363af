"""easy-vqa 1.0, the data set of the embedded default: 5,000 images of one shape each, with questions and answers.

It comes with the Python package `easy-vqa` (Victor Zhou, MIT licence), so nothing is downloaded. Invariant: the test
split is only ever read for evaluation.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from janus_dist.errors import DataError

SHAPES = ("circle", "rectangle", "triangle")
COLORS = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
"""RGB by name."""
Split = Literal["train", "test"]


@dataclass(frozen=True)
class EasyVqaImage:
    """One image with all that is asked about it."""

    key: str
    path: Path
    shape: str | None
    """What its answers say it shows; None when they do not determine it."""
    color: str | None
    questions: tuple[tuple[str, str], ...]
    """(question, answer), in the order of the data set."""

    @property
    def caption(self) -> str:
        """Return what the answers say the image shows, as `a blue rectangle`; empty when they say nothing."""
        return caption(self.color, self.shape)


def caption(color: str | None, shape: str | None) -> str:
    """Return `a blue rectangle`, `a blue shape`, `a rectangle`, or nothing."""
    if color is None and shape is None:
        return ""
    return " ".join(["a", *([color] if color else []), shape or "shape"])


@cache
def load(split: Split) -> tuple[EasyVqaImage, ...]:
    """Return all images of a split, ordered by number. Raises DataError when the package is not installed."""
    try:
        import easy_vqa  # an optional extra
    except ImportError as error:
        raise DataError(
            "the data set easy-vqa is not installed", "pip install 'janus-dist[demo]' or easy-vqa==1.0"
        ) from error
    questions = easy_vqa.get_train_questions() if split == "train" else easy_vqa.get_test_questions()
    paths = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    asked: dict[int, list[tuple[str, str]]] = {number: [] for number in paths}
    for question, answer, number in zip(*questions, strict=True):
        asked[number].append((question, answer))
    return tuple(_image(split, number, Path(paths[number]), tuple(asked[number])) for number in sorted(paths))


def _image(split: Split, number: int, path: Path, questions: tuple[tuple[str, str], ...]) -> EasyVqaImage:
    return EasyVqaImage(
        key=f"{split}-{number:05d}",
        path=path,
        shape=_said(SHAPES, questions),
        color=_said(tuple(COLORS), questions),
        questions=questions,
    )


def _said(words: tuple[str, ...], questions: tuple[tuple[str, str], ...]) -> str | None:
    """Return the word that the answers settle on: named outright, named in passing, or left over when all others are
    denied."""
    named, denied = set(), set()
    for question, answer in questions:
        spoken = question.rstrip("?").split()
        negated = "no" in spoken or "not" in spoken
        for word in words:
            if answer == word or (word in spoken and (answer not in ("yes", "no") or (answer == "yes") != negated)):
                named.add(word)
            elif word in spoken:
                denied.add(word)
    left = named or set(words) - denied
    return left.pop() if len(left) == 1 else None
