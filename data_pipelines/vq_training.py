"""Training of the VQ tokenizer on the images of a source.

Invariant: the weights and their record depend only on images, settings and seed, which the record lists.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipelines.job import prepared
from data_pipelines.prepare import input_work
from data_pipelines.steps.generation import PromptAndCrop
from janus_dist.config.recipe import BaseRecipe
from janus_dist.config.streams import SPECS
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError
from janus_dist.model import vq as vq_model
from janus_dist.model.janus import vq_config
from janus_dist.pretrain.vq import BATCH, LR, VqQuality, train_vq
from janus_dist.storage.fs import write_whole
from janus_dist.weights.vq import save_vq


def train(recipe: BaseRecipe, command: str, say: Callable[[str], None]) -> VqQuality:
    """Train on the images of all generation inputs and return the quality; write `data.vq_weights` and `.origin.json`.

    Raises DataError when the inputs have fewer than two images.
    """
    path = Path(recipe.data.vq_weights)
    pixels, _ = pictures(recipe)
    names = ", ".join(generation_inputs(recipe))
    say(f"{len(pixels)} images of {names}, {recipe.vq_train.steps} steps -> {path}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        vq = vq_model.build(vq_config(recipe.model))
    quality = train_vq(vq, pixels, recipe.vq_train, recipe.run.seed, say)
    save_vq(vq, path)
    record = {
        "command": command,
        "inputs": {name: recipe.pipeline.inputs[name].model_dump(mode="json") for name in generation_inputs(recipe)},
        "images": len(pixels),
        "images_sha256": hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
        "image_size": recipe.model.image_size,
        "vq": recipe.model.vq.model_dump(mode="json"),
        "vq_train": recipe.vq_train.model_dump(mode="json") | {"batch": BATCH, "lr": LR},
        "seed": recipe.run.seed,
        "torch": torch.__version__,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "quality": asdict(quality),
    }
    write_whole(path.with_suffix(".origin.json"), json.dumps(record, indent=1, sort_keys=True).encode() + b"\n")
    return quality


def pictures(recipe: BaseRecipe) -> tuple[Tensor, list[NDArray[np.uint32]]]:
    """Return the crops of the generation inputs' good images, [images, 3, side, side] uint8, and the ids of each
    prompt, [ids] uint32.

    Raises DataError when there are fewer than two.
    """
    samples: list[PromptAndCrop] = []
    for name in generation_inputs(recipe):
        samples += prepared(input_work(name, recipe, Tokenizer.load(recipe.data.tokenizer)))
    if len(samples) < 2:
        raise DataError(f"the generation inputs have {len(samples)} images to train on, at least 2 are needed")
    squares = torch.from_numpy(np.stack([sample.pixels for sample in samples])).permute(0, 3, 1, 2).contiguous()
    return squares, [sample.prompt_ids for sample in samples]


def generation_inputs(recipe: BaseRecipe) -> list[str]:
    """Return the names of the inputs of the generation stream; raises DataError without any."""
    names = [name for name, stream in recipe.pipeline.streams.items() if SPECS[stream].draws_images]
    if not names:
        raise DataError("pipeline.inputs has no input of the generation stream, so it has no images to train on")
    return names
