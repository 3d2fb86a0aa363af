"""Writing: the rows of one shard as a tar, its index and its commit marker.

Invariant: a shard is written only by a block that holds exactly its rows, in order; anything else is a fault of the
graph and stops the run.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from data_pipelines.steps.rows import Row
from data_pipelines.work import Marker, Reject, save_marker, shard_name
from janus_dist.config.mix import Stream
from janus_dist.config.model import ModelConfig
from janus_dist.data.sample import GenerationSample, Sample, TextSample, UnderstandingSample
from janus_dist.data.shard import write_shard
from janus_dist.data.tokenizer import Tokenizer

DONE = pa.schema([("shard", pa.int64()), ("items", pa.int64()), ("bad", pa.int64())])


class WriteShard:
    """Write whole blocks; the block that comes out has one row: shard, its items, how many of them were bad."""

    def __init__(
        self,
        folder: str,
        stream: Stream,
        model: ModelConfig,
        tokenizer: Tokenizer,
        digests: list[str],
        sizes: list[int],
    ):
        """`digests` and `sizes` (items) are those of all jobs, by number of the shard."""
        self.folder, self.model, self.digests, self.sizes = folder, model, digests, sizes
        self.stream: Stream = stream
        self.special = (tokenizer.boi, tokenizer.image, tokenizer.eoi)

    def __call__(self, block: pa.Table) -> pa.Table:
        if len(block) == 0:
            return DONE.empty_table()
        rows = block.to_pylist()
        number, stream = rows[0]["shard"], self.stream
        found = [(row["shard"], row["position"]) for row in rows]
        if found != [(number, position) for position in range(self.sizes[number])]:
            raise AssertionError(
                f"a block of {len(rows)} rows is not shard {number} of {self.sizes[number]} items: {found[:3]}"
            )
        rejects = tuple(
            Reject(row["source"], row["key"], row["reason"], row["head"] or b"") for row in rows if row["reason"]
        )
        samples = [pair for row in rows if not row["reason"] for pair in samples_of(stream, row)]
        entry = write_shard(self.folder, shard_name(number), samples, self.model, self.special)
        save_marker(self.folder, Marker(self.digests[number], len(rows), entry, rejects))
        return pa.Table.from_pylist([{"shard": number, "items": len(rows), "bad": len(rejects)}], schema=DONE)


def samples_of(stream: Stream, row: Row) -> list[tuple[str, Sample]]:
    """(key, sample) pairs of a row with everything encoded; one, but for texts that were cut."""
    match stream:
        case "understanding":
            answers = np.array(row["answers"], dtype=np.int64).reshape(-1, 2)
            return [(row["key"], UnderstandingSample(_ids(row["ids"]), answers, [row["png"]]))]
        case "generation":
            vq_ids = np.array(row["vq_ids"], dtype=np.uint16)
            return [(row["key"], GenerationSample(_ids(row["prompt_ids"]), vq_ids))]
        case "text":
            return [(f"{row['key']}-{part:03d}", TextSample(_ids(ids))) for part, ids in enumerate(row["pieces"])]


def _ids(values: list[Any]) -> np.ndarray:
    return np.array(values, dtype=np.uint32)
