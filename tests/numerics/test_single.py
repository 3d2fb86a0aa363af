"""One encoder for reading and drawing (Janus, table 5, A): an image to read is fed as one that is drawn is."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from janus_dist.batch import Batch
from janus_dist.config.model import ModelConfig
from janus_dist.data.collate import collate
from janus_dist.data.sample import GenerationSample
from janus_dist.estimate.flops import Counts, model_flops
from janus_dist.model import janus, single
from janus_dist.model import vq as vq_model
from janus_dist.model.parts import PREFIXES
from tests import tiny

VISION = tiny.MODEL.vision.model_copy(update={"patch": 4})
CONFIG = tiny.MODEL.model_copy(update={"reads_by": "vq", "vision": VISION})
ONES = torch.ones(3)


@pytest.fixture(scope="module")
def vq():
    torch.manual_seed(0)
    return vq_model.build(janus.vq_config(CONFIG))


@pytest.fixture
def model(vq) -> janus.Janus:
    found = janus.build(CONFIG, seed=0)
    found.as_read = partial(single.read_by_vq, vq=vq)
    return found


def batch_of(*samples) -> Batch:
    form = replace(tiny.document_format(), image_tokens=CONFIG.image_tokens)
    documents = []
    for sample in samples:
        document = tiny.document_of(sample)
        documents.append(replace(document, tokens=document.tokens + extra_tokens(sample)))
    return collate(documents, form)


def extra_tokens(sample) -> int:
    """More tokens of an image than in the model that `tiny` counts for."""
    return 0 if isinstance(sample, GenerationSample) or not hasattr(sample, "images") else (
        CONFIG.image_tokens - tiny.MODEL.image_tokens
    )  # fmt: skip


def test_an_image_is_fed_by_the_embedding_and_adaptor_of_its_ids(model, vq):
    """Against the same tokens with the features put in by hand, where SigLIP's would go."""
    rng = np.random.default_rng(0)
    batch = batch_of(tiny.understanding_sample(rng), tiny.generation_sample(rng), tiny.text_sample(rng))
    with torch.no_grad():
        _, found = model(batch, ONES)
        ids = vq_model.encode(vq, batch.pixels / 127.5 - 1)
        core = model.model
        features = core.generation_aligner(core.generation_embeddings(ids)).flatten(0, 1)
        plain = janus.build(CONFIG, seed=0)
        plain.model.aligner.forward = lambda hidden_states: features[None]
        _, expected = plain(batch, ONES)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert torch.equal(single.image_features(model, vq, batch.pixels, batch=1).flatten(0, 1), features)


def test_other_pixels_are_seen(model):
    rng = np.random.default_rng(0)
    batch = batch_of(tiny.understanding_sample(rng))
    with torch.no_grad():
        losses = [model(replace(batch, pixels=pixels), ONES)[1][0] for pixels in (batch.pixels, 255 - batch.pixels)]
    assert losses[0] != losses[1]


def test_nothing_but_the_embedding_of_images_changes(vq):
    rng = np.random.default_rng(0)
    batch = batch_of(tiny.understanding_sample(rng), tiny.generation_sample(rng))
    read = single.read_by_vq(batch, vq)
    assert len(read.pixel_positions) == 0 and len(read.pixels) == 1
    assert sorted(read.vq_positions.tolist()) == sorted([*batch.vq_positions.tolist(), *batch.pixel_positions.tolist()])
    for name in ("input_ids", "position_ids", "text_labels", "text_rows", "image_labels", "image_rows"):
        assert torch.equal(getattr(read, name), getattr(batch, name))
    drawn = batch_of(tiny.generation_sample(rng))
    assert single.read_by_vq(drawn, vq) is drawn


def test_every_parameter_gets_a_gradient_though_the_tower_sees_nothing(model):
    batch = batch_of(tiny.understanding_sample(np.random.default_rng(0)))
    model(batch, ONES)[0].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    assert all(not gradient.any() for name, gradient in gradients.items() if name.startswith("model.vision_model."))
    assert gradients["model.generation_embeddings.weight"].any()


def test_flops_are_those_without_a_tower(model):
    batch = batch_of(tiny.understanding_sample(np.random.default_rng(0)))
    reading, parts = Counts.of(batch), tuple(PREFIXES)
    siglip = CONFIG.model_copy(update={"reads_by": "siglip"})
    drawing = replace(reading, images=0, image_labels=reading.images * CONFIG.image_ids)
    heads = model_flops(CONFIG, parts, drawing) - model_flops(CONFIG, parts, reading)
    assert 0 < model_flops(CONFIG, parts, reading) < model_flops(siglip, parts, reading)
    hidden, codes = CONFIG.text.hidden, CONFIG.vq.codes
    assert heads == drawing.image_labels * 2 * 3 * (hidden * hidden + hidden * codes)


def test_ids_and_tokens_of_an_image_must_be_as_many():
    with pytest.raises(
        ValidationError,
        match=r"reads_by=vq needs as many image tokens .* has 4 tokens and 16 ids; set model.vision.patch=4",
    ):
        ModelConfig.model_validate(tiny.MODEL.model_dump() | {"reads_by": "vq"})
