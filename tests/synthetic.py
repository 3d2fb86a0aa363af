"""Shard sets without files: index records in memory, cut into shards and blocks as files would be."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from janus_dist.config.data import ReadConfig
from janus_dist.config.mix import Lane
from janus_dist.config.streams import STREAMS, Stream
from janus_dist.data.manifest import VERSION, Manifest, ShardSet, ShardTable
from janus_dist.data.plan import StepPlan
from janus_dist.data.reader import ByteRange, RangeReader
from janus_dist.data.shard import INDEX_HEADER_BYTES, ShardEntry, block_columns


class RecordsReader(RangeReader):
    """Answers ranges of index files from records in memory."""

    def __init__(self, by_path: dict[str, bytes]):
        super().__init__(ReadConfig())
        self.by_path = by_path

    def read(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        return [self.by_path[wanted.path][wanted.offset : wanted.offset + wanted.bytes] for wanted in ranges]


def stream_tokens(planned: StepPlan, stream: Stream) -> int:
    """Tokens of a stream's documents in a step, each counted once."""
    return int(planned.record["tokens"][planned.stream == STREAMS.index(stream)].sum(dtype=np.int64))


def shard_set(lane: Lane, records: NDArray[np.void], sizes: Sequence[int] | None = None) -> ShardSet:
    """A shard set of these records in shards of `sizes` samples (one shard when absent)."""
    entries, by_path, first = [], {}, 0
    for number, size in enumerate(sizes or [len(records)]):
        part = records[first : first + size]
        first += size
        name = f"shard-{number:05d}"
        by_path[f"{lane.source}/{name}.index.npy"] = bytes(INDEX_HEADER_BYTES) + part.tobytes()
        entries.append(ShardEntry(name, len(part), int(part["tokens"].sum()), 0, "", "", **block_columns(part)))
    manifest = Manifest(
        VERSION, lane.stream, len(records), int(records["tokens"].sum()), 0, 64, 64, 64, "tokenizer", None, {},
        ShardTable.of(entries),
    )  # fmt: skip
    return ShardSet(lane.source, manifest, RecordsReader(by_path))
