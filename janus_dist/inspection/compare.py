"""What differs between two shard sets: identity, settings, counts, keys, bytes.

Invariant: keys are compared by digests of 8 bytes, so that sets of any size fit into memory.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus_dist.config.diff import changes, flatten
from janus_dist.data.keys import shard_keys
from janus_dist.data.manifest import Manifest, ShardSet
from janus_dist.errors import DataError
from janus_dist.inspection.inspect import column, key_digest, locate

SHOWN_KEYS = 5


@dataclass(frozen=True)
class Keys:
    """How many keys, and the first few of them."""

    count: int
    first: list[str]


@dataclass(frozen=True)
class ShardSetDifference:
    """What differs between two shard sets."""

    values: list[tuple[str, Any, Any]]
    """(field of the manifest, value of the first, value of the second)."""
    only_first: Keys
    only_second: Keys
    changed: Keys
    """Samples with the same key and other bytes."""


def difference(first: ShardSet, second: ShardSet) -> ShardSetDifference:
    """Return what differs between two shard sets, down to the keys and the bytes of samples."""
    one, two = _digests(first), _digests(second)
    values = list(changes(_facts(first.manifest), _facts(second.manifest)))
    _, in_one, in_two = np.intersect1d(one, two, return_indices=True)
    other = np.sort(in_one[column(first, "crc32")[in_one] != column(second, "crc32")[in_two]])
    return ShardSetDifference(
        values,
        _name(first, np.flatnonzero(~np.isin(one, two))),
        _name(second, np.flatnonzero(~np.isin(two, one))),
        _name(first, other),
    )


def _digests(shards: ShardSet) -> NDArray[np.uint64]:
    """Return [sample] digests of all keys. Raises DataError when a shard does not have one key per sample."""
    parts = [np.empty(0, dtype=np.uint64)]
    for number, entry in enumerate(shards.manifest.shards):
        keys = shard_keys(shards.folder, shards.manifest, number)
        if len(keys) != entry.samples:
            raise DataError(
                f"{shards.folder}/{entry.name}.tar has {len(keys)} keys, the manifest says {entry.samples} samples",
                f"`janus data lint {shards.folder}` lists what is wrong",
            )
        parts.append(np.array([key_digest(key) for key in keys], dtype=np.uint64))
    return np.concatenate(parts)


def _name(shards: ShardSet, samples: NDArray[np.int64]) -> Keys:
    first = []
    for sample in samples[:SHOWN_KEYS].tolist():
        shard, row = locate(shards.manifest, sample)
        first.append(shard_keys(shards.folder, shards.manifest, shard)[row])
    return Keys(len(samples), first)


def _facts(manifest: Manifest) -> dict[str, Any]:
    """Return what a manifest says of its set as a whole; settings keep their order by name."""
    names = ("stream", "digest", "samples", "tokens", "quarantined", "image_size", "image_tokens", "image_ids")
    facts = {name: getattr(manifest, name) for name in (*names, "tokenizer_sha256", "vq_sha256")}
    facts |= {"shards": len(manifest.shards), "bytes": sum(entry.bytes for entry in manifest.shards)}
    return facts | dict(sorted(flatten(manifest.settings, "settings.")))
