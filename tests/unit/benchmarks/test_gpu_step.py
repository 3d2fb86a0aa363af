"""The benchmark of one GPU, on a CPU and a tiny model: what it steps is AdamW, what it says adds up."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks import gpu_step
from benchmarks.gpu_step import Preset, Training
from benchmarks.packed import LEAST_WORDS, make_batch
from janus_dist.config.streams import STREAMS
from janus_dist.estimate.flops import Counts, model_flops
from janus_dist.model import losses
from janus_dist.model.parts import PREFIXES
from tests import tiny

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
SHARES = {"understanding": 2.0, "text": 3.0, "generation": 5.0}
PRESET = Preset(tiny.MODEL, tuple(part for part in PREFIXES if part != "vision_tower"), SHARES)


@pytest.mark.parametrize("without", [(), ("text",), ("understanding", "generation")])
def test_batches_are_full_rows_in_the_asked_proportion(without):
    shares = {stream: 0.0 if stream in without else share for stream, share in SHARES.items()}
    batch = make_batch(tiny.MODEL, shares, rows=40, row_tokens=96, seed=1)
    images, drawn = len(batch.pixel_positions) // tiny.MODEL.image_tokens, len(batch.vq_positions)
    lost = 40 * 96 - batch.num_tokens
    assert 0 <= lost <= 40 * (LEAST_WORDS if shares["text"] else 96 // 4 + tiny.MODEL.image_ids + 4)
    assert (images > 0, drawn > 0) == (shares["understanding"] > 0, shares["generation"] > 0)
    ends = torch.tensor(batch.document_lengths).cumsum(0)
    document = torch.bucketize(torch.arange(batch.num_tokens), ends, right=True)
    assert torch.equal(batch.position_ids == 0, torch.diff(document, prepend=torch.tensor([-1])) > 0)
    if drawn:
        assert torch.equal(batch.image_labels, batch.vq_ids)
        assert torch.equal(batch.image_rows + 1, batch.vq_positions)
        assert torch.equal(document[batch.image_rows], document[batch.vq_positions])
        assert drawn % tiny.MODEL.image_ids == 0
    if shares["text"]:
        predicted = batch.text_rows + 1
        assert torch.equal(document[batch.text_rows], document[predicted])
        assert torch.equal(batch.text_labels, batch.input_ids[predicted])
        assert not torch.isin(predicted, torch.cat([batch.pixel_positions, batch.vq_positions])).any()


def test_shares_are_of_tokens():
    batch = make_batch(tiny.MODEL, {"understanding": 0.0, "text": 1.0, "generation": 3.0}, 200, 96, seed=0)
    text = (batch.text_streams == STREAMS.index("text")).sum().item()
    assert 1 - text / batch.num_tokens == pytest.approx(0.75, abs=0.05)  # a text has a label less than tokens


def test_presets_are_the_recipes():
    assert {stream: Preset.read("janus-pro-1b", 1).shares[stream] for stream in STREAMS} == {
        "understanding": 1, "text": 0, "generation": 3,
    }  # fmt: skip
    seven = Preset.read("janus-pro-7b", 3)
    assert seven.model.text.hidden == 4096 and set(seven.trainable) == set(PREFIXES)


def test_a_step_is_adamw_on_float32_masters():
    batch = make_batch(tiny.MODEL, SHARES, 2, 96, seed=0)
    training = Training(tiny.MODEL, PRESET.trainable, 0, torch.float32, CPU)
    frozen = {name: p.clone() for name, p in training.model.named_parameters() if not p.requires_grad}
    assert frozen and all(name.startswith(PREFIXES["vision_tower"]) for name in frozen)
    names = [name for name, p in training.model.named_parameters() if p.requires_grad]
    weights = dict(training.model.named_parameters())
    before = {name: weights[name].detach().double() for name in names}
    first = training.forward_backward(batch)
    gradients = {name: weights[name].grad.double() for name in names}
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
    training.update()
    lr, eps = gpu_step.OPTIM.lr, gpu_step.OPTIM.eps
    for name in names:
        clipped = gradients[name] * min(1.0, gpu_step.OPTIM.grad_clip / norm)
        moved = lr * clipped / (clipped.abs() + eps)  # both moments, corrected for the first step
        assert torch.allclose(weights[name].double(), before[name] - moved, rtol=0, atol=1e-6), name
        assert weights[name].grad is None
    assert all(torch.equal(weights[name], value) for name, value in frozen.items())
    assert training.forward_backward(batch) < first


def test_weights_are_rounded_masters_also_with_checkpointing():
    batch = make_batch(tiny.MODEL, SHARES, 1, 96, seed=0)
    found = []
    for every in (0, 1):
        training = Training(tiny.MODEL, PRESET.trainable, every, torch.bfloat16, CPU)
        found.append(training.forward_backward(batch).item())
        training.update()
        for weight, master in zip(training.weights, training.masters, strict=True):
            assert master.dtype == torch.float32 and torch.equal(weight, master.bfloat16())
    assert found[0] == found[1] == pytest.approx(math.log(tiny.MODEL.text.vocab), rel=0.2)


def test_figures(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 20 * tiny.MODEL.text.vocab)
    given = gpu_step.parse(["--steps=3", "--rounds=2", "--micro-rows=2", "--row-tokens=96"])
    found = gpu_step.measure(PRESET, given, CPU, torch.float32)
    json.dumps(found)
    batch = make_batch(tiny.MODEL, SHARES, 2, 96, seed=0)
    step, attention, loss = found["step"], found["attention"], found["loss"]
    a_step = model_flops(tiny.MODEL, PRESET.trainable, Counts.of(batch)) / 1e12
    seconds = step["forward_backward_s"] + step["update_s"]
    assert a_step / seconds / 10 < step["tflops"] < 10 * a_step / seconds  # batches differ, and so does the machine
    assert step["tokens_per_s_range"][0] <= step["tokens_per_s"] <= step["tokens_per_s_range"][1]
    assert step["mfu"] is step["gib_at_worst"] is None
    for one in attention.values():
        assert one["forward_tflops"] > 0 and one["forward_backward_ms"] > 0
    assert loss["rows"] == len(batch.text_labels) and loss["with_liger"] is None
    assert loss["without_liger"]["loss"] == pytest.approx(loss["all_logits"]["loss"], rel=1e-5)


def test_attention_alone_is_that_of_the_model():
    """What is timed on whole rows is what the packed one gives for documents that are rows."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 8, 16)
    lined = [x.transpose(0, 1).flatten(1, 2)[None] for x in (q, k, v)]
    packed, _ = gpu_step.packed_attention(torch.nn.Identity(), *lined, None, document_lengths=(8, 8))
    whole = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(packed.view(2, 8, 4, 16).transpose(1, 2), whole, atol=1e-6)


def test_without_room_the_rest_is_said(monkeypatch):
    def no_room(*given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 is full")

    monkeypatch.setattr(gpu_step, "measure_step", no_room)
    given = gpu_step.parse(["--rounds=1", "--row-tokens=96"])
    found = gpu_step.measure(PRESET, given, CPU, torch.float32)
    assert found["step"] == {"out_of_memory": "CUDA out of memory"} and found["attention"]["packed"]


BARE = """
import os, runpy, sys
for name in ("ray", "deepspeed", "simplejpeg", "s3fs", "fsspec", "wandb", "webdataset", "typer"):
    sys.modules[name] = None  # as if it were not installed
path = os.path.abspath("benchmarks/gpu_step.py")
sys.argv, sys.path[0] = [path, "--json"], os.path.dirname(path)
runpy.run_path(path, run_name="__main__")
"""


def test_it_runs_where_little_is_installed_and_there_is_no_gpu():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", BARE], cwd=ROOT, env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == {"benchmark": "gpu_step", "gpu": None}
