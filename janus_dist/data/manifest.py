"""Manifests and shard sets: what was tokenized, by what, and where each sample is.

A manifest is a small JSON file and a table of shards beside it (Parquet, named by its digest); index records stay in
the files next to the shards and are read block by block. Invariants: the JSON file is written last and names its table,
so a shard set that opens is whole; a block of records that is handed out has the checksum that the table says.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from janus_dist.config.data import ReadConfig
from janus_dist.config.mix import Stream
from janus_dist.data.order import Blocks
from janus_dist.data.reader import Range, Reader
from janus_dist.data.shard import BLOCK_SAMPLES, INDEX_DTYPE, INDEX_HEADER_BYTES, ShardEntry
from janus_dist.data.storage import read, write_whole
from janus_dist.errors import DataError

VERSION = 2
NAME = "manifest.json"
TABLE_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("samples", pa.int64()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("index_sha256", pa.string()),
        ("longest_tokens", pa.int64()),
        ("block_tokens", pa.list_(pa.uint32())),
        ("block_crc32", pa.list_(pa.uint32())),
    ]
)


class ShardTable(Sequence[ShardEntry]):
    """The shards of a set, in their order; columns, because there may be a hundred thousand."""

    def __init__(self, table: pa.Table):
        self._table = table.combine_chunks()
        self.samples = self._column("samples")
        self.first_samples = _starts(self.samples)
        """[shard + 1] samples before each shard."""
        self.first_blocks = _starts(-(-self.samples // BLOCK_SAMPLES))
        """[shard + 1] blocks before each shard."""
        self.block_tokens = self._values("block_tokens")
        self.block_crc32 = self._values("block_crc32")

    @classmethod
    def of(cls, entries: Iterable[ShardEntry]) -> "ShardTable":
        return cls(pa.Table.from_pylist([asdict(entry) for entry in entries], schema=TABLE_SCHEMA))

    @classmethod
    def from_parquet(cls, content: bytes) -> "ShardTable":
        """Raises ValueError when the content is no such table."""
        table = pq.read_table(io.BytesIO(content), memory_map=False)
        if table.schema.names != TABLE_SCHEMA.names:
            raise ValueError(f"columns {table.schema.names}, expected {TABLE_SCHEMA.names}")
        return cls(table.cast(TABLE_SCHEMA))

    def to_parquet(self) -> bytes:
        content = io.BytesIO()
        pq.write_table(self._table, content, compression="zstd")
        return content.getvalue()

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, shard: int) -> ShardEntry:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= shard < len(self):
            raise IndexError(shard)
        return ShardEntry.from_json(self._table.slice(shard, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[ShardEntry]:
        for batch in self._table.to_batches(max_chunksize=1024):
            yield from (ShardEntry.from_json(row) for row in batch.to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and self.digest == other.digest

    def name(self, shard: int) -> str:
        return self._table.column("name")[shard].as_py()

    @property
    def longest_tokens(self) -> NDArray[np.int64]:
        """[shard] tokens of its longest sample."""
        return self._column("longest_tokens")

    @cached_property
    def digest(self) -> str:
        """sha256 of the content; it does not depend on how Parquet encodes it."""
        state = hashlib.sha256()
        for field in TABLE_SCHEMA:
            column = self._table.column(field.name)
            if pa.types.is_string(field.type):
                for chunk in column.chunks:  # one, or none: they were combined
                    state.update(_lengths_and_text(chunk))
            else:
                values = self._values(field.name) if pa.types.is_list(field.type) else self._column(field.name)
                state.update(values.tobytes())
        return state.hexdigest()

    def _column(self, name: str) -> NDArray[Any]:
        return self._table.column(name).to_numpy()

    def _values(self, name: str) -> NDArray[Any]:
        column = self._table.column(name)
        parts = [chunk.flatten().to_numpy() for chunk in column.chunks]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint32), *parts])


@dataclass(frozen=True)
class Manifest:
    """A shard set: counts, identity of what made it, and its shards."""

    version: int
    stream: Stream
    samples: int
    tokens: int
    quarantined: int
    image_size: int
    image_tokens: int
    image_ids: int
    tokenizer_sha256: str
    vq_sha256: str | None
    settings: dict[str, Any]
    shards: ShardTable

    @classmethod
    def load(cls, folder: str | Path) -> "Manifest":
        """Read `FOLDER/manifest.json` and its table (local or s3://).

        DataError when one is absent or unreadable, of another version, or when they do not belong together.
        """
        path = f"{folder}/{NAME}"
        try:
            values = json.loads(read(path))
        except FileNotFoundError as error:
            raise DataError(f"no {path}", "make shards with jobs/tokenize.py, or point data.root at them") from error
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}") from error
        version = values.get("version") if isinstance(values, dict) else None
        if version != VERSION:
            raise DataError(
                f"{path} has version {version}, this program reads {VERSION}",
                "delete the folder and make the shards again with jobs/tokenize.py",
            )
        try:
            digest = values.pop("shards_sha256")
            table = _load_table(f"{folder}/{table_name(digest)}", digest)
            return cls(**values, shards=table)
        except (TypeError, KeyError) as error:
            raise DataError(f"{path} is no manifest of version {VERSION}: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Write the table, then `FOLDER/manifest.json`, each whole or not at all."""
        write_whole(f"{folder}/{table_name(self.shards.digest)}", self.shards.to_parquet())
        write_whole(f"{folder}/{NAME}", self.canonical(indent=1).encode())

    def canonical(self, indent: int | None = None) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "shards"}
        return json.dumps(values | {"shards_sha256": self.shards.digest}, sort_keys=True, indent=indent)

    @cached_property
    def digest(self) -> str:
        """sha256 of the manifest's content; two shard sets with the same digest hold the same samples."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


@dataclass(frozen=True)
class ShardSet:
    """A manifest, and the index records of its samples, read when they are asked for.

    Samples are numbered through all shards, and so are blocks.
    """

    folder: str
    manifest: Manifest
    reader: Reader

    @classmethod
    def open(cls, folder: str | Path, reader: Reader | None = None) -> "ShardSet":
        """Read the manifest; DataError when it is missing or does not add up."""
        manifest = Manifest.load(folder)
        table = manifest.shards
        found = (int(table.first_samples[-1]), int(table.block_tokens.sum(dtype=np.int64)))
        if found != (manifest.samples, manifest.tokens) or len(table.block_tokens) != table.first_blocks[-1]:
            raise DataError(
                f"{folder}/{NAME} says {manifest.samples} samples of {manifest.tokens} tokens, "
                f"its shards hold {found[0]} of {found[1]}",
                "make the shards again with jobs/tokenize.py",
            )
        return cls(str(folder), manifest, reader or Reader(ReadConfig()))

    @cached_property
    def blocks(self) -> Blocks:
        """Samples and tokens of every block."""
        table = self.manifest.shards
        samples = np.full(int(table.first_blocks[-1]), BLOCK_SAMPLES, dtype=np.uint16)
        last = table.first_blocks[1:][table.samples > 0] - 1
        samples[last] = (table.samples[table.samples > 0] - 1) % BLOCK_SAMPLES + 1
        return Blocks(samples, table.block_tokens)

    def records(self, blocks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.void]]:
        """(numbers [sample], index records [sample] of INDEX_DTYPE) of the samples in `blocks`, in their order.

        DataError when an index cannot be read or is not what the manifest describes.
        """
        shards = np.searchsorted(self.manifest.shards.first_blocks, blocks, side="right") - 1
        ranges = [self._index_range(int(shard), int(block)) for shard, block in zip(shards, blocks, strict=True)]
        numbers, records = [], []
        for shard, block, wanted, content in zip(shards, blocks, ranges, self.reader.read(ranges), strict=True):
            records.append(np.frombuffer(self._checked(wanted, content, int(block)), dtype=INDEX_DTYPE))
            first = self.manifest.shards.first_samples[shard] + self._block_in_shard(int(shard), int(block))
            numbers.append(first + np.arange(len(records[-1])))
        if not records:
            return np.empty(0, np.int64), np.empty(0, INDEX_DTYPE)
        return np.concatenate(numbers), np.concatenate(records)

    def all_records(self) -> NDArray[np.void]:
        """The index records of all samples; for sets that are small or looked at whole."""
        return self.records(np.arange(len(self.manifest.shards.block_tokens)))[1]

    def shard_records(self, shard: int) -> NDArray[np.void]:
        """The index records of one shard."""
        first, last = self.manifest.shards.first_blocks[shard : shard + 2]
        return self.records(np.arange(int(first), int(last)))[1]

    def shard_of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shards that hold samples."""
        return np.searchsorted(self.manifest.shards.first_samples, samples, side="right") - 1

    def path(self, shard: int) -> str:
        """Where a shard's tar is."""
        return f"{self.folder}/{self.manifest.shards.name(shard)}.tar"

    def _block_in_shard(self, shard: int, block: int) -> int:
        """Samples of the shard that stand before a block."""
        return (block - int(self.manifest.shards.first_blocks[shard])) * BLOCK_SAMPLES

    def _index_range(self, shard: int, block: int) -> Range:
        first = self._block_in_shard(shard, block)
        number = min(BLOCK_SAMPLES, int(self.manifest.shards.samples[shard]) - first)
        size = INDEX_DTYPE.itemsize
        path = f"{self.folder}/{self.manifest.shards.name(shard)}.index.npy"
        return Range(path, INDEX_HEADER_BYTES + first * size, number * size)

    def _checked(self, wanted: Range, content: bytes, block: int) -> bytes:
        asked = int(self.manifest.shards.block_crc32[block])
        if zlib.crc32(content) == asked:
            return content
        content = self.reader.read_again(wanted)
        if zlib.crc32(content) == asked:
            return content
        raise DataError(
            f"{wanted.path} is not what the manifest describes: the records at byte {wanted.offset} have the checksum "
            f"{zlib.crc32(content):08x}, the manifest says {asked:08x}",
            "index and manifest are of different runs, or the index is damaged; make this shard again: delete it with "
            "its index and manifest, then run jobs/tokenize.py",
        )


def _lengths_and_text(strings: pa.StringArray) -> bytes:
    """Bytes of each string, then all of them; a hundred thousand Python strings would stay in memory."""
    _, offsets, characters = strings.buffers()
    if characters is None:
        return b""
    ends = np.frombuffer(offsets, dtype=np.int32)[strings.offset : strings.offset + len(strings) + 1]
    return np.diff(ends).astype("<i4").tobytes() + memoryview(characters)[int(ends[0]) : int(ends[-1])].tobytes()


def table_name(digest: str) -> str:
    """The file of a table of shards."""
    return f"shards-{digest[:12]}.parquet"


def _load_table(path: str, digest: str) -> ShardTable:
    hint = "manifest and table are of different runs; make the shards again with jobs/tokenize.py"
    try:
        table = ShardTable.from_parquet(read(path))
    except FileNotFoundError as error:
        raise DataError(f"no {path}, which the manifest beside it names", hint) from error
    except (ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} is no table of shards: {error}", hint) from error
    pa.default_memory_pool().release_unused()  # what decoding took, half of it, would be kept
    if table.digest != digest:
        raise DataError(f"{path} has sha256 {table.digest[:12]}, the manifest says {digest[:12]}", hint)
    return table


def _starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
