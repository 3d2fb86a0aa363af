"""Scenes as a benchmark: held-out questions, and drawings of held-out captions judged by GenEval's rules.

Invariant: only the test split is asked and drawn; what answers are compared with comes from the training split alone.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from janus_dist.datasets import scene_words, scenes
from janus_dist.datasets.scenes import KINDS, Scene, Thing, draw, relations
from janus_dist.evaluation.held_out import Verdict, squares
from janus_dist.evaluation.scene_detector import Seen, detect

PROMPTS_EACH = 40
"""Of each kind; GenEval has 80 to 100."""


@dataclass(frozen=True)
class Question:
    """A held-out question; `image` is the position of its image among the test images."""

    image: int
    question: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Prompt:
    """A drawing to be asked for: the caption of a held-out scene."""

    scene: Scene

    @property
    def caption(self) -> str:
        return scene_words.caption(self.scene)


class Scenes:
    """Scenes, as `DataSet` of `held_out` describes a data set."""

    name = "scenes"

    def questions(self, most: int) -> list[Question]:
        """Return the held-out questions in the data set's order: the first `most` of them, all when 0."""
        found = [
            Question(number, asked.question, asked.answer, asked.kind)
            for number, scene in enumerate(_held_out())
            for asked in scene_words.questions(scene)
        ]
        return found[:most] if most else found

    def trained(self) -> list[tuple[str, str]]:
        """Return all questions and answers of the training split."""
        return [
            (asked.question, asked.answer) for scene in scenes.scenes("train") for asked in scene_words.questions(scene)
        ]

    def held_out_images(self, side: int, square: Literal["padded", "cropped"]) -> Tensor:
        """Return the test images [image, 3, side, side] uint8, as understanding or generation takes them."""
        return squares((Image.fromarray(draw(scene)) for scene in _held_out()), side, square)

    def prompts(self) -> list[Prompt]:
        """Return captions of the first held-out scenes, as many of each kind, without `one ring`: it counts nothing."""
        found: list[Prompt] = []
        taken: Counter[str] = Counter()
        for scene in _held_out():
            is_asked = scene.kind != "counting" or len(scene.things) > 1
            if is_asked and taken[scene.kind] < PROMPTS_EACH:
                taken[scene.kind] += 1
                found.append(Prompt(scene))
        return found

    def judge(self, asked: Sequence[Prompt], drawings: Sequence[NDArray[np.uint8]]) -> list[Verdict]:
        """Return what drawings [height, width, 3] show, and whether it is what was asked for."""
        return [verdict(prompt.scene, detect(drawing)) for prompt, drawing in zip(asked, drawings, strict=True)]

    def chance(self) -> float:
        """Return the share of drawings that would be right of one who draws the caption of another prompt of the same
        kind."""
        asked = self.prompts()
        right: list[bool] = []
        for kind in KINDS:
            of_kind = [prompt.scene for prompt in asked if prompt.scene.kind == kind]
            right += [verdict(one, other.things).right for one in of_kind for other in of_kind if other is not one]
        return sum(right) / len(right)

    def detector_accuracy(self, pictures: Sequence[NDArray[np.uint8]] | None = None) -> float:
        """Return the share of the test images of which the detector sees all things and nothing else.

        `pictures` [height, width, 3] are other versions of all test images, in their order.
        """
        shown = pictures if pictures is not None else [draw(scene) for scene in _held_out()]
        right = [is_seen(scene, detect(image)) for scene, image in zip(_held_out(), shown, strict=True)]
        return sum(right) / len(right)


def verdict(scene: Scene, seen: Sequence[Thing | Seen]) -> Verdict:
    """Return the verdict of a judge who sees these things.

    `right` is GenEval's rule: the things that the caption names are seen, and for `counting` no more of them, nor a
    blot that could be one; other things do not matter. `exact`: in addition, nothing else is seen. Where GenEval takes
    the surest of several objects of a name, any of them will do here; a detector without confidences cannot rank them.
    """
    right = _is_shown(scene, seen)
    words = ", ".join(f"{thing.color} {thing.shape or 'blot'}" for thing in seen)
    return Verdict((scene.kind,), words, right, {"exact": right and len(seen) == len(scene.things)})


def is_seen(scene: Scene, seen: Sequence[Seen]) -> bool:
    """Return whether a detector saw the things of a scene as they are, their centers within a 16th of the canvas."""
    left = list(seen)
    for thing in scene.things:
        near = [one for one in left if (one.shape, one.color) == (thing.shape, thing.color) and _is_near(one, thing)]
        if not near:
            return False
        left.remove(near[0])
    return not left


def _is_near(one: Seen, thing: Thing) -> bool:
    offsets = [(one.box[i] + one.box[i + 2] - thing.box[i] - thing.box[i + 2]) / 2 for i in (0, 1)]
    return max(map(abs, offsets)) <= scenes.UNITS / 16


def _is_shown(scene: Scene, seen: Sequence[Thing | Seen]) -> bool:
    shapes = [thing.shape for thing in seen]
    first, *others = scene.things
    if scene.kind == "counting":
        return shapes.count(first.shape) == len(scene.things) and None not in shapes
    if scene.kind in ("single object", "two objects"):
        return all(thing.shape in shapes for thing in scene.things)
    if scene.kind in ("colors", "color attribution"):
        named = {(thing.shape, thing.color) for thing in seen}
        return all((thing.shape, thing.color) in named for thing in scene.things)
    asked = scene_words.relation(scene)
    return any(
        (a.shape, b.shape) == (first.shape, others[0].shape) and asked in relations(a.box, b.box)
        for a in seen
        for b in seen
    )


@cache
def _held_out() -> tuple[Scene, ...]:
    return tuple(scenes.scenes("test"))
