"""Sums over the markers of all jobs: tables for people, and the manifest.

Invariant: figures are sums over committed markers only. Rows of tables are written as they come; only one entry per
shard stays in memory.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.job import InputWork
from data_pipelines.tally import first_reasons
from data_pipelines.work import JobMarker
from janus_dist.data import manifest as manifest_file
from janus_dist.data.manifest import Manifest, ShardTable
from janus_dist.data.shard import ShardEntry
from janus_dist.inspection.inspect import EXAMPLES, QUARANTINE, STATS, kinds
from janus_dist.storage import fs

ROWS = 10_000
"""Rows of a table that are written at once."""
LISTED_KEYS = 40
"""Keys with unused values that are logged, a line each."""
QUARANTINE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("source", "key", "kind", "reason")]
    + [("head", pa.binary()), ("records", pa.int64())]
)
EXAMPLE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "source", "rule", "value", "words")]
    + [("image", pa.binary()), ("vq_ids", pa.list_(pa.uint16()))]
)


@dataclass
class Gathered:
    """Sums over markers."""

    jobs: int = 0
    records: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    """Refused records by kind of reason."""
    reasons: dict[str, str] = field(default_factory=dict)
    """The first reason of each kind, with the key of its record."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Dropped records by rule."""
    columns: set[str] | None = field(default_factory=set)
    """Names of columns with a value in some record; None when a marker does not list them."""
    cut_short: int = 0
    """Files that lost an unknown number of records."""
    histograms: dict[str, Counter[str]] = field(default_factory=dict)
    ignored: dict[str, Counter[str]] = field(default_factory=dict)
    """Records by key and reason of values that were not used."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of all jobs by step."""
    entries: list[ShardEntry] = field(default_factory=list)

    def add(self, marker: JobMarker) -> None:
        """Add the counts and shards of a job."""
        self.jobs += 1
        self.records += marker.records
        self.bad.update(kinds(marker.rejects))
        self.reasons = {**first_reasons(marker.rejects), **self.reasons}
        self.dropped.update(marker.dropped)
        self.cut_short += sum(reject.at_least for reject in marker.rejects)
        has_columns = self.columns is not None and marker.columns is not None
        self.columns = {*(self.columns or ()), *(marker.columns or ())} if has_columns else None
        for name, bins in marker.histograms.items():
            self.histograms.setdefault(name, Counter()).update(bins)
        for key, reasons in marker.ignored.items():
            self.ignored.setdefault(key, Counter()).update(reasons)
        for step, seconds in marker.seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds
        self.entries += marker.shards

    def manifest(self, input_work: InputWork, settings: dict[str, Any]) -> Manifest:
        """Return the manifest of all shards. `settings`: what they were made with."""
        model = input_work.recipe.model
        return Manifest(
            version=manifest_file.VERSION,
            stream=input_work.stream,
            samples=sum(entry.samples for entry in self.entries),
            tokens=sum(entry.tokens for entry in self.entries),
            quarantined=self.bad.total(),
            image_size=model.image_size,
            image_tokens=model.image_tokens,
            image_ids=model.image_ids,
            tokenizer_sha256=input_work.tokenizer.sha256,
            vq_sha256=settings.get("vq_sha256"),
            settings=settings,
            shards=ShardTable.of(self.entries),
            ignored={key: dict(reasons) for key, reasons in self.ignored.items()},
        )

    def ignored_lines(self) -> list[str]:
        """Return a line for each key with unused values, the most frequent first."""
        keys = sorted(self.ignored, key=lambda key: (-self.ignored[key].total(), key))
        lines = [
            f"ignored {key} in {self.ignored[key].total():,} of {self.records:,} records: "
            + "; ".join(
                reason if len(self.ignored[key]) == 1 else f"{reason} ({number:,})"
                for reason, number in self.ignored[key].most_common()
            )
            for key in keys[:LISTED_KEYS]
        ]
        return lines + [f"ignored {len(keys) - LISTED_KEYS} more keys: see {STATS}"] * (len(keys) > LISTED_KEYS)


def gather(folder: str, markers: Iterable[JobMarker]) -> Gathered:
    """Return the sums over markers; write the quarantine table, the examples and `stats.json` into the folder."""
    sums = Gathered()
    with (
        _table(f"{folder}/{QUARANTINE}", QUARANTINE_SCHEMA) as quarantine,
        _table(f"{folder}/{EXAMPLES}", EXAMPLE_SCHEMA) as examples,
    ):
        for marker in markers:
            sums.add(marker)
            quarantine(asdict(reject) for reject in marker.rejects)
            examples(asdict(example) for example in marker.examples)
    stats = {
        name: getattr(sums, name) for name in ("jobs", "records", "bad", "dropped", "ignored", "histograms", "seconds")
    }
    fs.write_whole(f"{folder}/{STATS}", json.dumps(stats, indent=1, sort_keys=True).encode())
    return sums


class _Table:
    """A buffer of rows that are written to a Parquet file."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema):
        self.writer, self.schema, self.rows = writer, schema, list[dict[str, Any]]()

    def __call__(self, rows: Iterator[dict[str, Any]]) -> None:
        self.rows += rows
        if len(self.rows) >= ROWS:
            self.flush()

    def flush(self) -> None:
        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows.clear()


@contextmanager
def _table(path: str, schema: pa.Schema) -> Iterator[_Table]:
    """Open a Parquet table that is written as a whole when the context ends."""
    content = io.BytesIO()
    with pq.ParquetWriter(content, schema, compression="zstd") as writer:
        table = _Table(writer, schema)
        yield table
        table.flush()
    fs.write_whole(path, content.getvalue())
