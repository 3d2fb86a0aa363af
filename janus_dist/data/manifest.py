"""Manifests and shard sets: the tokenized samples, the settings that made them, and the place of each sample.

A manifest is a small JSON file and, in the same folder, a table of shards (Parquet, named by its digest); index records
stay in the files next to the shards and are read block by block. Invariants: the JSON file is written last and names
its table, so a shard set that opens is complete; every block of records that is returned has the checksum that the
table states.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from janus_dist.config.data import ReadConfig
from janus_dist.config.streams import Stream
from janus_dist.data.order import Blocks
from janus_dist.data.reader import ByteRange, RangeReader
from janus_dist.data.shard import BLOCK_SAMPLES, INDEX_DTYPE, INDEX_HEADER_BYTES, ShardEntry
from janus_dist.errors import DataError
from janus_dist.storage.fs import reached, read, size, write_whole
from janus_dist.storage.repair import REMAKE_MISSING, REMAKE_SHARD

VERSION = 2
"""Version of the manifest's format."""
GROUP_SHARDS = 2_048
"""Shards of one row group of the table, which is decoded in one piece."""
NAME = "manifest.json"
"""File name of a manifest."""
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
STRING_COLUMNS = ["name", "sha256", "index_sha256"]
BLOCK_COLUMNS = ("block_tokens", "block_crc32")
"""Columns that hold a list per shard, with one number for each block."""
NUMBER_DTYPES = {
    name: np.dtype(np.uint32 if name in BLOCK_COLUMNS else np.int64)
    for name in TABLE_SCHEMA.names
    if name not in STRING_COLUMNS
}


class ShardTable(Sequence[ShardEntry]):
    """The shards of a set, in their order; stored as columns, because a set may have a hundred thousand shards."""

    def __init__(self, table: pa.Table):
        """Copy the numbers of a table with `TABLE_SCHEMA`, so that its memory can be freed."""
        columns = {name: _copy_numbers(table.column(name), dtype) for name, dtype in NUMBER_DTYPES.items()}
        self._numbers = {name: values for name, values in columns.items() if name not in BLOCK_COLUMNS}
        self._strings = table.select(STRING_COLUMNS)
        self.samples = columns["samples"]
        """Samples of each shard: [shard] int64."""
        self.first_samples = _starts(self.samples)
        """Samples before each shard: [shard + 1] int64."""
        self.first_blocks = _starts(-(-self.samples // BLOCK_SAMPLES))
        """Blocks before each shard: [shard + 1] int64."""
        self.block_tokens, self.block_crc32 = (columns[name] for name in BLOCK_COLUMNS)
        """Tokens of each block and checksum of its index records: [block] uint32."""

    @classmethod
    def of(cls, entries: Iterable[ShardEntry]) -> "ShardTable":
        """Return the table of some shards."""
        return cls(pa.Table.from_pylist([asdict(entry) for entry in entries], schema=TABLE_SCHEMA))

    @classmethod
    def from_parquet(cls, content: bytes) -> "ShardTable":
        """Return the table in the bytes of a Parquet file; raise ValueError when it has other columns."""
        file = pq.ParquetFile(io.BytesIO(content))
        if file.schema_arrow.names != TABLE_SCHEMA.names:
            raise ValueError(f"columns {file.schema_arrow.names}, expected {TABLE_SCHEMA.names}")
        # group by group, since decoding needs three times the memory of its result
        groups = (file.read_row_group(index, use_threads=False) for index in range(file.num_row_groups))
        batches = (batch for group in groups for batch in group.cast(TABLE_SCHEMA).to_batches())
        return cls(pa.Table.from_batches(batches, schema=TABLE_SCHEMA))

    def to_parquet(self) -> bytes:
        """Return the bytes of the table as a Parquet file."""
        content = io.BytesIO()
        with pq.ParquetWriter(content, TABLE_SCHEMA, compression="zstd") as writer:
            for start in range(0, len(self), GROUP_SHARDS):
                rows = [asdict(self[shard]) for shard in range(start, min(start + GROUP_SHARDS, len(self)))]
                writer.write_table(pa.Table.from_pylist(rows, schema=TABLE_SCHEMA))
        return content.getvalue()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, shard: int) -> ShardEntry:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= shard < len(self):
            raise IndexError(shard)
        blocks = slice(*self.first_blocks[shard : shard + 2].tolist())
        values: dict[str, Any] = {name: self._strings.column(name)[shard].as_py() for name in STRING_COLUMNS}
        values |= {name: int(column[shard]) for name, column in self._numbers.items()}
        values |= {name: getattr(self, name)[blocks].tolist() for name in BLOCK_COLUMNS}
        return ShardEntry.from_json(values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and self.digest == other.digest

    def name(self, shard: int) -> str:
        """Return the name of a shard, without the ending of its files."""
        return self._strings.column("name")[shard].as_py()

    @property
    def longest_tokens(self) -> NDArray[np.int64]:
        """Return the tokens of each shard's longest sample: [shard] int64."""
        return self._numbers["longest_tokens"]

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of the content, independent of the names of the files and of Parquet's encoding."""
        state = hashlib.sha256()
        for name in STRING_COLUMNS[1:]:  # not the names: another attempt at the same samples has other names
            chunks = self._strings.column(name).chunks
            for part in (*map(_lengths, chunks), *map(_characters, chunks)):
                state.update(part)
        for values in (*self._numbers.values(), self.block_tokens, self.block_crc32):
            state.update(values.data)
        return state.hexdigest()


@dataclass(frozen=True)
class Manifest:
    """The description of a shard set: counts, the settings and models that made it, and its shards."""

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
    ignored: dict[str, dict[str, int]] = field(default_factory=dict)
    """Records by reason, by key of each source value that was not used; not part of the identity of the samples."""

    @classmethod
    def load(cls, folder: str | Path) -> "Manifest":
        """Read `FOLDER/manifest.json` and its table (local or s3://).

        Raises DataError when one is absent or unreadable, has another version, or when they do not belong together.
        """
        path = f"{folder}/{NAME}"
        try:
            with reached(path):
                values = json.loads(read(path))
        except FileNotFoundError as error:
            raise DataError(
                f"{path} does not exist", "make shards with jobs/prepare.py, or point data.root at them"
            ) from error
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}") from error
        version = values.get("version") if isinstance(values, dict) else None
        if version != VERSION:
            raise DataError(
                f"{path} has version {version}, this program reads {VERSION}",
                "delete the folder and make the shards again with jobs/prepare.py",
            )
        try:
            digest = values.pop("shards_sha256")
            table = _load_table(f"{folder}/{table_name(digest)}", digest)
            return cls(**values, shards=table)
        except (TypeError, KeyError) as error:
            raise DataError(f"{path} is not a manifest of version {VERSION}: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Write the table, then `FOLDER/manifest.json`; each is written completely or not at all."""
        write_whole(f"{folder}/{table_name(self.shards.digest)}", self.shards.to_parquet())
        values = self._values() | {"ignored": self.ignored}
        write_whole(f"{folder}/{NAME}", json.dumps(values, sort_keys=True, indent=1).encode())

    def canonical(self) -> str:
        """Return the JSON text that the digest covers."""
        return json.dumps(self._values(), sort_keys=True)

    def _values(self) -> dict[str, Any]:
        names = (field.name for field in fields(self) if field.name not in ("shards", "ignored"))
        return {name: getattr(self, name) for name in names} | {"shards_sha256": self.shards.digest}

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of the manifest's content; shard sets with the same digest hold the same samples."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


@dataclass(frozen=True)
class ShardSet:
    """A manifest and the index records of its samples, which are read on demand.

    Samples are numbered across all shards, from 0, and so are blocks.
    """

    folder: str
    manifest: Manifest
    reader: RangeReader

    @classmethod
    def open(cls, folder: str | Path, reader: RangeReader | None = None) -> "ShardSet":
        """Read the manifest of a folder; raise DataError when it is missing or its counts do not add up."""
        manifest = Manifest.load(folder)
        table = manifest.shards
        samples, tokens = int(table.first_samples[-1]), int(table.block_tokens.sum(dtype=np.int64))
        is_same = (samples, tokens) == (manifest.samples, manifest.tokens)
        if not is_same or len(table.block_tokens) != table.first_blocks[-1]:
            raise DataError(
                f"{folder}/{NAME} says {manifest.samples} samples of {manifest.tokens} tokens, "
                f"its shards hold {samples} of {tokens}",
                REMAKE_MISSING,
            )
        return cls(str(folder), manifest, reader or RangeReader(ReadConfig()))

    @cached_property
    def blocks(self) -> Blocks:
        """Return the samples and tokens of every block."""
        table = self.manifest.shards
        samples = np.full(int(table.first_blocks[-1]), BLOCK_SAMPLES, dtype=np.uint16)
        last = table.first_blocks[1:][table.samples > 0] - 1
        samples[last] = (table.samples[table.samples > 0] - 1) % BLOCK_SAMPLES + 1
        return Blocks(samples, table.block_tokens)

    def records(self, blocks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.void]]:
        """Return (indices, index records) of the samples in `blocks`: [block] int64, in their order.

        Indices: [sample] int64; records: [sample] INDEX_DTYPE. Raises DataError when an index cannot be read or does
        not match the manifest.
        """
        shards = np.searchsorted(self.manifest.shards.first_blocks, blocks, side="right") - 1
        ranges = [self._index_range(int(shard), int(block)) for shard, block in zip(shards, blocks, strict=True)]
        indices, records = [], []
        for shard, block, stored, content in zip(shards, blocks, ranges, self.reader.read(ranges), strict=True):
            records.append(np.frombuffer(self._checked(stored, content, int(block)), dtype=INDEX_DTYPE))
            first = self.manifest.shards.first_samples[shard] + self._block_in_shard(int(shard), int(block))
            indices.append(first + np.arange(len(records[-1])))
        if not records:
            return np.empty(0, np.int64), np.empty(0, INDEX_DTYPE)
        return np.concatenate(indices), np.concatenate(records)

    def shard_records(self, shard: int) -> NDArray[np.void]:
        """Return the index records of one shard: [sample] INDEX_DTYPE.

        Raises DataError when its index cannot be read or does not match the manifest.
        """
        first, last = self.manifest.shards.first_blocks[shard : shard + 2]
        return self.records(np.arange(int(first), int(last)))[1]

    def shard_of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index of the shard that holds each sample; `samples` and result: [sample] int64."""
        return np.searchsorted(self.manifest.shards.first_samples, samples, side="right") - 1

    def path(self, shard: int) -> str:
        """Return the path of a shard's tar."""
        return f"{self.folder}/{self.manifest.shards.name(shard)}.tar"

    def _block_in_shard(self, shard: int, block: int) -> int:
        """Return the number of samples of the shard before a block."""
        return (block - int(self.manifest.shards.first_blocks[shard])) * BLOCK_SAMPLES

    def _index_range(self, shard: int, block: int) -> ByteRange:
        """Return the range of a block's records in the index file of its shard."""
        first = self._block_in_shard(shard, block)
        samples = min(BLOCK_SAMPLES, int(self.manifest.shards.samples[shard]) - first)
        size = INDEX_DTYPE.itemsize
        path = f"{self.folder}/{self.manifest.shards.name(shard)}.index.npy"
        return ByteRange(path, INDEX_HEADER_BYTES + first * size, samples * size)

    def _checked(self, stored: ByteRange, content: bytes, block: int) -> bytes:
        """Return the bytes of a block's records, read once more when their checksum is wrong.

        Raises DataError when it is still wrong.
        """
        expected = int(self.manifest.shards.block_crc32[block])
        if zlib.crc32(content) == expected:
            return content
        content = self.reader.read_again(stored)
        if zlib.crc32(content) == expected:
            return content
        raise DataError(
            f"{stored.path} does not match the manifest: the records at byte {stored.offset} have the checksum "
            f"{zlib.crc32(content):08x}, the manifest says {expected:08x}",
            f"index and manifest are from different runs, or the index is damaged; {REMAKE_SHARD}",
        )


def is_there(folder: str | Path) -> bool:
    """Return whether a folder has a manifest; raise DataError when its disk or store cannot be read."""
    with reached(f"{folder}/{NAME}"):
        return size(f"{folder}/{NAME}") is not None


def _copy_numbers(column: pa.ChunkedArray, dtype: np.dtype) -> NDArray[Any]:
    """Return a copy of a column of integers without nulls, its lists concatenated: [value] of `dtype`.

    Reads the buffers, since Arrow's own conversion imports pandas, which takes 40 MB.
    """
    arrays = [chunk.flatten() if pa.types.is_list(chunk.type) else chunk for chunk in column.chunks]
    parts = [np.frombuffer(array.buffers()[1], dtype)[array.offset :][: len(array)] for array in arrays if len(array)]
    return np.concatenate([np.empty(0, dtype), *parts])


def _lengths(strings: pa.StringArray) -> bytes:
    """Return the length of each string in bytes, as bytes of little-endian int32."""
    return np.diff(_offsets(strings)).astype("<i4").tobytes() if len(strings) else b""


def _characters(strings: pa.StringArray) -> memoryview | bytes:
    """Return all strings concatenated, as UTF-8, without a hundred thousand Python strings in memory."""
    if not len(strings):
        return b""
    first, *_, last = _offsets(strings)
    return memoryview(strings.buffers()[2] or b"")[first:last]


def _offsets(strings: pa.StringArray) -> NDArray[np.int32]:
    """Return the byte where each string starts, and the end of the last: [string + 1] int32."""
    return np.frombuffer(strings.buffers()[1], np.int32)[strings.offset :][: len(strings) + 1]


def table_name(digest: str) -> str:
    """Return the file name of the table of shards with a digest."""
    return f"shards-{digest[:12]}.parquet"


def _load_table(path: str, digest: str) -> ShardTable:
    """Read a table of shards; raise DataError when it is absent, unreadable or has another digest."""
    hint = f"manifest and table are from different runs; {REMAKE_MISSING}"
    try:
        with reached(path):
            table = ShardTable.from_parquet(read(path))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist, but the manifest in its folder names it", hint) from error
    except (ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} is not a table of shards: {error}", hint) from error
    pa.default_memory_pool().release_unused()  # the pool would keep half of the memory that decoding used
    if table.digest != digest:
        raise DataError(f"{path} has sha256 {table.digest[:12]}, the manifest says {digest[:12]}", hint)
    return table


def _starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of all sizes before each item, and of all: `sizes` [item] int64, result [item + 1] int64."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
