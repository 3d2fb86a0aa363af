"""Scenes as a benchmark: held-out questions, and drawings of held-out captions judged by GenEval's rules.

Invariant: questions and prompts come from the test split only; baselines come from the training split only.
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
from janus_dist.evaluation.scene_detector import DetectedObject, detect

PROMPTS_EACH = 40
"""Number of prompts of each kind; GenEval has 80 to 100."""


@dataclass(frozen=True)
class SceneQuestion:
    """Held-out question; `image` is the position of its image among the test images."""

    image: int
    question: str
    answer: str
    kind: str


@dataclass(frozen=True)
class ScenePrompt:
    """Prompt of a drawing: the caption of a held-out scene."""

    scene: Scene

    @property
    def caption(self) -> str:
        """Return the words of the prompt."""
        return scene_words.caption(self.scene)


class Scenes:
    """Scenes as a `held_out.DataSet`."""

    name = "scenes"

    def questions(self, most: int) -> list[SceneQuestion]:
        """Return the first `most` held-out questions in the data set's order, or all when 0."""
        questions = [
            SceneQuestion(index, question.question, question.answer, question.kind)
            for index, scene in enumerate(_held_out())
            for question in scene_words.questions(scene)
        ]
        return questions[:most] if most else questions

    def trained(self) -> list[tuple[str, str]]:
        """Return all (question, answer) pairs of the training split."""
        return [
            (question.question, question.answer)
            for scene in scenes.scenes("train")
            for question in scene_words.questions(scene)
        ]

    def held_out_images(self, side: int, square: Literal["padded", "cropped"]) -> Tensor:
        """Return the test images [images, 3, side, side] uint8, `padded` (understanding) or `cropped` (generation)."""
        return squares((Image.fromarray(draw(scene)) for scene in _held_out()), side, square)

    def prompts(self) -> list[ScenePrompt]:
        """Return the captions of the first PROMPTS_EACH held-out scenes of each kind.

        Scenes of kind `counting` with a single thing (`one ring`) are left out, since they test no counting.
        """
        prompts: list[ScenePrompt] = []
        counts: Counter[str] = Counter()
        for scene in _held_out():
            is_usable = scene.kind != "counting" or len(scene.things) > 1
            if is_usable and counts[scene.kind] < PROMPTS_EACH:
                counts[scene.kind] += 1
                prompts.append(ScenePrompt(scene))
        return prompts

    def judge(self, prompts: Sequence[ScenePrompt], drawings: Sequence[NDArray[np.uint8]]) -> list[Verdict]:
        """Return a verdict on each drawing [height, width, 3] uint8 of the prompt at the same position."""
        return [verdict(prompt.scene, detect(drawing)) for prompt, drawing in zip(prompts, drawings, strict=True)]

    def chance(self) -> float:
        """Return the share of right drawings of a model that draws another prompt of the same kind."""
        prompts = self.prompts()
        right: list[bool] = []
        for kind in KINDS:
            alike = [prompt.scene for prompt in prompts if prompt.scene.kind == kind]
            right += [verdict(scene, other.things).right for scene in alike for other in alike if other is not scene]
        return sum(right) / len(right)

    def detector_accuracy(self, pictures: Sequence[NDArray[np.uint8]] | None = None) -> float:
        """Return the share of the test images in which the detector sees all things and nothing else.

        `pictures` [height, width, 3] uint8 are other versions of all test images, in their order.
        """
        shown = pictures if pictures is not None else [draw(scene) for scene in _held_out()]
        right = [is_seen(scene, detect(image)) for scene, image in zip(_held_out(), shown, strict=True)]
        return sum(right) / len(right)


def verdict(scene: Scene, seen: Sequence[Thing | DetectedObject]) -> Verdict:
    """Return the verdict on a drawing of `scene` that shows the things `seen`.

    `right` follows GenEval's rule: the things that the caption names are seen; for `counting` exactly as many, and no
    blot, which could be one more. Other things do not matter. `exact` also requires that nothing else is seen. When
    several objects have the same name, GenEval takes the most confident one; here any of them counts, since a detector
    without confidences cannot rank them.
    """
    right = _is_shown(scene, seen)
    words = ", ".join(f"{thing.color} {thing.shape or 'blot'}" for thing in seen)
    return Verdict((scene.kind,), words, right, {"exact": right and len(seen) == len(scene.things)})


def is_seen(scene: Scene, seen: Sequence[DetectedObject]) -> bool:
    """Return True when `seen` are exactly the things of a scene, with centers within 1/16 of the canvas."""
    remaining = list(seen)
    for thing in scene.things:
        near = [
            candidate
            for candidate in remaining
            if (candidate.shape, candidate.color) == (thing.shape, thing.color) and _is_near(candidate, thing)
        ]
        if not near:
            return False
        remaining.remove(near[0])
    return not remaining


def _is_near(candidate: DetectedObject, thing: Thing) -> bool:
    offsets = [(candidate.box[i] + candidate.box[i + 2] - thing.box[i] - thing.box[i + 2]) / 2 for i in (0, 1)]
    return max(map(abs, offsets)) <= scenes.UNITS / 16


def _is_shown(scene: Scene, seen: Sequence[Thing | DetectedObject]) -> bool:
    shapes = [thing.shape for thing in seen]
    first, *others = scene.things
    if scene.kind == "counting":
        return shapes.count(first.shape) == len(scene.things) and None not in shapes
    if scene.kind in ("single object", "two objects"):
        return all(thing.shape in shapes for thing in scene.things)
    if scene.kind in ("colors", "color attribution"):
        named = {(thing.shape, thing.color) for thing in seen}
        return all((thing.shape, thing.color) in named for thing in scene.things)
    relation = scene_words.relation(scene)
    return any(
        (a.shape, b.shape) == (first.shape, others[0].shape) and relation in relations(a.box, b.box)
        for a in seen
        for b in seen
    )


@cache
def _held_out() -> tuple[Scene, ...]:
    return tuple(scenes.scenes("test"))
