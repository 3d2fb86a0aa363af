"""Scenes as a benchmark: GenEval's rules on right and wrong drawings, prompts, and intervals."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from janus_dist.config.load import load
from janus_dist.config.recipe import StageRecipe
from janus_dist.datasets import scenes
from janus_dist.datasets.scenes import KINDS, Kind, Scene, Thing
from janus_dist.evaluation import run
from janus_dist.evaluation import scenes as judge
from janus_dist.evaluation.scenes import ScenePrompt, Scenes

TINY = Path(__file__).parents[3] / "jobs" / "recipes" / "tiny"
RING, CROSS = Thing("ring", "red", 4, 24, 16), Thing("cross", "blue", 40, 26, 16)
HIGH, LOW = Thing("ring", "teal", 24, 4, 16), Thing("ring", "green", 24, 44, 16)


def drawn(*things: Thing) -> np.ndarray:
    return scenes.draw(Scene("", "colors", things, 240))


def verdict(kind: Kind, asked: tuple[Thing, ...], image: np.ndarray) -> tuple[bool, bool]:
    """(right, exact)"""
    (found,) = Scenes().judge([ScenePrompt(Scene("", kind, asked, 240))], [image])
    assert found.kinds == (kind,)
    return found.right, found.parts["exact"]


def test_held_out_scenes_are_right_and_exact():
    asked = Scenes().prompts()
    assert Counter(prompt.scene.kind for prompt in asked) == dict.fromkeys(KINDS, 40)
    assert all(len(prompt.scene.things) > 1 for prompt in asked if prompt.scene.kind == "counting")
    found = Scenes().judge(asked, [scenes.draw(prompt.scene) for prompt in asked])
    assert all(one.right and one.parts["exact"] for one in found)
    assert 0 < Scenes().chance() < 0.25


def test_seen_is_said_in_words():
    (found,) = Scenes().judge([ScenePrompt(Scene("", "colors", (RING,), 240))], [drawn(RING)])
    assert found.seen == "red ring"


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_noisy_images_are_wrong(kind):
    asked = (RING, CROSS) if kind not in ("single object", "colors", "counting") else (RING,)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for image in (drawn(), noise):
        assert verdict(kind, asked, image) == (False, False)


def test_single_object():
    assert verdict("single object", (RING,), drawn(replace(RING, color="gray", left=30))) == (True, True)
    assert verdict("single object", (RING,), drawn(CROSS)) == (False, False)
    assert verdict("single object", (RING,), drawn(RING, CROSS)) == (True, False)


def test_colors():
    assert verdict("colors", (RING,), drawn(RING)) == (True, True)
    assert verdict("colors", (RING,), drawn(replace(RING, color="brown"))) == (False, False)
    assert verdict("colors", (RING,), drawn(replace(RING, color="brown"), replace(CROSS, color="red"))) == (
        False,
        False,
    )


def test_two_objects():
    assert verdict("two objects", (RING, CROSS), drawn(CROSS, replace(RING, color="teal"))) == (True, True)
    assert verdict("two objects", (RING, CROSS), drawn(RING)) == (False, False)
    assert verdict("two objects", (RING, CROSS), drawn(RING, replace(CROSS, shape="ring"))) == (False, False)


def test_counting():
    asked = (RING, HIGH, LOW)
    assert verdict("counting", asked, drawn(*asked)) == (True, True)
    assert verdict("counting", asked, drawn(RING, HIGH)) == (False, False), "one too few"
    assert verdict("counting", asked, drawn(*asked, replace(CROSS, shape="ring"))) == (False, False), "one too many"
    assert verdict("counting", asked, drawn(*asked, CROSS)) == (True, False), "something else beside them"
    touching = replace(LOW, left=40), replace(LOW, left=24), RING, HIGH
    assert verdict("counting", asked, drawn(*touching)) == (False, False), "two grown together are not one"


@pytest.mark.parametrize("asked", [(RING, CROSS), (CROSS, RING), (HIGH, replace(CROSS, left=24, top=40))])
def test_swapped_positions_are_wrong(asked):
    first, second = asked
    swapped = drawn(replace(first, left=second.left, top=second.top), replace(second, left=first.left, top=first.top))
    assert verdict("position", asked, drawn(*asked)) == (True, True)
    assert verdict("position", asked, swapped) == (False, False)
    assert verdict("position", asked, drawn(first)) == (False, False)


def test_swapped_colors_are_wrong():
    swapped = drawn(replace(RING, color=CROSS.color), replace(CROSS, color=RING.color))
    assert verdict("color attribution", (RING, CROSS), drawn(RING, CROSS)) == (True, True)
    assert verdict("color attribution", (RING, CROSS), swapped) == (False, False)
    assert verdict("two objects", (RING, CROSS), swapped) == (True, True)


def test_touching_shapes_are_judged_too():
    beside = replace(CROSS, left=RING.left + RING.side, top=RING.top)
    assert verdict("color attribution", (RING, CROSS), drawn(RING, beside)) == (True, True)


def test_what_is_near_but_not_there_is_not_seen():
    found = Scene("", "colors", (RING,), 240)
    seen = judge.detect(drawn(replace(RING, left=RING.left + 3)))
    assert judge.is_seen(found, seen)
    assert not judge.is_seen(found, judge.detect(drawn(replace(RING, left=RING.left + 6))))
    assert not judge.is_seen(found, judge.detect(drawn(RING, CROSS)))


def test_a_recipe_with_scenes_is_judged_by_scenes():
    files = [TINY / "base.yaml", TINY / "stage3.yaml"]
    assert run.data_set(load(StageRecipe, files, []).recipe).name == "easy_vqa"
    changed = ["pipeline.inputs.understanding.format=scenes", "pipeline.inputs.generation.format=scenes"]
    assert run.data_set(load(StageRecipe, files, changed).recipe).name == "scenes"
