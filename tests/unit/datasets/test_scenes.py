"""Scenes: the same everywhere, true to their words, held out whole, and asked so that words alone give little away."""

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.inputs import formats
from data_pipelines.record import Record
from data_pipelines.steps.generation import Generation
from data_pipelines.steps.understanding import Understanding
from janus_dist.config.load import load
from janus_dist.config.pipeline import InputConfig
from janus_dist.config.recipe import StageRecipe
from janus_dist.data import images
from janus_dist.data.sample import UnderstandingSample
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.datasets import scene_words, scenes
from janus_dist.datasets.easy_vqa import COLORS
from janus_dist.datasets.scenes import KINDS, SHAPES, Dice, Scene, Thing
from janus_dist.evaluation.held_out import accuracy_by_kind, blind_answers
from janus_dist.evaluation.scenes import SceneQuestion

NUMBERS = {name: number for number, name in enumerate(scene_words.NUMBERS)}


@pytest.fixture(scope="module")
def train() -> list[Scene]:
    return [scenes.scene(0, "train", number) for number in range(4_800)]


@pytest.fixture(scope="module")
def test() -> list[Scene]:
    return [scenes.scene(0, "test", number) for number in range(1_200)]


def test_the_same_bytes_everywhere():
    """Things, words and pixels of both splits, at two sizes; no floating-point number takes part in them."""
    digest = hashlib.sha256()
    for split in ("train", "test"):
        for number in range(120):
            found = scenes.scene(0, split, number)
            asked = [astuple(one) for one in scene_words.questions(found)]
            digest.update(json.dumps([astuple(found), scene_words.caption(found), asked]).encode())
            digest.update(scenes.draw(found).tobytes() + scenes.draw(found, 100).tobytes())
    expected = "ebf761a90cae9dbee4a2af4c0e28132479cf27ed94804b6411506c5e7fbca30d"
    assert digest.hexdigest() == expected, "existing shards hold other scenes; raise PIPELINE_VERSION"


def test_seed_and_number_make_a_scene():
    assert scenes.scene(3, "train", 8) == scenes.scene(3, "train", 8)
    others = {scenes.scene(seed, "train", number).layout for seed in (0, 1) for number in (1, 7, 13)}
    assert len(others) == 6


def test_no_scene_is_in_both_splits(train, test):
    """Neither a scene nor one with the same shapes and colors in the same cells, whatever seed made it."""
    others = [scenes.scene(1, "train", number) for number in range(1_200)]
    held_out = {scene.layout for scene in test}
    assert len(held_out) > 900 and not held_out & {scene.layout for scene in train + others}
    assert all(scenes.split_of(scene) == "train" for scene in train + others)
    moved = replace(
        train[0], things=tuple(replace(t, side=t.side - 2, left=t.left + 1, top=t.top + 1) for t in train[0].things)
    )
    assert scenes.split_of(moved) == "train", "smaller around the same center"


def test_kinds_take_turns(train):
    assert Counter(scene.kind for scene in train) == dict.fromkeys(KINDS, 800)
    assert {len(scene.things) for scene in train if scene.kind == "counting"} == {1, 2, 3, 4}
    for scene in train:
        shapes, colors = {thing.shape for thing in scene.things}, {thing.color for thing in scene.things}
        if scene.kind == "counting":
            assert len(shapes) == 1
        else:
            assert len(shapes) == len(colors) == len(scene.things) == (2 if scene.kind in scene_words.PAIRED else 1)


def test_things_are_apart_and_whole(train):
    """By their pixels: what one thing covers, alone or grown by a pixel, no other touches, nor the edge."""
    for scene in train[:300]:
        masks = []
        for thing in scene.things:
            alone = scenes.draw(replace(scene, things=(thing,))) != scene.background
            masks.append(alone.any(axis=-1))
        for mask in masks:
            assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
        assert (
            np.sum([np.pad(mask, 1)[1:-1, :-2] | mask | np.pad(mask, 1)[1:-1, 2:] for mask in masks], axis=0).max() == 1
        )


def test_pixels_by_formula():
    """Areas of shapes in units of their squares, and colors, against what geometry says."""
    areas = {"circle": np.pi / 4, "ring": np.pi / 4 * 3 / 4, "square": 1, "triangle": 1 / 2, "cross": 5 / 9}
    for shape in SHAPES:
        found = Scene("", "colors", (Thing(shape, "black", 20, 24, 18),), 255)
        for size in (64, 96, 128):
            share = 1 - scenes.draw(found, size)[..., 0] / 255.0
            assert share.sum() == pytest.approx(areas[shape] * (18 * size / 64) ** 2, rel=0.02)
            middle = [(share.sum(axis=axis) @ (np.arange(size) + 0.5)) / share.sum() * 64 / size for axis in (0, 1)]
            below = 18 / 6 if shape == "triangle" else 0  # its center of mass is at two thirds of its height
            assert middle == pytest.approx([29, 33 + below], abs=0.1)
    for color, rgb in COLORS.items():
        found = Scene("", "colors", (Thing("square", color, 20, 20, 16),), 240)
        assert scenes.draw(found)[28, 28].tolist() == list(rgb) and scenes.draw(found)[2, 2].tolist() == [240] * 3


@pytest.mark.parametrize(
    ("a", "expected"),
    [
        ((0, 20, 10, 30), {"left of"}),
        ((40, 20, 50, 30), {"right of"}),
        ((20, 0, 30, 10), {"above"}),
        ((20, 40, 30, 50), {"below"}),
        ((0, 0, 10, 10), {"left of", "above"}),
        ((20, 20, 30, 30), set()),
        ((19, 20, 29, 30), set()),  # a tenth of both sides is 2, so this is nowhere
        ((17, 20, 27, 30), set()),  # 3 less 2 is not more than half of 3
        ((15, 20, 25, 30), {"left of"}),  # 5 less 2 is
    ],
)
def test_relations_are_those_of_geneval(a, expected):
    assert scenes.relations(a, (20, 20, 30, 30)) == expected


def answer_by_sight(scene: Scene, question: str) -> str:
    """The answer to a question, from the things alone, by rules that know nothing of how questions are made."""
    words = question.rstrip("?").replace(",", "").split()
    shapes = [thing.shape for thing in scene.things]
    named = [shape for word in words for shape in SHAPES if word in (shape, scene_words.plural(shape))]
    if scene.kind == "counting":
        number = shapes.count(named[0]) if named else len(shapes)
        if words[0] == "how":
            return scene_words.NUMBERS[number]
        return yes(number > 2 if "more" in words else number == NUMBERS[words[-1]])
    if words[0] in ("which", "what", "where"):
        return named_by_sight(scene, words, named)
    by_shape = {thing.shape: thing for thing in scene.things}
    said = [word for word in words if word in COLORS]
    relation = [relation for relation in scenes.RELATIONS if f" {relation} " in question]
    if relation:
        return yes(scenes.relations(by_shape[named[0]].box, by_shape[named[1]].box) == set(relation))
    if said and named:
        return yes(all(by_shape[shape].color == color for shape, color in zip(named, said, strict=True)))
    if said:
        return yes(said[0] in {thing.color for thing in scene.things})
    return yes(all(shape in shapes for shape in named))


def named_by_sight(scene: Scene, words: list[str], named: list[str]) -> str:
    """The answer to a question that wants more than yes or no."""
    by_shape = {thing.shape: thing for thing in scene.things}
    if words[0] == "where":
        (relation,) = scenes.relations(by_shape[named[0]].box, by_shape[named[1]].box)
        return relation.split()[0]
    if words[:2] == ["what", "color"]:
        return by_shape[named[0]].color
    fits = list(scene.things)
    if words[-1] in COLORS:
        fits = [thing for thing in fits if thing.color == words[-1]]
    if named:
        fits = [thing for thing in fits if thing.shape != named[0]]
    for relation in scenes.RELATIONS:
        if f" {relation} " in " ".join(words):
            fits = [thing for thing in fits if scenes.relations(thing.box, by_shape[named[0]].box) == {relation}]
    (found,) = fits
    return found.shape


def yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def test_answers_are_those_of_who_sees(train, test):
    for scene in train + test:
        for asked in scene_words.questions(scene):
            assert asked.answer == answer_by_sight(scene, asked.question), (scene, asked)


def test_captions_say_what_is_there(train):
    forms = defaultdict(set)
    for scene in train:
        said, first = scene_words.caption(scene), scene.things[0]
        forms[scene.kind].add(said)
        names = [thing.shape for thing in scene.things]
        if scene.kind == "counting":
            assert said.split()[0] == scene_words.NUMBERS[len(names)] and first.shape in said
        elif scene.kind == "position":
            (relation,) = scenes.relations(first.box, scene.things[1].box)
            assert said == f"a {names[0]} {relation} a {names[1]}"
        elif scene.kind in ("colors", "color attribution"):
            assert said == " and ".join(f"a {thing.color} {thing.shape}" for thing in scene.things)
        else:
            assert said == " and ".join(f"a {name}" for name in names)
    assert {kind: len(found) for kind, found in forms.items() if kind != "color attribution"} == {
        "single object": 5, "colors": 40, "counting": 20, "two objects": 20, "position": 80,
    }  # fmt: skip
    assert len(forms["color attribution"]) > 500, "of 1,120"


def test_every_kind_is_asked_in_several_forms_with_yes_and_no(train):
    forms, answers = defaultdict(Counter), defaultdict(Counter)
    words = {word for shape in SHAPES for word in (shape, scene_words.plural(shape))} | {*COLORS, *NUMBERS}
    for scene in train:
        for asked in scene_words.questions(scene):
            forms[asked.kind][" ".join("_" if word in words else word for word in asked.question[:-1].split())] += 1
            answers[asked.kind][asked.answer] += 1
    assert set(forms) == set(KINDS)
    for kind in KINDS:
        assert len(forms[kind]) >= 3 and min(forms[kind].values()) > 100, forms[kind]
        both = answers[kind]["yes"] + answers[kind]["no"]
        assert abs(answers[kind]["yes"] / both - 0.5) < 4 * 0.5 / both**0.5, "four standard deviations"


def test_words_give_little_away(train, test):
    """Who knows all training questions but is blind is right as often as one who guesses among the form's answers."""
    asked = [
        SceneQuestion(number, one.question, one.answer, one.kind)
        for number, scene in enumerate(test)
        for one in scene_words.questions(scene)
    ]
    trained = [(one.question, one.answer) for scene in train for one in scene_words.questions(scene)]
    blind = accuracy_by_kind(asked, blind_answers(asked, trained))
    number = {"yes": 2, "no": 2} | dict.fromkeys(COLORS, 8)
    for kind in KINDS:
        guesses = [1 / number.get(one.answer, 4) for one in asked if one.kind == kind]
        assert blind[kind] < sum(guesses) / len(guesses) + 0.06, kind
    assert blind["all"] < 0.47


def test_dice_are_fair():
    dice = Dice("fair")
    counts = Counter(dice.below(7) for _ in range(7_000))
    assert sorted(counts) == list(range(7)) and all(abs(count - 1000) < 4 * 30 for count in counts.values())
    orders = Counter(tuple(dice.shuffled("abc")) for _ in range(6_000))
    assert len(orders) == 6 and all(abs(count - 1000) < 4 * 30 for count in orders.values())
    assert dice.other("abc", "a", "c") == "b"


def test_the_training_split_becomes_records():
    of = InputConfig(stream="generation", format="scenes")
    units = formats.units(of, 7_000)
    assert [unit.records for unit in units] == [7_000, 7_000, 7_000, 3_000]
    last = replace(units[-1], start=23_998)
    found = list(formats.records(of, last))
    assert [one.key for one in found] == ["train-23998", "train-23999"]
    for number, record in zip((23_998, 23_999), found, strict=True):
        scene = scenes.scene(0, "train", number)
        assert isinstance(record, Record) and record.caption == scene_words.caption(scene)
        assert record.turns == tuple((one.question, one.answer) for one in scene_words.questions(scene))
        (picture,) = record.pictures
        assert np.array_equal(np.asarray(images.load(picture.content or b"")), scenes.draw(scene))


def test_pipelines_keep_every_pixel():
    """At the embedded default's side of 64, what the vision tower and the VQ tokenizer take is the scene itself."""
    tiny = Path(__file__).parents[3] / "jobs" / "recipes" / "tiny"
    recipe = load(StageRecipe, [tiny / "base.yaml", tiny / "stage3.yaml"], []).recipe
    of = InputConfig(stream="generation", format="scenes")
    tokenizer = Tokenizer.load(tiny / "tokenizer.json")
    for record in formats.records(of, formats.units(of, 12)[0]):
        assert isinstance(record, Record)
        pixels = scenes.draw(scenes.scene(0, "train", int(record.key[-5:])))
        prepared = Generation(recipe, of, tokenizer).prepare(record)
        assert np.array_equal(prepared.pixels, pixels) and record.caption in tokenizer.decode(
            prepared.prompt_ids.tolist()
        )
        ((_, sample),) = Understanding(recipe, of, tokenizer).make(record).samples
        assert isinstance(sample, UnderstandingSample) and len(sample.answers) == len(record.turns)
        assert np.array_equal(np.asarray(images.load(sample.images[0])), pixels)
