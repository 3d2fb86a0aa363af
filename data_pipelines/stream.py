"""One stream from items to a manifest: cut, run what has no marker yet, gather, commit.

Invariants: one block of a Ray Data graph is one shard, from the first step to the last; the manifest is made of markers
only and written last, so an interrupted run leaves no manifest and the next one goes on with the shards that are
missing.
"""

import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import DataContext, Dataset

from data_pipelines import sources, work
from data_pipelines.steps.rows import COMMON
from data_pipelines.steps.write import WriteShard
from data_pipelines.work import Marker, Reject, ShardJob
from janus_dist.config.mix import Stream
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data import manifest as manifest_file
from janus_dist.data import storage
from janus_dist.data.inspect import QUARANTINE
from janus_dist.data.manifest import Manifest, ShardTable
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import ClusterError, DataError

PIPELINE_VERSION = 1  # goes into the digests of jobs; raise it with every change of what a graph makes of an item
SHOWN_REASONS = 3
SAY_EVERY_S = 30.0
QUARANTINE_SCHEMA = pa.schema(
    [("source", pa.string()), ("key", pa.string()), ("reason", pa.string()), ("head", pa.binary())]
)

log = logging.getLogger("janus_dist")


@dataclass(frozen=True)
class StreamJob:
    """What one stream's graph is built from."""

    stream: Stream
    recipe: BaseRecipe
    tokenizer: Tokenizer
    items: list[sources.Item]
    columns: pa.Schema
    """The columns of an item, beside those that all rows have."""
    graph: Callable[[Dataset], Dataset]
    """From items to rows that `WriteShard` can write."""
    vq_sha256: str | None = None

    @property
    def folder(self) -> str:
        return work.stream_folder(self.recipe.data.root, self.stream)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything beside the items that decides what the shards hold."""
        recipe, pipeline = self.recipe, self.recipe.pipeline
        settings: dict[str, Any] = {
            "pipeline_version": PIPELINE_VERSION,
            "stream": self.stream,
            "source": pipeline.source,
            "shard_samples": pipeline.shard_samples,
            "tokenizer_sha256": self.tokenizer.sha256,
            "max_positions": recipe.model.text.max_positions,
        }
        if self.stream == "text":
            return settings | {"text_document_tokens": pipeline.text_document_tokens}
        return settings | {
            "chat": recipe.data.chat.model_dump(),
            "image_size": recipe.model.image_size,
            "image_tokens": recipe.model.image_tokens,
            "image_ids": recipe.model.image_ids,
            "min_image_side": pipeline.min_image_side,
            "max_image_aspect": pipeline.max_image_aspect,
            "max_image_pixels": pipeline.max_image_pixels,
            "vq_sha256": self.vq_sha256,
        }


def run(job: StreamJob) -> Manifest:
    """Make what is missing of a stream's shards and commit its manifest.

    Needs an initialised Ray. DataError when more than `pipeline.max_bad_share` of the items are bad.
    """
    began = time.monotonic()
    jobs = work.cut(job.items, job.recipe.pipeline.shard_samples, job.settings)
    done = {shard.number: marker for shard in jobs if (marker := work.load_marker(job.folder, shard)) is not None}
    missing = [shard for shard in jobs if shard.number not in done]
    if done and missing:
        log.info("%s: %d of %d shards are there from an earlier run", job.stream, len(done), len(jobs))
    bad = sum(len(marker.rejects) for marker in done.values())
    _check_bad(job, list(done.values()), bad)
    items = 0
    for row in _finished(job, jobs, missing, began):
        items += row["items"]
        bad += row["bad"]
        if bad > _allowed(job):
            break
    markers = [marker for shard in jobs if (marker := work.load_marker(job.folder, shard)) is not None]
    _write_quarantine(job, markers)
    _check_bad(job, markers, sum(len(marker.rejects) for marker in markers))
    if len(markers) != len(jobs):
        raise ClusterError(
            f"{job.stream}: {len(jobs) - len(markers)} of {len(jobs)} shards were not written",
            "run the same command again",
        )
    work.remove_strays(job.folder, jobs)
    manifest = _manifest(job, markers)
    manifest.save(job.folder)
    _report(job, manifest, items, time.monotonic() - began)
    return manifest


def _finished(job: StreamJob, jobs: list[ShardJob], missing: list[ShardJob], began: float) -> Iterator[dict[str, int]]:
    """Run the graph over the missing shards and give a row for each as it is written."""
    if not missing:
        return
    write = WriteShard(
        job.folder,
        job.stream,
        job.recipe.model,
        job.tokenizer,
        [shard.digest for shard in jobs],
        [len(shard.items) for shard in jobs],
    )
    said, shards = began, 0
    with _whole_blocks():
        source = ray.data.from_arrow([_block(shard, job.columns) for shard in missing])
        written = job.graph(source).map_batches(write, batch_format="pyarrow", batch_size=None, zero_copy_batch=True)
        for row in written.iter_rows():
            shards += 1
            if time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                log.info("%s: %d of %d shards", job.stream, shards, len(missing))
            yield row


@contextmanager
def _whole_blocks() -> Iterator[None]:
    """Ray Data as the graphs need it: blocks are never cut by their size, and nothing is drawn on the terminal."""
    context = DataContext.get_current()
    names = ("target_max_block_size", "enable_progress_bars", "print_on_execution_start")
    before = {name: getattr(context, name) for name in names}
    context.target_max_block_size = None
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    ray_log = logging.getLogger("ray.data")
    level = ray_log.level
    ray_log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray_log.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


def _block(shard: ShardJob, columns: pa.Schema) -> pa.Table:
    rows = [
        {"shard": shard.number, "position": position, "reason": "", "head": b"", **sources.to_row(item)}
        for position, item in enumerate(shard.items)
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([*COMMON, *columns]))


def _allowed(job: StreamJob) -> float:
    return job.recipe.pipeline.max_bad_share * len(job.items)


def _check_bad(job: StreamJob, markers: Iterable[Marker], bad: int) -> None:
    if bad <= _allowed(job):
        return
    rejects = [reject for marker in markers for reject in marker.rejects]
    shown = "; ".join(f"{reject.key}: {reject.reason}" for reject in rejects[:SHOWN_REASONS])
    raise DataError(
        f"{job.stream}: {bad} of {len(job.items)} samples are bad, more than pipeline.max_bad_share="
        f"{job.recipe.pipeline.max_bad_share:g} allows: {shown}",
        f"see {job.folder}/{QUARANTINE}; repair the source and delete {job.folder}, or raise pipeline.max_bad_share",
    )


def _write_quarantine(job: StreamJob, markers: Iterable[Marker]) -> None:
    rejects: list[Reject] = [reject for marker in markers for reject in marker.rejects]
    table = pa.Table.from_pylist([asdict(reject) for reject in rejects], schema=QUARANTINE_SCHEMA)
    content = io.BytesIO()
    pq.write_table(table, content)
    storage.write_whole(f"{job.folder}/{QUARANTINE}", content.getvalue())


def _manifest(job: StreamJob, markers: list[Marker]) -> Manifest:
    model = job.recipe.model
    return Manifest(
        version=manifest_file.VERSION,
        stream=job.stream,
        samples=sum(marker.shard.samples for marker in markers),
        tokens=sum(marker.shard.tokens for marker in markers),
        quarantined=sum(len(marker.rejects) for marker in markers),
        image_size=model.image_size,
        image_tokens=model.image_tokens,
        image_ids=model.image_ids,
        tokenizer_sha256=job.tokenizer.sha256,
        vq_sha256=job.vq_sha256,
        settings=job.settings,
        shards=ShardTable.of(marker.shard for marker in markers if marker.shard.samples),
    )


def _report(job: StreamJob, manifest: Manifest, items: int, seconds: float) -> None:
    rate = (
        f"{items} items in {seconds:.1f} s, {items / max(seconds, 1e-9):.0f}/s" if items else "nothing was left to do"
    )
    log.info(
        "%s: %d samples, %d tokens in %d shards, %d quarantined (%s)",
        job.stream,
        manifest.samples,
        manifest.tokens,
        len(manifest.shards),
        manifest.quarantined,
        rate,
    )


def sha256_of(path: str) -> str:
    """sha256 of a file."""
    return hashlib.sha256(storage.read(path)).hexdigest()
