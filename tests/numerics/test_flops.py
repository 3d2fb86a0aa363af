"""Model FLOPs against torch's own counter over the real forward and backward, and against published sizes."""

from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.packed import make_batch
from janus_dist.config.model import ModelConfig, TextConfig, VisionConfig
from janus_dist.estimate.flops import Counts, model_flops, peak_flops
from janus_dist.model import janus
from janus_dist.model import vq as vq_model
from janus_dist.model.parts import PREFIXES, set_trainable
from tests import tiny

MODEL = ModelConfig(
    image_size=32,
    text=TextConfig(vocab=300, hidden=64, layers=3, heads=4, mlp=176),
    vision=VisionConfig(patch=8, hidden=48, layers=2, heads=4, mlp=96),
    vq=tiny.MODEL.vq.model_copy(update={"codes": 128}),
)
ALL = tuple(PREFIXES)
STAGE_1 = ("understanding_adaptor", "generation_embedding", "generation_adaptor", "image_head")
STAGE_2 = tuple(part for part in ALL if part != "vision_tower")


@pytest.fixture(scope="module")
def batch():
    return make_batch(MODEL, {"understanding": 4, "text": 3, "generation": 5}, rows=2, row_tokens=384, seed=0)


def counted(trainable, run) -> tuple[int, int]:
    """(FLOPs, those in products of batches of matrices, which are attention's) of `run` on a model."""
    model = janus.build(MODEL, 0).train()
    set_trainable(model, trainable)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the only kernel that it looks into
        run(model).backward()
    return counter.get_total_flops(), counter.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0)


@pytest.mark.parametrize(
    "trainable", [ALL, STAGE_2, STAGE_1, *((part,) for part in ALL), ("text_head", "image_head")], ids=" ".join
)
def test_the_rule_counts_what_the_model_computes(batch, trainable):
    total, attention = counted(trainable, lambda model: model(batch, torch.ones(3))[0])
    # half of the language model's attention is masked; the tower's, which is not, is counted apart
    seen = vq_model.to_float(batch.pixels).requires_grad_("vision_tower" not in trainable)  # or nothing to go back to
    _, of_tower = counted(ALL, lambda model: model.model.vision_model(pixel_values=seen).last_hidden_state.sum())
    if "vision_tower" not in trainable:
        of_tower //= 3  # forward alone
    expected = total - (attention - of_tower) / 2
    assert model_flops(MODEL, trainable, Counts.of(batch)) == pytest.approx(expected, rel=1e-4)


def test_a_text_token_of_janus_pro_1b_takes_six_flops_a_parameter():
    """Llama's body with its embedding has 1,442.9 million parameters and the text head as many as the embedding."""
    recipe = yaml.safe_load((Path(__file__).parents[2] / "jobs/recipes/janus-pro-1b/base.yaml").read_text())
    one = Counts(tokens=1, squared_lengths=0, images=0, text_labels=1, image_labels=0)
    found = model_flops(ModelConfig.model_validate(recipe["model"]), ALL, one)
    assert found == pytest.approx(6 * 1_442.9e6, rel=1e-3)


def test_what_a_batch_holds():
    batch = tiny.batch(0)
    lengths = [11, 11, 16, 16, 22, 22]  # text; 8 words, 4 special ids and 4 image tokens; 4 words, 2 ids and 16 VQ ids
    assert Counts.of(batch) == Counts(
        sum(lengths), sum(length**2 for length in lengths), images=2, text_labels=2 * (10 + 9), image_labels=2 * 16
    )
    assert Counts.of(tiny.empty_batch()) == Counts(1, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
    ],
)
def test_peaks_of_devices(name, tera):
    assert peak_flops(name) == tera * 1e12


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H20", "Tesla T4", ""])
def test_no_peak_is_made_up(name):
    assert peak_flops(name) is None
