"""Saving and loading a run beside DeepSpeed's own checkpoints, and beside plain files.

    .venv/bin/python benchmarks/checkpoint.py --json [--world 2] [--folder DISK]

One engine trains a model of about 100 million parameters, its vision tower frozen; three contenders take turns within
one run, on the same disk:

- `ours`: `Saver.start` in a step, training meanwhile, until the marker is there; then the same without training; then
  `commits.latest_verified` and `checkpoint.restore`, which check every byte.
- `deepspeed`: `engine.save_checkpoint` and `engine.load_checkpoint`. It neither syncs nor checks its files, so their
  syncing is timed beside it (`synced_s`) before anything else uses the disk.
- `raw`: each rank writes and syncs, then reads, as many bytes as its own file of ours has.

All reading is from the disk: pages are dropped from the cache before it. Seconds are those of the slowest rank. A stall
is what a save adds to the step it begins in; `stall_ratio` is the longest of ours over the mean step.

Predicted before measuring: `stall_ratio` 0.3 with one rank (1 GB copied at 4 GB/s, steps of 1.5 s; the first save 1 s,
for its memory is new), `save_over_raw` 1.4 (a CRC-32, a copy and a SHA-256 of each byte, on one core in turn with the
disk), `load_over_raw` 2.2 (once to check, once to load), `bytes_over_minimum` 1.01, `slowdown_while_writing` 1.15 with
one rank on two cores and 1.5 with two, whose writers have no core of their own; DeepSpeed stalls 15 times as long.
"""

import os
import sys

if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):  # noqa: PTH100, PTH120 - pathlib is not loaded yet
    sys.path[0] = os.path.dirname(sys.path[0])  # noqa: PTH120 - or tokenize.py here would be the standard library's

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp

from benchmarks.train_step import BOI, EOI, IMAGE, PAD, TINY, found_by, make_samples
from janus_dist.batch import Batch
from janus_dist.checkpoint import commits, state
from janus_dist.checkpoint.commits import RetentionPolicy
from janus_dist.checkpoint.saver import Saver
from janus_dist.config.model import ModelConfig, TextConfig, VisionConfig, VqConfig
from janus_dist.config.streams import STREAMS
from janus_dist.config.train import ClusterConfig, EngineConfig, OptimConfig
from janus_dist.data.collate import Document, DocumentFormat, collate, decode_images
from janus_dist.data.sample import Sample, TextSample, UnderstandingSample
from janus_dist.data.shard import counts
from janus_dist.engine.world import join
from janus_dist.engine.zero import ZeroEngine
from janus_dist.model import janus, native
from janus_dist.model.parts import PREFIXES, set_trainable

MID = ModelConfig(
    image_size=64,
    text=TextConfig(vocab=32_768, hidden=512, layers=12, heads=8, mlp=1_408),
    vision=VisionConfig(patch=16, hidden=384, layers=12, heads=6, mlp=1_536),
    vq=VqConfig(),
)
MODELS = {"mid": MID, "tiny": TINY}
FROZEN = "vision_tower"
IDENTITY: dict[str, Any] = {
    "plan_digest": "", "plan": {}, "cursors": {}, "recipe": {}, "tokens": 0, "losses": [], "left_out": [],
}  # fmt: skip
LR = 1e-4
CONTENDERS = ("ours", "deepspeed")


def make_batch(model: ModelConfig, row_tokens: int) -> Batch:
    """A text, an image to read and one to draw."""
    form = DocumentFormat(PAD, IMAGE, BOI, EOI, model.image_tokens, model.image_size, answers_only=False)
    return collate([document_of(found[0], model) for found in make_samples(model, row_tokens).values()], form)


def document_of(sample: Sample, model: ModelConfig) -> Document:
    if isinstance(sample, TextSample):
        return Document(sample, counts(sample, model, (BOI, IMAGE, EOI))[0])
    tokens, side = counts(sample, model, (BOI, IMAGE, EOI))[0], model.image_size
    pixels = np.empty((int(isinstance(sample, UnderstandingSample)), side, side, 3), dtype=np.uint8)
    if isinstance(sample, UnderstandingSample):
        decode_images(sample.images, pixels)
    return Document(sample, tokens, images=pixels)


class Training:
    """One rank's engine and its steps; all contenders save and load it."""

    def __init__(self, given: argparse.Namespace, folder: Path):
        world = join(ClusterConfig(workers=given.world), timeout_s=600)
        model = MODELS[given.model]
        built = janus.on_meta(model)
        set_trainable(built, [part for part in PREFIXES if part != FROZEN])
        engine = EngineConfig(dtype=native.best_dtype(gpu=False), bucket_elements=20_000_000, persist_elements=100_000)
        self.engine = ZeroEngine(built, janus.made(built, 0, world.device), engine, OptimConfig(lr=LR), world)
        self.engine.module.train()
        self.world, self.folder, self.number = world, folder, 0
        self.batch = make_batch(model, given.row_tokens)

    def step(self) -> None:
        self.number += 1
        self.engine.micro_step(self.batch, torch.full((len(STREAMS),), 1e-3), last=True)
        self.engine.step(LR)

    @property
    def minimum_bytes(self) -> int:
        """Weights and two moments of what learns in float32, and frozen weights in the type that they have."""
        trainable = {name: name in set(self.engine.trainable) for name in self.engine.names.values()}
        sizes: Any = {self.engine.names[parameter.ds_id]: parameter for parameter in self.engine.module.parameters()}  # pyright: ignore[reportAttributeAccessIssue]
        return sum(
            one.ds_numel * (12 if trainable[name] else one.ds_tensor.element_size()) for name, one in sizes.items()
        )


class Ours:
    """Saves in the background, committed and checked."""

    def __init__(self, training: Training):
        self.training, self.folder = training, training.folder / "ours"
        self.saver = Saver(training.engine, str(self.folder))
        self.is_done = True

    def begin(self) -> None:
        assert self.saver.start(self.training.number, IDENTITY, RetentionPolicy(1))
        self.is_done = False

    def is_busy(self) -> bool:
        """Whether some rank is still writing."""
        saved = None if self.is_done else self.saver.done()
        if saved is not None:
            assert saved.failure is None, saved.failure
            self.is_done = True
        return self.training.world.any(not self.is_done)

    def finish(self) -> None:
        saved = self.saver.wait()
        assert saved is None or saved.failure is None, saved
        self.is_done = True

    def load(self) -> None:
        path = commits.latest_verified(self.training.engine.world, str(self.folder), say=print)
        assert path is not None
        state.restore(self.training.engine, path)


class DeepSpeed:
    """Saves in the step, as DeepSpeed comes."""

    def __init__(self, training: Training):
        self.training, self.folder = training, training.folder / "deepspeed"

    def begin(self) -> None:
        self.training.engine.deepspeed.save_checkpoint(str(self.folder), tag="newest")

    def is_busy(self) -> bool:
        return False

    def finish(self) -> None:
        pass

    def load(self) -> None:
        found, _ = self.training.engine.deepspeed.load_checkpoint(str(self.folder), tag="newest")
        assert found is not None


class Raw:
    """Plain writing and reading of one file a rank."""

    def __init__(self, training: Training, size: int):
        folder = training.folder / "raw"
        folder.mkdir(exist_ok=True)
        self.path = folder / str(training.world.rank)
        self.content = np.random.default_rng(0).bytes(size)
        self.target = bytearray(size)

    def write(self) -> None:
        with self.path.open("wb", buffering=0) as file:
            left = memoryview(self.content)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())

    def read(self) -> None:
        with self.path.open("rb", buffering=0) as file:
            left = memoryview(self.target)
            while left:
                left = left[file.readinto(left) :]  # pyright: ignore[reportArgumentType]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sync(folder: Path) -> None:
    for path in files_of(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def drop_from_cache(folder: Path) -> None:
    for path in files_of(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Times:
    """Seconds of the slowest rank, by contender and what it did."""

    def __init__(self, training: Training):
        self.training = training
        self.found: dict[str, list[float]] = {}

    def take(self, name: str, do: Callable[[], Any]) -> None:
        """Do it on all ranks at once, and note how long it took."""
        self.training.world.barrier()
        began = time.perf_counter()
        do()
        self.note(name, time.perf_counter() - began)

    def note(self, name: str, seconds: float) -> None:
        every: Any = self.training.world.gather(seconds)
        self.found.setdefault(name, []).append(max(every))


def measure_contender(name: str, one: Any, training: Training, times: Times, steps: int) -> None:
    """One round: plain steps, a save beside steps, a save alone, a load."""
    for _ in range(steps):
        times.take(f"{name}.step", training.step)
    began = time.perf_counter()
    times.take(f"{name}.stall", one.begin)
    while one.is_busy():
        times.take(f"{name}.step_while_writing", training.step)
    times.note(f"{name}.save_beside_steps", time.perf_counter() - began)
    times.take(f"{name}.synced", lambda: sync(one.folder))

    def save_alone() -> None:
        one.begin()
        one.finish()

    times.take(f"{name}.save", save_alone)
    times.take(f"{name}.synced", lambda: sync(one.folder))
    training.world.barrier()
    drop_from_cache(one.folder)
    times.take(f"{name}.load", one.load)


def run_rank(rank: int, given: argparse.Namespace, folder: str, queue: Any) -> None:
    """All rounds; the first rank puts what it found into the queue."""
    size = str(given.world)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=given.world)
    training = Training(given, Path(folder))
    times = Times(training)
    training.step()
    contenders = {"ours": Ours(training), "deepspeed": DeepSpeed(training)}
    times.take("ours.first_stall", contenders["ours"].begin)
    contenders["ours"].finish()
    commit = commits.read(commits.folder(str(contenders["ours"].folder), training.number))
    raw = Raw(training, commit.files[f"__{rank}_0.distcp"]["bytes"])
    for _ in range(given.rounds):
        for name, one in contenders.items():
            measure_contender(name, one, training, times, given.steps)
        times.take("raw.write", raw.write)
        training.world.barrier()
        drop_from_cache(raw.path.parent)
        times.take("raw.read", raw.read)
    if rank == 0:
        found = {"times": times.found, "stored_bytes": sum(one["bytes"] for one in commit.files.values())}
        found |= {"minimum_bytes": training.minimum_bytes, "bytes": total_bytes(training.folder)}
        queue.put(found)
        queue.close()
        queue.join_thread()
    training.world.barrier()
    os._exit(0)


def total_bytes(folder: Path) -> dict[str, int]:
    """On disk, by contender, marker included."""
    return {name: sum(path.stat().st_size for path in files_of(folder / name)) for name in CONTENDERS}


def run(given: argparse.Namespace) -> dict[str, Any]:
    """What the ranks found, in fresh processes."""
    context = mp.get_context("spawn")
    queue = context.Queue()
    folder = tempfile.mkdtemp(dir=given.folder)
    ranks = [context.Process(target=run_rank, args=(r, given, folder, queue)) for r in range(given.world)]
    for rank in ranks:
        rank.start()
    try:
        return found_by(ranks, queue)
    finally:
        shutil.rmtree(folder)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All figures of one world."""
    found = run(given)
    times = found["times"]

    def ratio(upper: str, lower: str) -> float:
        """Median over rounds, both of the same round."""
        return statistics.median(over / under for over, under in zip(times[upper], times[lower], strict=True))

    step = statistics.mean(times["ours.step"])
    stall = max(times["ours.stall"] + times["ours.first_stall"])
    writing = times.get("ours.step_while_writing", [step])
    return {
        "world": given.world,
        "dtype": native.best_dtype(gpu=False),
        "stall_ratio": stall / step,
        "stall_s": stall,
        "slowdown_while_writing": statistics.median(writing) / statistics.median(times["ours.step"]),
        "save_over_raw": ratio("ours.save", "raw.write"),
        "load_over_raw": ratio("ours.load", "raw.read"),
        "bytes_over_minimum": found["bytes"]["ours"] / found["minimum_bytes"],
        "ratio_deepspeed": {
            "stall": ratio("deepspeed.stall", "ours.stall"),
            "save": ratio("deepspeed.save", "ours.save"),
            "load": ratio("deepspeed.load", "ours.load"),
            "bytes": found["bytes"]["deepspeed"] / found["bytes"]["ours"],
        },
        "seconds": {name: [round(value, 4) for value in taken] for name, taken in times.items()},
        "stored_bytes": found["stored_bytes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--model", choices=sorted(MODELS), default="mid")
    parser.add_argument("--row-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="plain steps before each save")
    parser.add_argument("--folder", help="where to write; a temporary folder of the system when absent")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    given = parser.parse_args()
    found = measure(given)
    for key, value in found.items():
        print(f"{key:22} {value}")
    if given.json:
        print(json.dumps({"benchmark": "checkpoint", **found}))


if __name__ == "__main__":
    main()
