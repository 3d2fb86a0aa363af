"""The memory forecast against what is really kept: by autograd for activations, by DeepSpeed for states."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from janus_dist.config.load import load
from janus_dist.config.model import ModelConfig, TextConfig, VisionConfig
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.train import OptimConfig
from janus_dist.data.collate import collate
from janus_dist.data.sample import GenerationSample, TextSample, UnderstandingSample
from janus_dist.engine.world import join
from janus_dist.engine.zero import ZeroEngine
from janus_dist.estimate import memory
from janus_dist.model import janus
from janus_dist.model.parts import PREFIXES, set_trainable
from tests import prepared, tiny
from tests.ranks import run_ranks

ALL = list(PREFIXES)
MODEL = ModelConfig(
    image_size=32,
    text=TextConfig(vocab=300, hidden=256, layers=4, heads=4, mlp=704),
    vision=VisionConfig(patch=8, hidden=128, layers=3, heads=4, mlp=256),
    vq=tiny.MODEL.vq.model_copy(update={"codes": 128}),
)
FORM = replace(tiny.document_format(), image_tokens=MODEL.image_tokens, image_size=MODEL.image_size)


def recipe(every: int, trainable: list[str], tokens: int = 1024) -> StageRecipe:
    sections = {
        "engine": {"activation_checkpointing": every, "dtype": "bfloat16", "persist_elements": 1_000},
        "train": {"trainable": trainable},
        "batch": {"rows": 4, "row_tokens": tokens, "micro_rows": 1},
        "mix": {"understanding": 1, "text": 0, "generation": 1},
    }
    made = prepared.recipe(Path("unused"), Path("unused"), **sections)
    return made.model_copy(update={"model": MODEL})


def full_row(tokens: int, images: int) -> list:
    """Documents of a row: as many images to read as the forecast takes, VQ ids for the rest."""
    rng = np.random.default_rng(0)
    ids = np.array([tiny.BOS, *[tiny.IMAGE] * images, *tiny.words(rng, 2), tiny.EOS], np.uint32)
    pixels = rng.integers(0, 256, (images, MODEL.image_size, MODEL.image_size, 3), dtype=np.uint8)
    seen = UnderstandingSample(ids, np.array([[images + 2, len(ids)]]), [b""] * images)
    found = [tiny.Document(seen, len(ids) + images * (MODEL.image_tokens - 1), images=pixels)]
    left = tokens - sum(document.tokens for document in found)
    for _ in range(left // (MODEL.image_ids + 6)):
        ids = rng.integers(0, MODEL.vq.codes, MODEL.image_ids, dtype=np.uint16)
        prompt = np.array([tiny.BOS, *tiny.words(rng, 4), tiny.BOI], np.uint32)
        found.append(tiny.Document(GenerationSample(prompt, ids), len(prompt) + len(ids)))
    left = tokens - sum(document.tokens for document in found)
    return [*found, tiny.Document(TextSample(np.full(left, 9, np.uint32)), left)] if left > 1 else found


def test_a_micro_step_may_see_images_alone():
    """Whatever share of a step they are; what is computed again is a layer of the larger network at work."""
    of = recipe(1, ALL)
    tokens = of.batch.row_tokens
    assert memory.most_images(of, tokens) == tokens // (MODEL.image_tokens + 1)
    mix = of.mix.model_copy(update={"generation": 9.0})
    assert memory.most_images(of.model_copy(update={"mix": mix}), tokens) == memory.most_images(of, tokens)
    without = of.mix.model_copy(update={"understanding": 0.0})
    assert memory.most_images(of.model_copy(update={"mix": without}), tokens) == 1, "the dummy"
    wide = MODEL.model_copy(update={"vision": MODEL.vision.model_copy(update={"hidden": 1024, "mlp": 4096})})
    wider = of.model_copy(update={"model": wide})
    assert memory.recomputed_bytes(wider, tokens) > memory.recomputed_bytes(of, tokens)
    frozen = recipe(1, ["language_model"]).model_copy(update={"model": wide})
    assert memory.recomputed_bytes(frozen, tokens) == memory.recomputed_bytes(of, tokens)


@pytest.mark.parametrize("trainable", [ALL, [part for part in ALL if part != "vision_tower"]])
@pytest.mark.parametrize("every", [0, 1, 2])
def test_activations(every, trainable):
    of = recipe(every, trainable)
    tokens = of.batch.row_tokens
    model = janus.build(MODEL, 0).train()
    set_trainable(model, trainable)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    janus.checkpoint_activations(model, every)
    images = memory.most_images(of, tokens)
    batch = collate(full_row(tokens, images), FORM)
    ours = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch, torch.ones(3))
    assert sum(kept.values()) == pytest.approx(memory.activation_bytes(of, tokens), rel=0.1)


def states(trainable: list[str], of: StageRecipe) -> dict[str, int]:
    """Bytes that DeepSpeed really holds on this rank."""
    world = join(of.cluster, 60)
    model = janus.on_meta(MODEL)
    set_trainable(model, trainable)
    engine = ZeroEngine(model, janus.made(model, 0, world.device), of.engine, OptimConfig(lr=1e-3), world)
    batch = collate(full_row(200, 1), FORM)
    engine.micro_step(batch, torch.ones(3), last=True)
    engine.step(1e-3)
    zero = engine.optimizer
    masters = zero.fp32_partitioned_groups_flat
    adamw = [value for state in zero.optimizer.state.values() for value in state.values() if value.ndim]
    weights = [parameter.ds_tensor for parameter in model.parameters()]
    return {
        "master weights": sum(flat.nbytes for flat in masters),
        "AdamW moments": sum(value.nbytes for value in adamw),
        "gradients": zero.grad_partitions_flat_buffer.nbytes,
        "partitions": sum(one.nbytes for one in weights),
    }


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("trainable", [ALL, ["understanding_adaptor", "image_head"]])
def test_states(tmp_path, world, trainable):
    of = recipe(0, trainable)
    predicted = memory.predict(of, world).device
    small = 2 * sum(
        size
        for size in (math.prod(shape) for shape in janus.parameter_shapes(MODEL).values())
        if size <= of.engine.persist_elements
    )
    for found in run_ranks(states, world, tmp_path, trainable, of):
        for kind in ("master weights", "AdamW moments", "gradients"):
            assert found[kind] == pytest.approx(predicted[kind], rel=0.02), kind
        assert found["partitions"] == pytest.approx(predicted["weights"] - small, rel=0.02)


@pytest.mark.parametrize(("preset", "billions"), [("janus-1.3b", 2.005), ("janus-pro-7b", 7.336)])
def test_states_of_presets_follow_the_rule_of_18_bytes(preset, billions):
    """bfloat16 weights; float32 master weights, two moments and gradients; the VQ tokenizer is no part of it."""
    folder = Path(__file__).parents[2] / "jobs" / "recipes" / preset
    of = load(StageRecipe, [folder / "base.yaml", folder / "stage3.yaml"], []).recipe
    found = memory.predict(of, 8).device
    states = sum(found[kind] for kind in ("master weights", "AdamW moments", "gradients"))
    assert states == pytest.approx(16 * billions * 1e9 / 8, rel=0.01)
    assert found["weights"] == pytest.approx(2 * billions * 1e9 / 8, rel=0.05)
    assert 0 < found["heads"] < 4 * 2**30 and found["activations"] > 2**30
