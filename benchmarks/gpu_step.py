"""One GPU: speed, MFU and memory of a training step of a preset, and two of its parts alone.

    python benchmarks/gpu_step.py --json [--preset janus-pro-1b] [--row-tokens 4096] [--micro-rows 2]
        [--checkpointing 0] [--stage 2]

Beside torch and transformers it needs pydantic and pyyaml; no Ray, no DeepSpeed, no data. The step is forward, backward
and fused AdamW over float32 master weights, of one micro-step, in bfloat16, with the parts that learn in the preset's
stage and batches of its mixture (benchmarks/packed.py), without communication and loading. It says how fast a rank can
be at best; benchmarks/train_step.py says what plan, loader and ZeRO-3 take of that.

- `step`: tokens a second, TFLOP/s and MFU by the rule of janus_dist/estimate/flops.py, seconds of both halves, memory.
- `attention`: over the documents of a batch (`packed`), beside causal attention over its whole rows (`rows`), which is
  more arithmetic. FLOPs of each by the same rule.
- `loss`: of the text head over a batch's text labels: in chunks, with Liger's kernel where it is installed and without,
  beside torch's cross-entropy of all logits.

Predicted before measuring, on an H100 SXM with the defaults: MFU 0.35, which is 42,000 tokens a second, and 45 GiB;
attention over documents in a quarter of the time of rows; with Liger's kernel the loss takes 0.7 of its time without.
"""

import os
import sys

if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):  # noqa: PTH100, PTH120 - pathlib is not loaded yet
    sys.path[0] = os.path.dirname(sys.path[0])  # noqa: PTH120 - or tokenize.py here would be the standard library's

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
import transformers
import yaml
from torch import Tensor, nn

from benchmarks.packed import make_batch
from janus_dist.batch import Batch
from janus_dist.config.model import ModelConfig
from janus_dist.config.shipped import RECIPES
from janus_dist.config.streams import STREAMS, Stream
from janus_dist.config.train import OptimConfig, Part
from janus_dist.estimate.flops import Counts, model_flops, peak_flops
from janus_dist.model import janus, losses
from janus_dist.model.attention import packed_attention
from janus_dist.model.parts import set_trainable

OPTIM = OptimConfig(lr=1e-4)
WARM_RUNS = 3
BATCHES = 4
"""Different ones that steps take in turn."""


@dataclass(frozen=True)
class Preset:
    """What a published recipe says of a stage."""

    model: ModelConfig
    trainable: tuple[Part, ...]
    shares: dict[Stream, float]
    """Of the streams in all tokens; they need not add up to 1."""

    @classmethod
    def read(cls, name: str, stage: int) -> "Preset":
        base, own = (
            yaml.safe_load((RECIPES / name / f"{file}.yaml").read_text(encoding="utf-8"))
            for file in ("base", f"stage{stage}")
        )
        shares: dict[Stream, float] = {stream: float(own["mix"][stream]) for stream in STREAMS}
        return cls(ModelConfig.model_validate(base["model"]), tuple(own["train"]["trainable"]), shares)


class Training:
    """A model whose steps are forward, backward and AdamW over float32 master weights, on one device."""

    def __init__(
        self,
        model: ModelConfig,
        trainable: Sequence[Part],
        checkpointing: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.model, self.device = janus.on_meta(model), device
        set_trainable(self.model, trainable)
        janus.checkpoint_activations(self.model, checkpointing)
        self.weights: list[nn.Parameter] = []
        self.masters: list[Tensor] = []
        for module in janus.made(self.model, 0, device):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
                if parameter.requires_grad:
                    self.weights.append(parameter)
                    # of what was rounded, as under ZeRO-3
                    self.masters.append(parameter.detach().to(torch.float32, copy=True).requires_grad_())
        self.model.train()
        self.adamw = torch.optim.AdamW(
            self.masters, lr=OPTIM.lr, betas=OPTIM.betas, eps=OPTIM.eps, weight_decay=OPTIM.weight_decay, fused=True
        )

    def forward_backward(self, batch: Batch) -> Tensor:
        """The mean loss over the labels of a batch that is on the device."""
        labels = len(batch.text_labels) + len(batch.image_labels)
        loss, _ = self.model(batch, torch.full((len(STREAMS),), 1 / labels, device=self.device))
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        """Take the step that the gradients say."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            assert weight.grad is not None, "every part that learns has a gradient in every micro-step"
            master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.masters, OPTIM.grad_clip)
        self.adamw.step()
        self.adamw.zero_grad()
        with torch.no_grad():
            for weight, master in zip(self.weights, self.masters, strict=True):
                weight.copy_(master)


def moment(device: torch.device) -> Any:
    """A mark in a device's line of work, for `seconds_between`."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(before: Any, after: Any) -> float:
    """Of two moments."""
    if isinstance(before, float):
        return after - before
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def seconds_of(run: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Median seconds of `run`."""
    for _ in range(WARM_RUNS):
        run()
    times = []
    for _ in range(rounds):
        began = moment(device)
        run()
        times.append((began, moment(device)))
    return statistics.median(seconds_between(*pair) for pair in times)


def peak_gib(device: torch.device, run: Callable[[], Any]) -> float | None:
    """GiB that `run` has at its worst, beside what was there before; None where there is no GPU."""
    if device.type != "cuda":
        run()
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**30


def measure_step(
    model: ModelConfig,
    trainable: Sequence[Part],
    batches: Sequence[Batch],
    checkpointing: int,
    dtype: torch.dtype,
    device: torch.device,
    steps: int,
) -> dict[str, Any]:
    """Figures of steps that take `batches` in turn."""
    training = Training(model, trainable, checkpointing, dtype, device)
    marks: list[list[Any]] = []

    def step(batch: Batch) -> Tensor:
        marks.append([moment(device)])
        loss = training.forward_backward(batch.to(device))
        marks[-1].append(moment(device))
        training.update()
        marks[-1].append(moment(device))
        return loss

    first, *_ = (step(batch).item() for batch in islice(cycle(batches), WARM_RUNS))
    marks.clear()
    at_rest = torch.cuda.memory_allocated(device) / 2**30 if device.type == "cuda" else None
    taken = [*islice(cycle(batches), steps)]
    at_work = peak_gib(device, lambda: [step(batch) for batch in taken])
    halves = [(seconds_between(*mark[:2]), seconds_between(*mark[1:])) for mark in marks]
    flops = [model_flops(model, trainable, Counts.of(batch)) for batch in taken]
    rates = [batch.num_tokens / sum(both) for batch, both in zip(taken, halves, strict=True)]
    whole = sum(flops) / sum(map(sum, halves))
    passes = sum(flops) / sum(one for one, _ in halves)
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {
        "tokens_per_s": statistics.median(rates),
        "tokens_per_s_range": [min(rates), max(rates)],
        "tflops": whole / 1e12,
        "mfu": whole / peak if peak else None,
        "mfu_forward_backward": passes / peak if peak else None,
        "forward_backward_s": statistics.median(one for one, _ in halves),
        "update_s": statistics.median(other for _, other in halves),
        "gib_at_rest": at_rest,
        "gib_at_worst": at_rest + at_work if at_rest is not None and at_work is not None else None,
        "first_loss": first,
        "tokens": statistics.mean(batch.num_tokens for batch in taken),
        "steps": steps,
    }


def measure_attention(
    model: ModelConfig, batch: Batch, row_tokens: int, dtype: torch.dtype, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Forward and backward of a layer's attention over a batch's documents, and over its tokens in whole rows."""
    heads, width = model.text.heads, model.text.hidden // model.text.heads
    rows = -(-batch.num_tokens // row_tokens)
    module, lengths = nn.Identity(), batch.document_lengths

    def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return packed_attention(module, q, k, v, None, document_lengths=lengths)[0]

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    shapes: dict[str, tuple[Any, tuple[int, ...], int]] = {
        "packed": (packed, (1, heads, batch.num_tokens, width), Counts.of(batch).squared_lengths),
        "rows": (whole, (rows, heads, row_tokens, width), rows * row_tokens**2),
    }
    found: dict[str, Any] = {}
    for name, (attend, shape, squared_lengths) in shapes.items():
        inputs = [torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3)]

        def both(attend: Any = attend, inputs: list[Tensor] = inputs) -> None:
            out = attend(*inputs)
            torch.autograd.grad(out, inputs, out.detach())

        with torch.no_grad():
            forward_s = seconds_of(lambda attend=attend, inputs=inputs: attend(*inputs), device, rounds)
        both_s = seconds_of(both, device, rounds)
        flops = 2 * model.text.hidden * squared_lengths
        found[name] = {
            "forward_ms": 1e3 * forward_s,
            "forward_backward_ms": 1e3 * both_s,
            "forward_tflops": flops / forward_s / 1e12,
            "forward_backward_tflops": 3 * flops / both_s / 1e12,
        }
    return found


def measure_loss(
    model: ModelConfig, rows: int, dtype: torch.dtype, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Forward and backward of the text head's loss over so many labelled rows, three ways."""
    hidden = torch.randn(rows, model.text.hidden, dtype=dtype, device=device, requires_grad=True)
    weight = torch.randn(model.text.vocab, model.text.hidden, device=device).mul_(model.init_std).to(dtype)
    weight.requires_grad_()
    labels = torch.randint(model.text.vocab, (rows,), device=device)
    factors = torch.full((rows,), 1 / rows, device=device)

    def chunked() -> Tensor:
        return losses.linear_cross_entropy(hidden, weight, None, labels, factors)[0]

    def full() -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), labels)

    liger = losses.cross_entropy_forward
    ways: Mapping[str, tuple[Any, Callable[[], Tensor]]] = {
        "without_liger": (None, chunked),
        **({"with_liger": (liger, chunked)} if liger else {}),
        "all_logits": (None, full),
    }
    found: dict[str, Any] = {"rows": rows, "with_liger": None}
    try:
        for name, (kernel, loss) in ways.items():
            losses.cross_entropy_forward = kernel

            def both(loss: Callable[[], Tensor] = loss) -> None:
                torch.autograd.grad(loss(), (hidden, weight))

            milliseconds = 1e3 * seconds_of(both, device, rounds)
            with torch.no_grad():
                value = loss().item()
            found[name] = {"forward_backward_ms": milliseconds, "gib": peak_gib(device, both), "loss": value}
    finally:
        losses.cross_entropy_forward = liger
    return found


def measure(
    preset: Preset, given: argparse.Namespace, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    """All figures; a step that finds no room says so in its place."""
    model = preset.model
    batches = [
        make_batch(model, preset.shares, given.micro_rows, given.row_tokens, seed=number) for number in range(BATCHES)
    ]
    found: dict[str, Any] = {
        "attention": measure_attention(model, batches[0], given.row_tokens, dtype, device, given.rounds),
        "loss": measure_loss(model, len(batches[0].text_labels), dtype, device, given.rounds),
    }
    try:
        found["step"] = measure_step(model, preset.trainable, batches, given.checkpointing, dtype, device, given.steps)
    except torch.OutOfMemoryError as error:
        found["step"] = {"out_of_memory": str(error).split(". ")[0]}
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    presets = sorted(path.name for path in RECIPES.iterdir())
    parser.add_argument("--preset", choices=presets, default="janus-pro-1b")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), default=2, help="whose mixture and parts are taken")
    parser.add_argument("--row-tokens", type=int, default=4_096)
    parser.add_argument("--micro-rows", type=int, default=2)
    parser.add_argument("--checkpointing", type=int, default=0, help="as engine.activation_checkpointing")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=20, help="of attention and loss alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args(arguments)


def main() -> None:
    given = parse()
    found: dict[str, Any] = {"benchmark": "gpu_step", "gpu": None}
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        found["gpu"] = torch.cuda.get_device_name(device)
        found |= {"torch": torch.__version__, "transformers": transformers.__version__, **vars(given)}
        found |= measure(Preset.read(given.preset, given.stage), given, device)
        for key, value in found.items():
            print(f"{key:20} {value}")
    else:
        print("no CUDA device here: nothing was measured")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
