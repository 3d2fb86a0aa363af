"""Evaluation: what is asked, what answers are compared with, what is written, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from janus_dist.config.recipe import StageRecipe
from janus_dist.data.tokenizer import load_tokenizer, train_tokenizer
from janus_dist.datasets import scenes as scene_data
from janus_dist.errors import CheckpointError, DataError
from janus_dist.evaluation import easy_vqa, run, scenes
from janus_dist.evaluation.easy_vqa import EasyVqa
from janus_dist.evaluation.held_out import accuracy_by_kind, blind_answers, majority_answer
from janus_dist.evaluation.sampler import Sampler
from janus_dist.model import janus, vq
from janus_dist.model.size import check_shapes
from tests import prepared, tiny
from tests.checkpoints import mark


def test_kinds_of_questions():
    asked = EasyVqa().questions(0)
    assert len(asked) == 9673
    assert {question.kind for question in asked} == {"shape", "color", "yes or no"}
    assert EasyVqa().questions(5) == asked[:5]


def test_accuracy_by_kind():
    asked = [
        easy_vqa.EasyVqaQuestion(0, "what shape?", "circle"),
        easy_vqa.EasyVqaQuestion(0, "what color?", "red"),
        easy_vqa.EasyVqaQuestion(0, "is it red?", "yes"),
        easy_vqa.EasyVqaQuestion(0, "is it blue?", "no"),
    ]
    found = accuracy_by_kind(asked, ["circle", "blue", "yes", "yes"])
    assert found == {"shape": 1.0, "color": 0.0, "yes or no": 0.5, "all": 0.5}


def test_blind_answers_know_the_words_but_not_the_image():
    asked = [question for question in EasyVqa().questions(0) if question.question == "what shape is in the image?"]
    assert len(set(blind_answers(asked, EasyVqa().trained()))) == 1  # one question, one answer, whatever is seen
    assert len({question.answer for question in asked}) == 3
    never_asked = easy_vqa.EasyVqaQuestion(0, "who drew this?", "yes")
    assert blind_answers([never_asked], EasyVqa().trained()) == [majority_answer(EasyVqa().trained())]


@pytest.mark.parametrize("square", ["padded", "cropped"])
def test_held_out_images(square):
    images = EasyVqa().held_out_images(32, square)
    assert images.shape == (1000, 3, 32, 32)
    assert images.dtype == torch.uint8


def small_recipe(folder, **sections) -> StageRecipe:
    train_tokenizer(["a b c d"], prepared.VOCAB, folder / "tokenizer.json")
    evaluate = {"max_questions": 30, "images_per_prompt": 1}
    return prepared.recipe(folder, folder / "runs", evaluate=evaluate, **sections)


def sampler_of(recipe: StageRecipe) -> Sampler:
    """An untrained one."""
    model = janus.build(recipe.model, seed=1)
    model.model.language_model.set_attn_implementation("sdpa")
    vq_tokenizer = vq.build(janus.vq_config(recipe.model)).eval()
    return Sampler(recipe, model.eval(), vq_tokenizer, load_tokenizer(recipe))


def untrained(recipe: StageRecipe, monkeypatch) -> list[str]:
    """A run whose checkpoint holds nothing; the devices that it is loaded to."""
    mark(recipe.run.saved_in, recipe.train.steps, recipe=recipe.model_dump(mode="json"))
    devices: list[str] = []

    def load(recipe: StageRecipe, checkpoint: str, device: str, dtype: str) -> Sampler:
        devices.append(device)
        return sampler_of(recipe)

    monkeypatch.setattr(run.Sampler, "load", load)
    monkeypatch.setattr(run, "load_vq", lambda model, path: sampler_of(recipe).vq)
    monkeypatch.setattr(run, "digest", lambda vq: "vq")  # of random weights
    return devices


def test_what_evaluation_leaves(tmp_path, monkeypatch):
    """An untrained model answers and draws badly, but every figure, picture and count is there."""
    recipe = small_recipe(tmp_path)
    untrained(recipe, monkeypatch)
    found = run.evaluate(recipe, tmp_path / "run", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found
    assert found["num_questions"] == 30
    assert found["num_images"] == 24
    assert found["generation_chance"] == 1 / 24
    assert found["detector_accuracy_on_real"] > found["detector_accuracy_on_reconstructions"]
    pictures = [entry["image"] for entry in found["questions"] + found["drawings"]]
    pictures += [pair[side] for pair in found["vq_pairs"] for side in ("original", "reconstruction")]
    for name in pictures:
        with Image.open(tmp_path / "out" / "images" / name) as picture:
            assert np.asarray(picture).shape == (16, 16, 3)


@pytest.fixture
def few_scenes(monkeypatch):
    """A data set that is judged in seconds."""
    monkeypatch.setattr(scene_data, "NUMBERS", {"train": 120, "test": 30})
    scenes._held_out.cache_clear()
    yield
    scenes._held_out.cache_clear()


def test_what_evaluation_on_scenes_leaves(tmp_path, monkeypatch, few_scenes):
    recipe = small_recipe(tmp_path, pipeline={"inputs": {"generation": {"format": "scenes"}}})
    untrained(recipe, monkeypatch)
    found = run.evaluate(recipe, tmp_path / "run", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found
    assert found["num_questions"] == 30 and found["num_images"] == len(scenes.Scenes().prompts()) == len(
        found["drawings"]
    )
    assert set(found["understanding_by_kind"]) == set(scene_data.KINDS)
    for figures in ("understanding", "generation"):
        shares = found[f"{figures}_intervals"]
        assert set(shares) == {"all", *scene_data.KINDS}
        assert shares["all"]["share"] == found[f"{figures}_accuracy"]
        # of floating-point numbers: the interval of 0 may begin a hair above it
        assert all(0 <= one["low"] <= one["share"] + 1e-9 <= one["high"] + 2e-9 <= 1 + 2e-9 for one in shares.values())
    assert found["detector_accuracy_on_real"] == 1.0 > found["detector_accuracy_on_reconstructions"]


def test_an_evaluation_of_the_same_is_found_again_and_of_anything_else_not(tmp_path, monkeypatch):
    recipe, out = small_recipe(tmp_path), tmp_path / "out"
    untrained(recipe, monkeypatch)
    assert run.found_before(recipe, out) is None
    found = run.evaluate(recipe, tmp_path / "run", out, ["understanding"], with_images=False)
    assert not {"generation_accuracy", "vq_psnr_db", "detector_accuracy_on_real"} & set(found)
    assert run.found_before(recipe, out, ["understanding"], with_images=False) == found
    assert run.found_before(recipe, out, ["understanding"]) is None
    assert run.found_before(recipe, out, with_images=False) is None
    fewer = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"max_questions": 29})})
    assert run.found_before(fewer, out, ["understanding"], with_images=False) is None
    mark(recipe.run.saved_in, recipe.train.steps + 1)
    assert run.found_before(recipe, out, ["understanding"], with_images=False) is None


@pytest.mark.parametrize(("gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_with_a_gpu_it_is_evaluated_there(tmp_path, monkeypatch, gpu, device):
    recipe = small_recipe(tmp_path, cluster={"workers": 1, "gpu": gpu})
    devices = untrained(recipe, monkeypatch)
    run.evaluate(recipe, tmp_path / "run", tmp_path / "out", [], with_images=False)
    assert devices == [device]


def test_images_are_encoded_where_the_vq_tokenizer_is(tmp_path, monkeypatch, few_scenes):
    recipe = small_recipe(tmp_path, pipeline={"inputs": {"generation": {"format": "scenes"}}})
    (tmp_path / "out" / "images").mkdir(parents=True)
    asked = sampler_of(recipe)
    asked.vq.to("meta")
    seen: set[str] = set()

    def encode(vq, pixels: torch.Tensor) -> torch.Tensor:
        seen.add(pixels.device.type)
        return torch.zeros(len(pixels), recipe.model.image_ids, dtype=torch.long)

    monkeypatch.setattr(run.vq_model, "encode", encode)
    monkeypatch.setattr(Sampler, "decode", lambda self, ids: np.zeros((len(ids), 16, 16, 3), np.uint8))
    run.reconstruction(asked, tmp_path / "out")
    assert seen == {"meta"}


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path):
    recipe = small_recipe(tmp_path)
    with pytest.raises(DataError, match=r"has \d+ ids, more than model\.text\.vocab=64"):
        load_tokenizer(recipe.model_copy(update={"model": tiny.MODEL}))


def test_weights_of_another_size_are_refused():
    shapes = {name: tuple(parameter.shape) for name, parameter in janus.build(tiny.MODEL, 0).named_parameters()}
    check_shapes(shapes, shapes, "here")
    with pytest.raises(CheckpointError, match=r"1 parameters differ, the first is lm_head\.weight: \(1, 32\) in the"):
        check_shapes(shapes, shapes | {"lm_head.weight": (1, 32)}, "here")
