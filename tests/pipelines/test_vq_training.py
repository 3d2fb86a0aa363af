"""Training the VQ tokenizer from a recipe: weights that load, and a record that tells what made them."""

import hashlib
import json
from pathlib import Path

import pytest

from data_pipelines import vq_training
from janus_dist.errors import DataError
from janus_dist.weights.vq import load_vq
from tests.pipelines.conftest import captions, lines


@pytest.fixture
def recipe(make_recipe, photos, tmp_path):
    source = f"pipeline.inputs.generation={{format: jsonl, path: '{captions(tmp_path, 12)}', images: '{photos}'}}"
    return make_recipe("vq_train.steps=3", source, f"data.vq_weights={tmp_path / 'new' / 'vq.safetensors'}")


def test_weights_and_record(recipe):
    lines: list[str] = []
    vq_training.train(recipe, "python jobs/train_vq.py", lines.append)
    load_vq(recipe.model, recipe.data.vq_weights)
    path = Path(recipe.data.vq_weights)
    record = json.loads(path.with_suffix(".origin.json").read_text())
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["images"] == 12 and record["vq"]["codes"] == 32 and record["vq_train"]["steps"] == 3
    assert record["quality"]["psnr_db"] > 0
    assert lines[0].startswith("12 images of generation, 3 steps")


def test_the_same_recipe_gives_the_same_weights(recipe):
    path = Path(recipe.data.vq_weights)
    vq_training.train(recipe, "", lambda line: None)
    first = path.read_bytes()
    vq_training.train(recipe, "", lambda line: None)
    assert path.read_bytes() == first


def test_bad_images_are_left_out(make_recipe, spoiled, tmp_path):
    def of(path):
        return make_recipe(f"pipeline.inputs.generation={{format: jsonl, path: '{path}', images: '{spoiled}'}}")

    assert vq_training.pictures(of(captions(spoiled)))[0].shape == (45, 3, 16, 16)
    bad = lines(tmp_path / "bad.jsonl", [{"image": "photo-004.png", "caption": "a circle"}])
    with pytest.raises(DataError, match="have 0 images to train on"):
        vq_training.pictures(of(bad))


def test_a_recipe_without_images_to_train_on(make_recipe):
    recipe = make_recipe("pipeline.inputs.generation.stream=understanding")
    with pytest.raises(DataError, match="no input of the generation stream"):
        vq_training.pictures(recipe)
