"""The plan at scale: a billion samples in a hundred thousand shards, 64 ranks, steps of two million tokens.

    python benchmarks/plan.py [--json] [--samples 1_000_000_000] [--steps 40]

Measures in a fresh process each: what a rank needs to start (seconds, resident memory), what a planned step costs, and
whether step 10,000,000 costs more to resume at than step 10. Lengths are those of Janus at 384 pixels: 576 positions of
an image and log-normal text (understanding: median 80; generation: 45; documents: 600, sigma 1.1). All shards hold the
same 10,000 records, so that a billion of them need not be made; the plan cannot tell. Costs of rows are the operations
of Janus-1.3B with a trained vision tower. Index records come from memory: what reading them costs is not in here.

Predicted before the first run: 20 ms a step, of which packing 10; 150 MB; a ratio of 1.0; fill 0.998; straggler 1.01.
"""

import os
import sys

if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):  # noqa: PTH100, PTH120 - pathlib is not loaded yet
    sys.path[0] = os.path.dirname(sys.path[0])  # noqa: PTH120 - or tokenize.py here would be the standard library's

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from janus_dist.config.data import BatchConfig, Costly, ReadConfig
from janus_dist.config.mix import Lane, MixConfig
from janus_dist.config.streams import STREAMS, Stream
from janus_dist.data import packing
from janus_dist.data.manifest import VERSION, Manifest, ShardSet, ShardTable
from janus_dist.data.plan import Plan
from janus_dist.data.reader import ByteRange, RangeReader
from janus_dist.data.shard import INDEX_DTYPE, INDEX_HEADER_BYTES, ShardEntry, block_columns

SHARD_SAMPLES = 10_000
IMAGE_TOKENS = 576
RANKS = 64
ROW_TOKENS = 4096
TEXT_TOKENS = 2048
# Billions of operations (forward and backward) of Janus-1.3B and SigLIP-L
COST: dict[Costly, float] = {"token": 7.8, "token_squared": 3e-4, "image": 1050, "text_label": 1.26, "image_label": 0.2}
MIXTURES = {
    "mixed": MixConfig(understanding=2, text=3, generation=5),
    "without_text": MixConfig(understanding=1, text=0, generation=1),
}


def records(stream: Stream) -> np.ndarray:
    """The index records of a shard."""
    rng = np.random.default_rng(STREAMS.index(stream))
    median, sigma = {"understanding": (80, 0.6), "text": (600, 1.1), "generation": (45, 0.5)}[stream]
    words = np.clip(rng.lognormal(np.log(median), sigma, SHARD_SAMPLES), 4, 20_000).astype(np.int64)
    if stream == "text":  # the pipeline cuts documents into pieces of its pipeline.text_document_tokens
        pieces = np.full(int((words // TEXT_TOKENS + 1).sum()), TEXT_TOKENS)
        pieces[np.cumsum(words // TEXT_TOKENS + 1) - 1] = words % TEXT_TOKENS + 1
        words = rng.permutation(pieces)[:SHARD_SAMPLES].astype(np.int64)
    found = np.zeros(SHARD_SAMPLES, dtype=INDEX_DTYPE)
    found["tokens"] = words + (0 if stream == "text" else IMAGE_TOKENS + 2)
    if stream == "generation":
        found["image_ids"] = IMAGE_TOKENS
    else:
        found["text_labels"] = found["answer_labels"] = words - 1
        found["images"] = stream == "understanding"
    return found


class SameShards(RangeReader):
    """Answers every range of an index with the records of the one shard."""

    def __init__(self, content: bytes):
        super().__init__(ReadConfig())
        self.content = bytes(INDEX_HEADER_BYTES) + content

    def read(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        return [self.content[wanted.offset : wanted.offset + wanted.bytes] for wanted in ranges]


def write_manifests(folder: Path, samples: int) -> None:
    """Manifests of all streams, a third of the samples each."""
    shards = samples // SHARD_SAMPLES // len(STREAMS)
    for stream in STREAMS:
        found = records(stream)
        tokens = int(found["tokens"].sum())
        columns = block_columns(found)
        entries = (
            ShardEntry(f"{number:08x}-shard", SHARD_SAMPLES, tokens, 10**9, "0" * 64, "0" * 64, **columns)
            for number in range(shards)
        )
        Manifest(
            VERSION, stream, shards * SHARD_SAMPLES, shards * tokens, 0, 384, IMAGE_TOKENS, IMAGE_TOKENS, "tokenizer",
            None, {}, ShardTable.of(entries),
        ).save(folder / stream)  # fmt: skip


def open_plan(folder: Path, mix: MixConfig) -> Plan:
    """The plan, as a rank opens it."""
    batch = BatchConfig(rows=512, row_tokens=ROW_TOKENS, micro_rows=4, packing="split_text", cost=COST)
    shards = {
        Lane(stream, stream): ShardSet.open(folder / stream, SameShards(records(stream).tobytes()))
        for stream in STREAMS
        if getattr(mix, stream)
    }
    return Plan(shards, mix, batch, seed=0, answers_only=False)


def measure(folder: Path, mix: MixConfig, first: int, steps: int) -> dict[str, float]:
    """Start at step `first` and plan `steps` of them: everything in this process."""
    began = time.perf_counter()
    plan = open_plan(folder, mix)
    opened = time.perf_counter()
    plan.step(first)
    resumed = time.perf_counter()
    fills, stragglers, tokens, cuts, times = [], [], [], [], []
    for step in range(first + 1, first + 1 + steps):
        step_began = time.perf_counter()
        planned = plan.step(step)
        dealt = packing.deal(planned.row_costs, RANKS, plan.batch.micro_rows)
        times.append(time.perf_counter() - step_began)
        fills.append(planned.num_tokens / (planned.rows.num_rows * plan.batch.row_tokens))
        stragglers.append(packing.straggler_ratio(planned.row_costs, dealt))
        tokens.append(planned.num_tokens)
        cuts.append(planned.num_cuts / planned.num_documents)
    return {
        "open_s": opened - began,
        "first_step_s": resumed - opened,
        "ms_per_step": 1e3 * float(np.mean(times or [0])),
        "ms_per_step_median": 1e3 * float(np.median(times)),
        "rss_mb": peak_rss_mb(),
        "fill": float(np.mean(fills)),
        "straggler_ratio": float(np.mean(stragglers)),
        "tokens_per_step": float(np.mean(tokens)),
        "cuts_per_document": float(np.mean(cuts)),
    }


def peak_rss_mb() -> float:
    """The most memory that this process had, in MiB; `ru_maxrss` would count that of the process it was forked from."""
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))


def fill_bound() -> float:
    """What whole documents with an image fill rows to when all have the mean length."""
    lengths = np.concatenate([records(stream)["tokens"] for stream in ("understanding", "generation")])
    mean = float(lengths.mean())
    return (ROW_TOKENS // mean) * mean / ROW_TOKENS


def in_a_process(folder: Path, mixture: str, first: int, steps: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--measure", str(folder), mixture, str(first), str(steps)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line only")
    parser.add_argument("--samples", type=int, default=1_000_000_000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, mixture, first, steps = options.measure
        print(json.dumps(measure(Path(folder), MIXTURES[mixture], int(first), int(steps))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifests(folder, options.samples)
        resumes = [[in_a_process(folder, "mixed", first, 0)["first_step_s"] for first in (10, 10**7)] for _ in range(3)]
        mixed, images = (in_a_process(folder, mixture, 1000, options.steps) for mixture in MIXTURES)
    images["fill_bound"] = fill_bound()
    near, far = (float(np.median(times)) for times in zip(*resumes, strict=True))
    found = {
        **mixed,
        "resume_ratio": far / near,
        "resume_s_at_step_10": near,
        "resume_s_at_step_10_000_000": far,
        "without_text": images,
        "samples": options.samples,
    }
    if not options.json:
        for key, value in found.items():
            print(f"{key:32} {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
