"""Training of a vision tower on the images and captions of a source.

Invariant: the weights and their record depend only on images, captions, sizes and seed, which the record lists.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save as serialized
from transformers import SiglipModel

from data_pipelines.vq_training import generation_inputs, pictures
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.pretrain.siglip import BATCH, LR, STEPS, padded, siglip_config, train_siglip
from janus_dist.storage.fs import write_whole


def train(recipe: BaseRecipe, out: Path, command: str, say: Callable[[str], None], steps: int = STEPS) -> float:
    """Train on all generation inputs and return the accuracy on held-out images.

    Writes `OUT/config.json` and `OUT/model.safetensors`, in the layout in which SigLIP is published, and
    `OUT/origin.json`. Raises DataError when the inputs have fewer than two images.
    """
    images, prompts = pictures(recipe)
    captions = padded([prompt.tolist() for prompt in prompts], Tokenizer.load(recipe.data.tokenizer).eos)
    say(f"{len(images)} images of {', '.join(generation_inputs(recipe))}, {steps} steps -> {out}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        model = SiglipModel(siglip_config(recipe.model, captions.shape[1]))
    accuracy = train_siglip(model, images, captions, steps, recipe.run.seed, say)
    out.mkdir(parents=True, exist_ok=True)
    model.config.to_json_file(
        out / "config.json", use_diff=False
    )  # a difference is to defaults that warn of themselves
    tower = {name: value.contiguous() for name, value in model.state_dict().items() if name.startswith("vision_model.")}
    write_whole(out / "model.safetensors", serialized(tower, metadata={"format": "pt"}))
    record = {
        "command": command,
        "inputs": {name: recipe.pipeline.inputs[name].model_dump(mode="json") for name in generation_inputs(recipe)},
        "images": len(images),
        "images_sha256": hashlib.sha256(images.numpy().tobytes()).hexdigest(),
        "captions": len(captions.unique(dim=0)),
        "image_size": recipe.model.image_size,
        "vision": recipe.model.vision.model_dump(mode="json"),
        "training": {"steps": steps, "batch": BATCH, "lr": LR},
        "seed": recipe.run.seed,
        "torch": torch.__version__,
        "sha256": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "accuracy": accuracy,
    }
    write_whole(out / "origin.json", json.dumps(record, indent=1, sort_keys=True).encode() + b"\n")
    say(f"held out: the right caption of {record['captions']} for {accuracy:.1%} of the images")
    return accuracy
