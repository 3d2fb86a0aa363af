"""The whole model on a GPU against the same on a CPU: loss and gradients, steps, sampling."""

import pytest
import torch

from benchmarks import gpu_step
from benchmarks.gpu_step import Preset, Training
from benchmarks.packed import make_batch
from janus_dist.batch import Batch
from janus_dist.config.model import ModelConfig, TextConfig, VisionConfig, VqConfig
from janus_dist.config.train import EngineConfig
from janus_dist.engine.world import World
from janus_dist.model import janus, sample
from janus_dist.model.parts import PREFIXES
from janus_dist.model.sample import TokenChoice
from tests.ranks import run_ranks

MODEL = ModelConfig(
    image_size=32,
    init_std=0.05,
    text=TextConfig(vocab=500, hidden=128, layers=3, heads=2, mlp=352),
    vision=VisionConfig(patch=8, hidden=64, layers=2, heads=2, mlp=128),
    vq=VqConfig(codes=200, channel_multipliers=(1, 1, 2, 2)),
)
SHARES = {"understanding": 3.0, "text": 3.0, "generation": 3.0}
PARTS = tuple(PREFIXES)


@pytest.fixture
def batch() -> Batch:
    return make_batch(MODEL, SHARES, rows=2, row_tokens=256, seed=0)


def learned(model: janus.Janus, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, gradients) of a model, on the CPU."""
    model.zero_grad()
    factors = torch.full((3,), 1e-3, device=model.device)
    loss, _ = model(batch.to(model.device), factors)
    loss.backward()
    return loss.item(), {name: p.grad.cpu().double() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("every", [0, 1])
def test_loss_and_gradients_in_bfloat16(cuda, batch, every):
    model = janus.build(MODEL, 0).train()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    janus.checkpoint_activations(model, every)
    wanted_loss, wanted = learned(model, batch)
    loss, found = learned(model.to(cuda), batch)  # pyright: ignore[reportArgumentType]
    assert loss == pytest.approx(wanted_loss, rel=1e-2)
    assert found.keys() == wanted.keys() == dict(model.named_parameters()).keys()
    whole, off = 0.0, 0.0
    for name in wanted:
        whole, off = whole + wanted[name].square().sum(), off + (found[name] - wanted[name]).square().sum()
    assert off.sqrt() < 0.05 * whole.sqrt()


@pytest.mark.parametrize("trainable", [PARTS, ("understanding_adaptor", "image_head")])
def test_steps_in_bfloat16_learn(cuda, monkeypatch, batch, trainable):
    monkeypatch.setattr(gpu_step, "OPTIM", gpu_step.OPTIM.model_copy(update={"lr": 1e-3}))
    training = Training(MODEL, trainable, 1, torch.bfloat16, cuda)
    frozen = {name: p.clone() for name, p in training.model.named_parameters() if not p.requires_grad}
    on_gpu, losses = batch.to(cuda), []
    for _ in range(20):
        losses.append(training.forward_backward(on_gpu).item())
        training.update()
    assert losses[-1] < 0.97 * losses[0]
    weights = dict(training.model.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in frozen.items())


def losses_of_steps(device: torch.device, batch: Batch) -> tuple[list[float], list[float]]:
    """Mean losses of three steps in bfloat16, under ZeRO-3 and without."""
    from janus_dist.engine.zero import ZeroEngine

    bare, model = Training(MODEL, PARTS, 0, torch.bfloat16, device), janus.on_meta(MODEL).train()
    made, settings = janus.made(model, 0, device), EngineConfig(dtype="bfloat16")
    engine = ZeroEngine(model, made, settings, gpu_step.OPTIM, World(0, 1, device))
    labels, on_device = len(batch.text_labels) + len(batch.image_labels), batch.to(device)
    factors, under_zero, without = torch.full((3,), 1 / labels, device=device), [], []
    for _ in range(3):
        under_zero.append(engine.micro_step(on_device, factors, last=True).sum().item() / labels)
        engine.step(gpu_step.OPTIM.lr)
        without.append(bare.forward_backward(on_device).item())
        bare.update()
    return under_zero, without


@pytest.mark.parametrize("kind", [pytest.param("cpu", marks=pytest.mark.slow), "cuda"])
def test_steps_under_zero_are_those_without_it(request, kind, batch, tmp_path):
    pytest.importorskip("deepspeed")
    device = request.getfixturevalue("cuda") if kind == "cuda" else torch.device("cpu")
    backend = "nccl" if kind == "cuda" else "gloo"
    ((under_zero, without),) = run_ranks(losses_of_steps, 1, tmp_path, device, batch, backend=backend)
    assert under_zero == pytest.approx(without, rel=2e-3) and under_zero[-1] < under_zero[0]


@pytest.mark.parametrize("choice", [TokenChoice(), TokenChoice(1.0), TokenChoice(0.7, top_k=20)])
def test_ids_are_drawn_as_on_a_cpu(cuda, choice):
    logits, chances = 3 * torch.randn(64, 1_000), torch.rand(64, dtype=torch.float64)
    wanted = sample.choose(logits, choice, chances)
    assert torch.equal(sample.choose(logits.to(cuda), choice, chances).cpu(), wanted)


def test_images_and_answers_are_those_of_a_cpu(cuda):
    model = janus.build(MODEL.model_copy(update={"init_std": 0.3}), 0).eval()  # so that ids differ
    model.model.language_model.set_attn_implementation("sdpa")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    prompts = [[1, 2, 9, 10, 3], [1, 2, 11, 3], [1, 2, 12, 13, 3]]  # 2 stands for an image in two of them

    def found() -> tuple[torch.Tensor, list[list[int]], torch.Tensor]:
        features = sample.image_features(model, images, batch=1)
        answers = sample.answer(model, prompts[:2], features, [[1], [0]], 2, 0, max_new_tokens=6, batch=2)
        drawn = sample.draw(model, prompts, MODEL.image_ids, 4, 2.0, TokenChoice(1.0), [7, 8, 9], batch=2)
        return features.cpu(), answers, drawn

    features, answers, drawn = found()
    model.to(cuda)  # pyright: ignore[reportArgumentType]
    on_gpu = found()
    assert torch.allclose(on_gpu[0], features, rtol=1e-3, atol=1e-4)
    assert on_gpu[1] == answers and any(answers) and torch.equal(on_gpu[2], drawn)


def test_the_benchmark_measures(cuda):
    given = gpu_step.parse(["--steps=2", "--rounds=2", "--micro-rows=1", "--row-tokens=256"])
    found = gpu_step.measure(Preset(MODEL, PARTS, SHARES), given, cuda)
    step = found["step"]
    assert step["gib_at_worst"] > step["gib_at_rest"] > 0 and step["tokens_per_s"] > 0
    assert found["loss"]["without_liger"]["loss"] == pytest.approx(found["loss"]["all_logits"]["loss"], rel=1e-2)
    assert found["loss"]["all_logits"]["gib"] > 0 and found["attention"]["packed"]["forward_ms"] > 0
