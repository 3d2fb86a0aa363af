"""A data root of seeded random samples, and a recipe that trains on it: what the trainer's tests start from."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from janus_dist.config.model import ModelConfig
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.streams import STREAMS
from janus_dist.data.manifest import VERSION, Manifest, ShardTable
from janus_dist.data.sample import GenerationSample, TextSample, UnderstandingSample
from janus_dist.data.shard import write_shard
from janus_dist.data.tokenizer import Tokenizer, train_tokenizer
from tests import tiny
from tests.images import png

VOCAB = 288


def prepare(folder: Path, samples: int = 40, seed: int = 0, model: ModelConfig = tiny.MODEL) -> None:
    """Write `FOLDER/tokenizer.json` and three shard sets under `FOLDER/data`."""
    train_tokenizer(["a b c d"], VOCAB, folder / "tokenizer.json")
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    rng = np.random.default_rng(seed)
    special = (tokenizer.boi, tokenizer.image, tokenizer.eoi)

    def words(number: int) -> list[int]:
        return rng.integers(10, 20, number).tolist()  # few, so that something can be learned in six steps

    def text(number: int) -> TextSample:
        return TextSample(np.array([tokenizer.bos, *words(5 + number % 20), tokenizer.eos], dtype=np.uint32))

    def understanding(number: int) -> UnderstandingSample:
        ids = [tokenizer.bos, tokenizer.boi, tokenizer.image, tokenizer.eoi, *words(6 + number % 5), tokenizer.eos]
        pixels = rng.integers(0, 256, (model.image_size, model.image_size, 3), dtype=np.uint8)
        return UnderstandingSample(
            np.array(ids, dtype=np.uint32), np.array([[len(ids) - 3, len(ids)]], dtype=np.int64), [png(pixels)]
        )

    def generation(number: int) -> GenerationSample:
        prompt = np.array([tokenizer.bos, *words(2 + number % 3), tokenizer.boi], dtype=np.uint32)
        return GenerationSample(prompt, rng.integers(0, 4, model.image_ids, dtype=np.uint16))

    makers = {"text": text, "understanding": understanding, "generation": generation}
    for name in STREAMS:
        made = [(f"{name}-{number:05d}", makers[name](number)) for number in range(samples)]
        target = folder / "data" / name
        entry = write_shard(target, "shard-00000", made, model, special)
        Manifest(
            VERSION, name, samples, entry.tokens, 0, model.image_size, model.image_tokens, model.image_ids,
            tokenizer.sha256,
            hashlib.sha256(b"").hexdigest() if name == "generation" else None, {}, ShardTable.of([entry]),
        ).save(target)  # fmt: skip


def recipe(folder: Path, root: Path, workers: int = 2, **sections: dict[str, Any]) -> StageRecipe:
    """A recipe for six steps on what `prepare` wrote; `sections` change settings of its sections."""
    settings: dict[str, Any] = {
        "stage": 2,
        "run": {"root": str(root), "name": "run", "seed": 3},
        "model": tiny.MODEL.model_dump() | {"text": tiny.MODEL.text.model_dump() | {"vocab": VOCAB}},
        "data": {
            "root": str(folder / "data"),
            "tokenizer": str(folder / "tokenizer.json"),
            "vq_weights": str(folder / "vq.safetensors"),
        },
        "cluster": {"workers": workers},
        "engine": {"dtype": "float32", "persist_elements": 64, "timeout_s": 60},
        "monitor": {"wandb": "disabled"},
        "mix": {"understanding": 2, "text": 3, "generation": 5},
        "batch": {"rows": 4, "row_tokens": 64, "fill": 0.9},
        "optim": {"lr": 1e-2, "weight_decay": 0.1},
        "train": {
            "steps": 6,
            "save_every_steps": 3,
            "trainable": ["vision_tower", "understanding_adaptor", "language_model", "text_head", "image_head"],
        },
    }
    for section, changes in sections.items():
        settings[section] = settings.get(section, {}) | changes
    return StageRecipe.model_validate(settings)
