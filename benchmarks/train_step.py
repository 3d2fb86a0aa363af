"""A training step beside what one would write by hand, and beside bare PyTorch.

    .venv/bin/python benchmarks/train_step.py --json [--world 2]

Three contenders on the same model, samples and cores, in turns within one run:

- `ours`: the step as the trainer takes it: plan and loader (its threads on the same cores), packed rows of three
  streams, ZeRO-3, AdamW, metrics to a file.
- `handmade`: transformers' Janus under the same ZeRO-3, as benchmarks/handmade.py says.
- `bare`: our model's forward and backward on batches that are there already, gradients clipped, float32 master weights
  and AdamW by torch; no engine, loader or metrics. In each rank by itself, without communication.

Useful tokens are those of documents; padding is none. The model has Janus's proportions at 45 million parameters:
32,768 text tokens, 16,384 image ids, images of 192 pixels that are 144 tokens to read and 144 ids to draw. Lengths are
log-normal as in benchmarks/samples.py. A step is two
micro-steps of two rows of 2,048 tokens a rank.

Predicted before measuring: `ratio_handmade` 3 (padding 1.7, full logits 1.5, SDPA in bfloat16 1.2 on a CPU),
`ratio_bare` 0.9 with one rank, 0.75 with two, whose ZeRO-3 moves 45 million parameters three times a step over gloo.
"""

import os
import sys

if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):  # noqa: PTH100, PTH120 - pathlib is not loaded yet
    sys.path[0] = os.path.dirname(sys.path[0])  # noqa: PTH120 - or tokenize.py here would be the standard library's

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from PIL import Image

from benchmarks.handmade import HandmadeTraining, Padded, in_turn, padded
from janus_dist.batch import Batch
from janus_dist.config.data import BatchConfig
from janus_dist.config.mix import Lane, MixConfig
from janus_dist.config.model import ModelConfig, TextConfig, VisionConfig, VqConfig
from janus_dist.config.streams import STREAMS, Stream
from janus_dist.config.train import ClusterConfig, EngineConfig, OptimConfig, TrainConfig
from janus_dist.data import images
from janus_dist.data.collate import DocumentFormat
from janus_dist.data.loader import Loader, RankStep
from janus_dist.data.manifest import VERSION, Manifest, ShardSet, ShardTable
from janus_dist.data.plan import Plan
from janus_dist.data.sample import GenerationSample, Sample, TextSample, UnderstandingSample
from janus_dist.data.shard import write_shard
from janus_dist.engine.world import join
from janus_dist.engine.zero import ZeroEngine
from janus_dist.model import janus, native
from janus_dist.monitor.sinks import JsonlSink
from janus_dist.train.step import train_step

MID = ModelConfig(
    image_size=192,
    text=TextConfig(vocab=32_768, hidden=384, layers=6, heads=6, mlp=1_056),
    vision=VisionConfig(patch=16, hidden=256, layers=4, heads=4, mlp=1_024),
    vq=VqConfig(),
)
TINY = ModelConfig(
    image_size=32,
    text=TextConfig(vocab=512, hidden=32, layers=2, heads=2, mlp=64),
    vision=VisionConfig(patch=16, hidden=32, layers=1, heads=2, mlp=64),
    vq=VqConfig(codes=64),
)
MIX = MixConfig(understanding=2, text=3, generation=5)
PAD, BOS, EOS, BOI, EOI, IMAGE, FIRST_WORD = 0, 1, 2, 3, 4, 5, 8
LENGTHS = {"understanding": (80, 0.6), "text": (600, 1.1), "generation": (45, 0.6)}  # median, sigma: samples.py
SAMPLES = 240
FILL = 0.95
OPTIM = OptimConfig(lr=1e-4, weight_decay=0.1)
TRAIN = TrainConfig(steps=10**6, trainable=("language_model",))
CONTENDERS = ("ours", "handmade", "bare")
WARM_STEPS = 2


def make_samples(model: ModelConfig, row_tokens: int) -> dict[Stream, list[Sample]]:
    """Samples of each stream, the same for a model."""
    rng = np.random.default_rng(0)

    def words(stream: Stream, most: int) -> list[int]:
        median, sigma = LENGTHS[stream]
        number = int(np.clip(round(rng.lognormal(np.log(median), sigma)), 4, most))
        return rng.integers(FIRST_WORD, model.text.vocab, number).tolist()

    def understanding() -> Sample:
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        photo = Image.fromarray(pixels).resize((model.image_size, model.image_size), Image.Resampling.BICUBIC)
        ids = [BOS, BOI, IMAGE, EOI, *words("understanding", row_tokens // 4), EOS]
        return UnderstandingSample(np.array(ids, np.uint32), np.array([[4, len(ids)]]), [images.encode(photo, 95)])

    def text() -> Sample:
        return TextSample(np.array([BOS, *words("text", row_tokens - 2), EOS], np.uint32))

    def generation() -> Sample:
        vq_ids = rng.integers(0, model.vq.codes, model.image_ids, dtype=np.uint16)
        return GenerationSample(np.array([BOS, *words("generation", row_tokens // 4), BOI], np.uint32), vq_ids)

    make: dict[Stream, Callable[[], Sample]] = {"understanding": understanding, "text": text, "generation": generation}
    return {stream: [make[stream]() for _ in range(SAMPLES)] for stream in STREAMS}


def write_shards(samples: dict[Stream, list[Sample]], model: ModelConfig, folder: Path) -> None:
    for stream, found in samples.items():
        keyed = [(f"{number:05d}", sample) for number, sample in enumerate(found)]
        entry = write_shard(folder / stream, "shard-00000", keyed, model, (BOI, IMAGE, EOI))
        tokens, sizes = entry.tokens, (model.image_size, model.image_tokens, model.image_ids)
        table = ShardTable.of([entry])
        Manifest(VERSION, stream, len(found), tokens, 0, *sizes, "", None, {}, table).save(folder / stream)


class Ours:
    """The trainer's step, without console, checkpoints and resuming."""

    def __init__(self, of: "Setting"):
        plan = of.plan(of.world.size)
        self.steps = Loader(plan, of.form, of.world.rank, of.world.size, threads=1).steps(0, 10**6)
        built = janus.on_meta(of.model)
        self.engine = ZeroEngine(built, janus.made(built, 0, of.world.device), of.engine, OPTIM, of.world)
        self.engine.module.train()
        self.sink = JsonlSink(of.folder / f"metrics-{of.world.rank}.jsonl", 0, print)
        self.number = 0
        self.seconds: dict[str, float] = dict.fromkeys(("data", "forward", "backward", "optimizer"), 0.0)
        deep: Any = self.engine.deepspeed
        for name, method in (("forward", "forward"), ("backward", "backward"), ("optimizer", "step")):
            setattr(deep, method, self.timed(name, getattr(deep, method)))

    def timed(self, name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return do(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return run

    def step(self) -> int:
        step: RankStep = self.timed("data", lambda: next(self.steps))()
        outcome = train_step(self.engine, step, TRAIN, OPTIM.lr)
        self.number += 1
        self.sink.record({"step": self.number, "time": time.time(), "loss/all": outcome.loss})
        return sum(batch.num_tokens for batch in step.batches)


class Hand:
    """Handmade batches in turn."""

    def __init__(self, of: "Setting"):
        config = janus.transformers_config(of.model)
        config.image_token_id = IMAGE
        self.training = HandmadeTraining(config, of.engine, OPTIM, of.world)
        self.batches = cycle(list(handmade_batches(of, 20)))
        self.micro_steps, self.seconds = of.micro_steps, dict[str, float]()

    def step(self) -> int:
        batches = list(islice(self.batches, self.micro_steps))
        self.training.step(batches)
        return sum(batch.useful_tokens for batch in batches)


class Bare:
    """Our model and torch, nothing else."""

    def __init__(self, of: "Setting"):
        self.steps = cycle(of.batches)
        self.model = janus.build(of.model, 0).train()
        dtype = getattr(torch, of.engine.dtype)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype)
        self.masters = [parameter.detach().float().requires_grad_() for parameter in self.model.parameters()]
        self.adamw = torch.optim.AdamW(
            self.masters, lr=OPTIM.lr, betas=OPTIM.betas, weight_decay=OPTIM.weight_decay, fused=True
        )
        self.seconds: dict[str, float] = dict.fromkeys(("forward", "backward", "optimizer"), 0.0)

    def step(self) -> int:
        batches = next(self.steps)
        for batch in batches:
            times = [time.perf_counter()]
            loss, _ = self.model(batch, torch.full((len(STREAMS),), 1e-4))
            times.append(time.perf_counter())
            loss.backward()
            times.append(time.perf_counter())
            self.add("forward", times[1] - times[0])
            self.add("backward", times[2] - times[1])
        began = time.perf_counter()
        for master, parameter in zip(self.masters, self.model.parameters(), strict=True):
            master.grad = parameter.grad.float() if parameter.grad is not None else None
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, OPTIM.grad_clip)
        self.adamw.step()
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.model.parameters(), strict=True):
                parameter.copy_(master)
        self.add("optimizer", time.perf_counter() - began)
        return sum(batch.num_tokens for batch in batches)

    def add(self, what: str, seconds: float) -> None:
        self.seconds[what] += seconds


class Setting:
    """What all contenders are given, in one rank."""

    def __init__(self, given: argparse.Namespace, folder: Path):
        self.model = {"mid": MID, "tiny": TINY}[given.model]
        self.rows, self.row_tokens, self.folder = given.micro_rows, given.row_tokens, folder
        self.micro_steps = given.micro_steps
        self.world = join(ClusterConfig(workers=given.world), timeout_s=600)
        self.engine = EngineConfig(
            dtype=native.best_dtype(gpu=False),
            bucket_elements=20_000_000,
            persist_elements=given.persist_elements,
        )
        self.samples = make_samples(self.model, given.row_tokens)

    def plan(self, world: int) -> Plan:
        """Steps of so many micro-steps on `world` ranks."""
        shards = {Lane(stream, stream): ShardSet.open(self.folder / stream) for stream in STREAMS}
        batch = BatchConfig(
            rows=self.rows * self.micro_steps * world,
            row_tokens=self.row_tokens,
            micro_rows=self.rows,
            packing="split_text",
            fill=FILL,
        )
        return Plan(shards, MIX, batch, 0, answers_only=False)

    @property
    def form(self) -> DocumentFormat:
        model = self.model
        return DocumentFormat(PAD, IMAGE, BOI, EOI, model.image_tokens, model.image_size, answers_only=False)

    @property
    def batches(self) -> list[list[Batch]]:
        """The packed batches of some steps of one rank, as the loader makes them."""
        return [step.batches for step in Loader(self.plan(1), self.form, 0, 1, threads=1).steps(0, 10)]


def handmade_batches(of: Setting, number: int) -> Iterator[Padded]:
    """Batches of one stream each, of about the useful tokens of a micro-step; ranks take others."""
    wanted = FILL * of.rows * of.row_tokens
    found = {stream: cycle(samples) for stream, samples in of.samples.items()}
    for stream in in_turn(MIX.shares, number):
        of_image = {"understanding": of.model.image_tokens, "generation": of.model.image_ids, "text": 0}[stream]
        chosen, tokens = [], 0.0
        for sample in islice(found[stream], of.world.rank, None, of.world.size):
            ids = sample.prompt_ids if isinstance(sample, GenerationSample) else sample.ids
            chosen.append(sample)
            tokens += len(ids) + of_image
            if tokens >= wanted:
                break
        yield padded(chosen, IMAGE, of.model.image_tokens, of.model.image_size)


MAKE: dict[str, Callable[[Setting], Any]] = {"ours": Ours, "handmade": Hand, "bare": Bare}


def run_rank(rank: int, given: argparse.Namespace, names: tuple[str, ...], folder: str, queue: Any) -> None:
    """Rounds of all contenders in turn; the first rank puts what it found into the queue."""
    size = str(given.world)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-{'-'.join(names)}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=given.world)
    of = Setting(given, Path(folder))
    contenders = {name: MAKE[name](of) for name in names}
    for one in contenders.values():
        for _ in range(WARM_STEPS):
            one.step()
        one.seconds = dict.fromkeys(one.seconds, 0.0)
    found: dict[str, Any] = {name: {"tokens_per_s": [], "seconds": {}, "steps": 0} for name in names}
    for _ in range(given.rounds):
        for name, one in contenders.items():
            of.world.barrier()
            began, tokens = time.perf_counter(), 0
            for _ in range(given.steps):
                tokens += one.step()
            of.world.barrier()
            found[name]["tokens_per_s"].append(given.world * tokens / (time.perf_counter() - began))
            found[name]["steps"] += given.steps
    for name, one in contenders.items():
        found[name]["seconds"] = {what: seconds / found[name]["steps"] for what, seconds in one.seconds.items()}
    found["rss_mb"] = peak_rss_mb()
    if rank == 0:
        queue.put(found)
        queue.close()
        queue.join_thread()
    torch.distributed.barrier()
    os._exit(0)


def peak_rss_mb() -> float:
    """Most resident memory of this process so far."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 1024


def found_by(ranks: Sequence[Any], queue: Any) -> dict[str, Any]:
    """What the first of started processes puts into the queue; the end of this one when any of them fails."""
    try:
        while True:
            with suppress(Empty):
                return queue.get(timeout=1)
            if any(rank.exitcode for rank in ranks):
                raise SystemExit("a rank failed: what it said is above")
    finally:
        for rank in ranks:
            rank.join(timeout=30)
            rank.kill()


def run(given: argparse.Namespace, names: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """What the contenders of `names` found, in fresh processes."""
    context = mp.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=run_rank, args=(r, given, names, str(folder), queue)) for r in range(given.world)]
    for rank in ranks:
        rank.start()
    return found_by(ranks, queue)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All figures of one world."""
    with tempfile.TemporaryDirectory() as folder:
        model = {"mid": MID, "tiny": TINY}[given.model]
        write_shards(make_samples(model, given.row_tokens), model, Path(folder))
        found = run(given, CONTENDERS, Path(folder))
        once = argparse.Namespace(**{**vars(given), "rounds": 1, "steps": 2})
        peak = {name: run(once, (name,), Path(folder))["rss_mb"] for name in CONTENDERS}
    pairs = [list(zip(found["ours"]["tokens_per_s"], found[name]["tokens_per_s"], strict=True)) for name in CONTENDERS]
    ratios = {name: [ours / other for ours, other in pair] for name, pair in zip(CONTENDERS, pairs, strict=True)}
    return {
        "world": given.world,
        "dtype": native.best_dtype(gpu=False),
        "micro_step_tokens": given.micro_rows * given.row_tokens,
        "ratio_handmade": statistics.median(ratios["handmade"]),
        "ratio_bare": statistics.median(ratios["bare"]),
        "ratios": {name: [round(ratio, 3) for ratio in ratios[name]] for name in ("handmade", "bare")},
        "tokens_per_s": {name: [round(value) for value in found[name]["tokens_per_s"]] for name in CONTENDERS},
        "step_seconds": {name: found[name]["seconds"] for name in ("ours", "bare")},
        "peak_rss_mb": {name: round(value) for name, value in peak.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--model", choices=("mid", "tiny"), default="mid")
    parser.add_argument("--row-tokens", type=int, default=2_048)
    parser.add_argument("--micro-rows", type=int, default=2)
    parser.add_argument("--micro-steps", type=int, default=2, help="of a step")
    parser.add_argument("--persist-elements", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps of each contender in a round")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    given = parser.parse_args()
    found = measure(given)
    for key, value in found.items():
        print(f"{key:20} {value}")
    if given.json:
        print(json.dumps({"benchmark": "train_step", **found}))


if __name__ == "__main__":
    main()
