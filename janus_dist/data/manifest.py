"""Manifests and shard sets: what was tokenized, by what, and where each sample is.

A manifest is a small JSON file and a table of shards beside it (Parquet, named by its digest); index records stay in
the files next to the shards and are read block by block. Invariants: the JSON file is written last and names its table,
so a shard set that opens is whole; a block of records that is handed out has the checksum that the table says.
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
from janus_dist.data.reader import Range, Reader
from janus_dist.data.shard import BLOCK_SAMPLES, INDEX_DTYPE, INDEX_HEADER_BYTES, ShardEntry
from janus_dist.errors import DataError
from janus_dist.storage.fs import reached, read, size, write_whole
from janus_dist.storage.repair import REMAKE_MISSING, REMAKE_SHARD

VERSION = 2
GROUP_SHARDS = 2_048
"""Rows of the table that are decoded at once."""
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
STRINGS = ["name", "sha256", "index_sha256"]
BLOCK_COLUMNS = ("block_tokens", "block_crc32")
NUMBERS = {
    name: np.dtype(np.uint32 if name in BLOCK_COLUMNS else np.int64)
    for name in TABLE_SCHEMA.names
    if name not in STRINGS
}


class ShardTable(Sequence[ShardEntry]):
    """The shards of a set, in their order; columns, because there may be a hundred thousand."""

    def __init__(self, table: pa.Table):
        """`table` has `TABLE_SCHEMA`; its numbers are copied, so that its memory can go."""
        found = {name: _numbers(table.column(name), kind) for name, kind in NUMBERS.items()}
        self._numbers = {name: values for name, values in found.items() if name not in BLOCK_COLUMNS}
        self._strings = table.select(STRINGS)
        self.samples = found["samples"]
        self.first_samples = _starts(self.samples)
        """[shard + 1] samples before each shard."""
        self.first_blocks = _starts(-(-self.samples // BLOCK_SAMPLES))
        """[shard + 1] blocks before each shard."""
        self.block_tokens, self.block_crc32 = (found[name] for name in BLOCK_COLUMNS)

    @classmethod
    def of(cls, entries: Iterable[ShardEntry]) -> "ShardTable":
        return cls(pa.Table.from_pylist([asdict(entry) for entry in entries], schema=TABLE_SCHEMA))

    @classmethod
    def from_parquet(cls, content: bytes) -> "ShardTable":
        """Raises ValueError when the content is no such table."""
        file = pq.ParquetFile(io.BytesIO(content))
        if file.schema_arrow.names != TABLE_SCHEMA.names:
            raise ValueError(f"columns {file.schema_arrow.names}, expected {TABLE_SCHEMA.names}")
        # group by group, since decoding takes three times the memory of what comes out
        groups = (file.read_row_group(number, use_threads=False) for number in range(file.num_row_groups))
        batches = (batch for group in groups for batch in group.cast(TABLE_SCHEMA).to_batches())
        return cls(pa.Table.from_batches(batches, schema=TABLE_SCHEMA))

    def to_parquet(self) -> bytes:
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
        values: dict[str, Any] = {name: self._strings.column(name)[shard].as_py() for name in STRINGS}
        values |= {name: int(column[shard]) for name, column in self._numbers.items()}
        values |= {name: getattr(self, name)[blocks].tolist() for name in BLOCK_COLUMNS}
        return ShardEntry.from_json(values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and self.digest == other.digest

    def name(self, shard: int) -> str:
        return self._strings.column("name")[shard].as_py()

    @property
    def longest_tokens(self) -> NDArray[np.int64]:
        """[shard] tokens of its longest sample."""
        return self._numbers["longest_tokens"]

    @cached_property
    def digest(self) -> str:
        """sha256 of the content, whatever the files are called and however Parquet encodes it."""
        state = hashlib.sha256()
        for name in STRINGS[1:]:  # another attempt at the same samples has other names
            chunks = self._strings.column(name).chunks
            for part in (*map(_lengths, chunks), *map(_characters, chunks)):
                state.update(part)
        for values in (*self._numbers.values(), self.block_tokens, self.block_crc32):
            state.update(values.data)
        return state.hexdigest()


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
    ignored: dict[str, dict[str, int]] = field(default_factory=dict)
    """Key of a value of the source that was not used -> reason -> records; not part of what the samples are."""

    @classmethod
    def load(cls, folder: str | Path) -> "Manifest":
        """Read `FOLDER/manifest.json` and its table (local or s3://).

        DataError when one is absent or unreadable, of another version, or when they do not belong together.
        """
        path = f"{folder}/{NAME}"
        try:
            with reached(path):
                values = json.loads(read(path))
        except FileNotFoundError as error:
            raise DataError(f"no {path}", "make shards with jobs/prepare.py, or point data.root at them") from error
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
            raise DataError(f"{path} is no manifest of version {VERSION}: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Write the table, then `FOLDER/manifest.json`, each whole or not at all."""
        write_whole(f"{folder}/{table_name(self.shards.digest)}", self.shards.to_parquet())
        values = self._values() | {"ignored": self.ignored}
        write_whole(f"{folder}/{NAME}", json.dumps(values, sort_keys=True, indent=1).encode())

    def canonical(self) -> str:
        """Return what the digest is made of, as JSON."""
        return json.dumps(self._values(), sort_keys=True)

    def _values(self) -> dict[str, Any]:
        names = (field.name for field in fields(self) if field.name not in ("shards", "ignored"))
        return {name: getattr(self, name) for name in names} | {"shards_sha256": self.shards.digest}

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
                REMAKE_MISSING,
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
            f"index and manifest are of different runs, or the index is damaged; {REMAKE_SHARD}",
        )


def is_there(folder: str | Path) -> bool:
    """Whether a folder has a manifest; DataError when its disk or store does not say."""
    with reached(f"{folder}/{NAME}"):
        return size(f"{folder}/{NAME}") is not None


def _numbers(column: pa.ChunkedArray, kind: np.dtype) -> NDArray[Any]:
    """A copy of whole numbers without nulls, lists one behind the other.

    By the buffers, since Arrow's own way imports pandas, which takes 40 MB.
    """
    arrays = [chunk.flatten() if pa.types.is_list(chunk.type) else chunk for chunk in column.chunks]
    parts = [np.frombuffer(array.buffers()[1], kind)[array.offset :][: len(array)] for array in arrays if len(array)]
    return np.concatenate([np.empty(0, kind), *parts])


def _lengths(strings: pa.StringArray) -> bytes:
    """int32 bytes of each string."""
    return np.diff(_offsets(strings)).astype("<i4").tobytes() if len(strings) else b""


def _characters(strings: pa.StringArray) -> memoryview | bytes:
    """All strings, one behind the other, as UTF-8; as Python strings a hundred thousand would stay in memory."""
    if not len(strings):
        return b""
    first, *_, last = _offsets(strings)
    return memoryview(strings.buffers()[2] or b"")[first:last]


def _offsets(strings: pa.StringArray) -> NDArray[np.int32]:
    return np.frombuffer(strings.buffers()[1], np.int32)[strings.offset :][: len(strings) + 1]


def table_name(digest: str) -> str:
    """The file of a table of shards."""
    return f"shards-{digest[:12]}.parquet"


def _load_table(path: str, digest: str) -> ShardTable:
    hint = f"manifest and table are of different runs; {REMAKE_MISSING}"
    try:
        with reached(path):
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
