"""Our own loader as a contender of `benchmarks/loader.py`: same samples, same machine, same measured loop.

Runs under the project's Python. `deliveries` is the only place that touches the plan and the loader.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import samples
from benchmarks.peers import common
from benchmarks.peers.common import Delivery, Settings
from janus_dist.config.data import BatchConfig
from janus_dist.config.mix import Lane, MixConfig
from janus_dist.config.model import ModelConfig, TextConfig, VisionConfig, VqConfig
from janus_dist.config.streams import STREAMS, Stream
from janus_dist.data.collate import DocumentFormat
from janus_dist.data.loader import Loader
from janus_dist.data.manifest import VERSION, Manifest, ShardSet, ShardTable
from janus_dist.data.plan import Plan, StepPlan
from janus_dist.data.sample import GenerationSample, Sample, TextSample, UnderstandingSample
from janus_dist.data.shard import write_shard

SHARD_SAMPLES = 500
STEP_ROWS = 64
SEED = 0
MODEL = ModelConfig(
    image_size=samples.IMAGE_SIDE,
    text=TextConfig(vocab=102_400, hidden=2_048, layers=24, heads=16, mlp=5_632),
    vision=VisionConfig(patch=16, hidden=1_024, layers=24, heads=16, mlp=4_096),
    vq=VqConfig(),
)
SPECIAL = (samples.BEGIN_OF_IMAGE, samples.PLACEHOLDER, samples.END_OF_IMAGE)


def deliveries(folder: str, settings: Settings) -> Iterator[Delivery]:
    """Micro-batches of one rank, without end."""
    shards = {Lane(stream, stream): ShardSet.open(f"{folder}/{stream}") for stream in STREAMS}
    batch = BatchConfig(rows=STEP_ROWS, row_tokens=settings.row_tokens, micro_rows=settings.rows)
    plan = Plan(shards, MixConfig.model_validate(settings.ratio), batch, SEED, answers_only=False)
    form = DocumentFormat(
        pad=samples.END,
        image=samples.PLACEHOLDER,
        begin_of_image=samples.BEGIN_OF_IMAGE,
        end_of_image=samples.END_OF_IMAGE,
        image_tokens=MODEL.image_tokens,
        image_size=MODEL.image_size,
        answers_only=False,
    )
    for step in Loader(plan, form, rank=0, world=1, threads=settings.workers).steps(0, 10**9):
        # what a step delivers is known of all its micro-batches together: told with its last one
        for number, micro_batch in enumerate(step.batches, start=1):
            last = number == len(step.batches)
            yield Delivery(
                micro_batch,
                tokens=[_tokens(step.plan, stream) if last else 0 for stream in common.STREAMS],  # type: ignore[arg-type]
                images=len(micro_batch.pixels),
                rows=step.plan.rows.num_rows if last else 0,
            )


def _tokens(planned: StepPlan, stream: Stream) -> int:
    return int(planned.record["tokens"][planned.stream == STREAMS.index(stream)].sum(dtype=np.int64))


def write(dump: Path, folder: Path) -> None:
    for stream in STREAMS:
        stored = [(f"{number:08d}", _sample(stream, kept)) for number, kept in enumerate(common.samples(dump, stream))]
        entries = tuple(
            write_shard(folder / stream, f"shard-{start:06d}", stored[start : start + SHARD_SAMPLES], MODEL, SPECIAL)
            for start in range(0, len(stored), SHARD_SAMPLES)
        )
        Manifest(
            version=VERSION,
            stream=stream,
            samples=len(stored),
            tokens=sum(entry.tokens for entry in entries),
            quarantined=0,
            image_size=MODEL.image_size,
            image_tokens=MODEL.image_tokens,
            image_ids=MODEL.image_ids,
            tokenizer_sha256="",
            vq_sha256=None,
            settings={},
            shards=ShardTable.of(entries),
        ).save(folder / stream)


def _sample(stream: Stream, kept: dict[str, bytes]) -> Sample:
    ids = np.frombuffer(kept["ids"], np.uint32)
    match stream:
        case "understanding":
            return UnderstandingSample(ids, np.array([[common.IMAGE_AT + 2, len(ids)]]), [kept["jpg"]])
        case "generation":
            return GenerationSample(ids, np.frombuffer(kept["vq"], np.uint16))
        case _:
            return TextSample(ids)


def read(settings: Settings) -> Iterator[Delivery]:
    return deliveries(settings.folder, settings)


def describe(settings: Settings) -> dict[str, Any]:
    return {"rows_per_step": STEP_ROWS, "packs": "best-fit decreasing, step by step", "mixes": "by token"}


if __name__ == "__main__":
    common.main(write, read, version("janus-dist"), describe)
