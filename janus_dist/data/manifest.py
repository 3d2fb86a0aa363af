"""Manifests and shard sets: what was tokenized, by what, and where each sample is.

Invariant: a shard set that opens is the one that its manifest describes: same number of samples and tokens in each
index.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus_dist.config.data import Stream
from janus_dist.data.shard import INDEX_DTYPE, ShardEntry, read_index
from janus_dist.data.storage import read, write_whole
from janus_dist.errors import DataError

VERSION = 1
NAME = "manifest.json"


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
    shards: tuple[ShardEntry, ...]

    @classmethod
    def load(cls, folder: str | Path) -> "Manifest":
        """Read `FOLDER/manifest.json` (local or s3://); DataError when absent, unreadable or of another version."""
        path = f"{folder}/{NAME}"
        try:
            values = json.loads(read(path))
        except FileNotFoundError as error:
            raise DataError(f"no {path}", "make shards with jobs/tokenize.py, or point data.root at them") from error
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}") from error
        version = values.get("version") if isinstance(values, dict) else None
        if version != VERSION:
            raise DataError(f"{path} has version {version}, this program reads {VERSION}")
        try:
            shards = tuple(ShardEntry(**entry) for entry in values.pop("shards"))
            return cls(**values, shards=shards)
        except (TypeError, KeyError) as error:
            raise DataError(f"{path} is no manifest of version {VERSION}: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Write `FOLDER/manifest.json`, whole or not at all."""
        write_whole(f"{folder}/{NAME}", self.canonical(indent=1).encode())

    def canonical(self, indent: int | None = None) -> str:
        return json.dumps(asdict(self), sort_keys=True, indent=indent)

    @cached_property
    def digest(self) -> str:
        """sha256 of the manifest's content; two shard sets with the same digest hold the same samples."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


@dataclass(frozen=True)
class ShardSet:
    """A manifest with the index of every sample in it."""

    folder: str
    manifest: Manifest
    records: NDArray[np.void]
    """[sample] of INDEX_DTYPE, shard after shard."""
    first_samples: NDArray[np.int64]
    """[shard] index of each shard's first sample."""

    @classmethod
    def open(cls, folder: str | Path) -> "ShardSet":
        """Read manifest and indices; DataError when one is missing or does not agree with the manifest."""
        manifest = Manifest.load(folder)
        indices = [np.empty(0, dtype=INDEX_DTYPE)]
        for entry in manifest.shards:
            path = f"{folder}/{entry.name}.index.npy"
            try:
                content = read(path)
                index = read_index(content)
            except (OSError, ValueError) as error:
                hint = "make this shard again with jobs/tokenize.py"
                raise DataError(f"{path} cannot be read: {error}", hint) from error
            found = (len(index), int(index["tokens"].sum()), hashlib.sha256(content).hexdigest())
            if found != (entry.samples, entry.tokens, entry.index_sha256):
                raise DataError(
                    f"{path} holds {found[0]} samples of {found[1]} tokens and has sha256 {found[2][:12]}, "
                    f"the manifest says {entry.samples} of {entry.tokens} and {entry.index_sha256[:12]}",
                    "index and manifest are of different runs; make the shards again with jobs/tokenize.py",
                )
            indices.append(index)
        ends = np.cumsum([entry.samples for entry in manifest.shards], dtype=np.int64)
        return cls(str(folder), manifest, np.concatenate(indices), np.concatenate([[0], ends])[:-1].astype(np.int64))

    def shard_of(self, sample: int) -> int:
        """The shard that holds a sample."""
        return int(np.searchsorted(self.first_samples, sample, side="right")) - 1

    def path(self, shard: int) -> str:
        """Where a shard's tar is."""
        return f"{self.folder}/{self.manifest.shards[shard].name}.tar"
