"""Training a vision tower from a recipe: weights that a run starts from, and a record that tells what made them."""

import hashlib
import json

import pytest
import torch
from transformers import SiglipModel

from data_pipelines import siglip_training
from janus_dist.pretrain.siglip import accuracy, padded, siglip_config, train_siglip
from janus_dist.weights.start import open_weights
from tests import tiny
from tests.pipelines.conftest import captions


@pytest.fixture
def recipe(make_recipe, photos, tmp_path):
    source = f"pipeline.inputs.generation={{format: jsonl, path: '{captions(tmp_path, 12)}', images: '{photos}'}}"
    return make_recipe(source)


def test_weights_and_record(recipe, tmp_path):
    said: list[str] = []
    found = siglip_training.train(recipe, tmp_path / "tower", "python jobs/train_siglip.py", said.append, steps=2)
    weights = (tmp_path / "tower" / "model.safetensors").read_bytes()
    record = json.loads((tmp_path / "tower" / "origin.json").read_text())
    assert record["sha256"] == hashlib.sha256(weights).hexdigest() and record["accuracy"] == found
    assert record["images"] == 12 and record["training"]["steps"] == 2
    opened = open_weights(recipe.model, {"vision_tower": str(tmp_path / "tower")})
    assert opened and all(name.startswith("model.vision_model.") for name in opened)
    siglip_training.train(recipe, tmp_path / "again", "", said.append, steps=2)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights
    assert said[0].startswith("12 images of generation, 2 steps")


def test_it_learns_to_tell_images_apart():
    """Plain images of three colors; by chance a third would be right."""
    side, colors = tiny.MODEL.image_size, torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
    kind = torch.arange(96) % 3
    images = colors[kind][:, :, None, None].expand(-1, -1, side, side).contiguous()
    words = padded([[5], [6, 7], [8]], pad=1)
    assert words.tolist() == [[5, 1], [6, 7], [8, 1]]
    torch.manual_seed(0)
    model = SiglipModel(siglip_config(tiny.MODEL, words.shape[1]))
    train_siglip(model, images, words[kind], 60, 0, lambda line: None)
    assert accuracy(model, images, words, kind) == 1.0
