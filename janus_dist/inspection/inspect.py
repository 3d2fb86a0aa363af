"""Shard sets as people look at them: what one is and holds, where a sample is, its key, what was refused.

Invariant: nothing here changes a shard set, and no more of it is in memory than one sample, a few columns of the index
and the index records of a thousand shards.
"""

import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from janus_dist.config.streams import SPECS, STREAMS, Stream
from janus_dist.data.keys import keys_in_tar, see_lint, shard_keys
from janus_dist.data.manifest import NAME, Manifest, ShardSet
from janus_dist.data.reader import ByteRange
from janus_dist.data.sample import Sample, decode
from janus_dist.data.shard import BLOCK_SAMPLES, INDEX_DTYPE
from janus_dist.errors import DataError
from janus_dist.storage import fs

QUARANTINE = "quarantine.parquet"
COMMITS = "commits"
EXAMPLES = "examples.parquet"
STATS = "stats.json"
QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
COUNTED = ("tokens", "text_labels", "answer_labels", "images", "image_ids")
"""Columns of an index that people look at."""
BLOCKS_AT_ONCE = 4_096
"""Of index records, 38 MB: those of a thousand shards, which the reader asks for beside each other."""
ROWS = 10_000


@dataclass(frozen=True)
class LocatedSample:
    """A sample with its place and its index record."""

    number: int
    """Index in its shard set, as errors of training name it."""
    key: str
    shard: str
    record: np.void
    sample: Sample


@dataclass(frozen=True)
class Reject:
    """A line of the quarantine table."""

    source: str
    key: str
    kind: str
    """What such records are counted under: `too small`."""
    reason: str
    """What people are shown, with its particulars: `too small: 5x5 pixels`."""
    head: bytes
    records: int = 1
    """How many it stands for: more than one where a file is damaged, estimated where the format does not count them."""
    at_least: bool = False
    """More may be lost than `records`: the file was cut short and nothing says how much it held."""


def kind_in_old_reason(reason: str) -> str:
    """Return the kind of a reject of a table or marker that has no kinds, from its reason: the words before the colon.

    Programs before the column `kind` began each reason with its kind.
    """
    return reason.split(":")[0]


@dataclass(frozen=True)
class Example:
    """A record for people to look at: one that was kept, or one that a rule dropped."""

    key: str
    source: str
    rule: str
    """What dropped it; empty when it was kept."""
    value: str
    """What the record has instead."""
    words: str
    """Caption, or the beginning of a text."""
    image: bytes
    """JPEG: the crop as it was encoded, or a small version of what was dropped; empty without an image."""
    vq_ids: tuple[int, ...]
    """What the crop was encoded as."""


def shard_set_folders(folder: str) -> list[str]:
    """Return FOLDER if it is a shard set, else the shard sets directly in it. Raises DataError when there is none."""
    folder = folder.rstrip("/") or "/"
    if _has_manifest(folder):
        return [folder]
    names = [name for name in fs.names(folder) if _has_manifest(f"{folder}/{name}")]
    if not names:
        raise DataError(
            f"no shard set in {folder}: neither {NAME} nor a folder with one, as {STREAMS[0]}/{NAME}",
            "give the folder of a shard set or a data.root; jobs/prepare.py makes them",
        )
    known = [name for name in STREAMS if name in names]
    return [f"{folder}/{name}" for name in [*known, *(name for name in names if name not in known)]]


def _has_manifest(folder: str) -> bool:
    try:
        return fs.size(f"{folder}/{NAME}") is not None
    except NotADirectoryError:  # a file beside the folders of a data.root
        return False


def index_records(shards: ShardSet, shard: int) -> NDArray[np.void]:
    """Index records of one shard, [sample] of INDEX_DTYPE."""
    return shards.shard_records(shard)


def columns(shards: ShardSet, *names: str) -> dict[str, NDArray[Any]]:
    """Return [sample] columns of the index of all shards, as they are stored; each index is read once,
    many at a time."""
    blocks = np.arange(len(shards.manifest.shards.block_tokens))
    parts: dict[str, list[NDArray[Any]]] = {name: [np.empty(0, INDEX_DTYPE[name])] for name in names}
    for start in range(0, len(blocks), BLOCKS_AT_ONCE):
        records = shards.records(blocks[start : start + BLOCKS_AT_ONCE])[1]
        for name in names:
            parts[name].append(records[name].copy())  # a view would keep all columns in memory
    return {name: np.concatenate(found) for name, found in parts.items()}


def column(shards: ShardSet, name: str) -> NDArray[np.int64]:
    """Return [sample] one column of the index of all shards."""
    return columns(shards, name)[name].astype(np.int64)


def locate(manifest: Manifest, sample: int) -> tuple[int, int]:
    """Return (shard, row in it) of a sample of the set. Raises DataError when there are not that many."""
    if not 0 <= sample < manifest.samples:
        raise DataError(
            f"there is no sample {sample}: the {manifest.stream} shard set holds {manifest.samples}",
            f"samples are counted from 0 to {manifest.samples - 1}" if manifest.samples else None,
        )
    starts = manifest.shards.first_samples
    shard = int(np.searchsorted(starts, sample, side="right")) - 1
    return shard, sample - int(starts[shard])


def key_digest(key: str) -> int:
    """Return 8 bytes that stand for a key: among 100 million keys, two that share them have a chance of 0.03 %."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def number_of_key(shards: ShardSet, key: str) -> int | None:
    """Return the number of the sample that has a key, or None; reads shard after shard until it is found."""
    first = 0
    for number, entry in enumerate(shards.manifest.shards):
        keys = shard_keys(shards.folder, shards.manifest, number)
        if key in keys:
            return first + keys.index(key)
        first += entry.samples
    return None


def read_samples(shards: ShardSet, numbers: Iterable[int]) -> Iterator[LocatedSample]:
    """Yield samples by their numbers, in ascending order. Raises DataError when one cannot be read."""
    places = [(number, *locate(shards.manifest, number)) for number in sorted(numbers)]
    for shard, mine in groupby(places, key=lambda place: place[1]):
        name, records = shards.manifest.shards[shard].name, index_records(shards, shard)
        path = f"{shards.folder}/{name}.tar"
        has_own_members = SPECS[shards.manifest.stream].has_own_tar_members
        keys = None if has_own_members else shard_keys(shards.folder, shards.manifest, shard)
        try:
            with fs.open_binary(path) as file:
                for number, _, row in mine:
                    yield _found(file, shards.manifest.stream, number, name, records[row], keys[row] if keys else None)
        except (OSError, ValueError, IndexError) as error:
            raise DataError(f"{path} cannot be read: {error}", see_lint(shards.folder)) from error


def decoded(shards: ShardSet, numbers: Sequence[int]) -> list[Sample]:
    """Return the samples by their numbers, which ascend, without keys: indexes and bytes are asked for many at a time.

    DataError when one cannot be read.
    """
    table, wanted = shards.manifest.shards, np.array(numbers, dtype=np.int64)
    inside = shards.shard_of(wanted)
    blocks = table.first_blocks[inside] + (wanted - table.first_samples[inside]) // BLOCK_SAMPLES
    known, records = shards.records(np.unique(blocks))
    records = records[np.searchsorted(known, wanted)]
    ranges = [
        ByteRange(shards.path(shard), int(record["offset"]), int(record["bytes"]))
        for shard, record in zip(inside.tolist(), records, strict=True)
    ]
    try:
        read = zip(numbers, records, shards.reader.read(ranges), strict=True)
        return [_decoded(shards.manifest.stream, *one) for one in read]
    except ValueError as error:
        raise DataError(f"{shards.folder} cannot be read: {error}", see_lint(shards.folder)) from error


def _found(file: BinaryIO, stream: Stream, number: int, shard: str, record: np.void, key: str | None) -> LocatedSample:
    """Return the sample that an index record points at; a conversation's key is in its own bytes."""
    file.seek(int(record["offset"]))
    payload = file.read(int(record["bytes"]))
    sample = _decoded(stream, number, record, payload)
    return LocatedSample(number, key or keys_in_tar(io.BytesIO(payload), stream)[0], shard, record, sample)


def _decoded(stream: Stream, number: int, record: np.void, payload: bytes) -> Sample:
    """Return a sample from its bytes. Raises ValueError when they are not those that its index record describes."""
    if zlib.crc32(payload) != int(record["crc32"]):
        raise ValueError(f"sample {number} is damaged, its checksum is not the one in the index")
    try:
        return decode(stream, payload)
    except DataError as error:
        raise ValueError(f"sample {number}: {error.message}") from error


def chosen(samples: int, number: int, seed: int) -> list[int]:
    """Return at most `number` of `samples` sample numbers, drawn by a seed, in ascending order."""
    drawn = np.random.default_rng(seed).choice(samples, min(number, samples), replace=False, shuffle=False)
    return sorted(drawn.tolist())


def quarantine(folder: str) -> Iterator[Reject]:
    """Yield the rows of the quarantine table, none without a table. Raises DataError when it cannot be read."""
    path = f"{folder}/{QUARANTINE}"
    try:
        for batch in pq.ParquetFile(io.BytesIO(fs.read(path))).iter_batches(ROWS):
            for row in batch.to_pylist():
                source, key, head = row["source"] or "", row["key"] or "", row["head"] or b""
                kind = row.get("kind") or kind_in_old_reason(row["reason"])
                yield Reject(source, key, kind, row["reason"], head, row.get("records") or 1)
    except FileNotFoundError:
        return
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{path} is not a quarantine table: {error}") from error


def refused(folder: str, shown: int) -> tuple[dict[str, int], list[Reject]]:
    """Return (records refused by kind of reason, the most frequent first; the first `shown` rejects of each kind).

    Numbers are those of the pipeline's statistics where it left any: the table is then read only as far as needed.
    """
    counted: dict[str, int] | None = (stats(folder) or {}).get("bad")
    found, rows, first = Counter[str](), Counter[str](), list[Reject]()
    if counted is None or (counted and shown):
        for reject in quarantine(folder):
            found[reject.kind] += reject.records
            if rows[reject.kind] < shown:
                rows[reject.kind] += 1
                first.append(reject)
            if counted is not None and all(rows[kind] >= shown for kind in counted):
                break
    return _most_first(found if counted is None else counted), first


def examples(folder: str) -> list[Example]:
    """Return the records that the pipeline kept for people to look at; none when the table is gone."""
    try:
        rows = pq.read_table(io.BytesIO(fs.read(f"{folder}/{EXAMPLES}"))).to_pylist()
        return [Example(**row | {"vq_ids": tuple(row["vq_ids"])}) for row in rows]
    except (FileNotFoundError, pa.ArrowException, TypeError, KeyError):
        return []


def kinds(rejects: Iterable[Reject]) -> dict[str, int]:
    """Return how many records were refused, by kind of reason."""
    found = Counter[str]()
    for reject in rejects:
        found[reject.kind] += reject.records
    return found


def _most_first(numbers: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(numbers.items(), key=lambda pair: (-pair[1], pair[0])))


def stats(folder: str) -> dict[str, Any] | None:
    """Return what the pipeline counted: records, refused ones by kind, dropped ones by rule, histograms; None when the
    file is absent."""
    try:
        return json.loads(fs.read(f"{folder}/{STATS}"))
    except (FileNotFoundError, ValueError):
        return None


def summary(shards: ShardSet, found: Mapping[str, NDArray[Any]] | None = None) -> dict[str, Any]:
    """Return what a shard set is and holds, as plain values; `found` are its columns of COUNTED, each
    [sample], where they were read before."""
    manifest = shards.manifest
    found = columns(shards, *COUNTED) if found is None else found
    tokens, sums = found["tokens"], {name: int(values.sum(dtype=np.int64)) for name, values in found.items()}
    quantiles = np.quantile(tokens, QUANTILES, method="nearest").tolist() if len(tokens) else []
    return {
        "folder": shards.folder,
        "stream": manifest.stream,
        "samples": manifest.samples,
        "tokens": manifest.tokens,
        "shards": len(manifest.shards),
        "bytes": sum(entry.bytes for entry in manifest.shards),
        "images": sums["images"],
        "vq_ids": sums["image_ids"],
        "labels": {name: sums[f"{name}_labels"] for name in ("text", "answer")},
        "token_quantiles": dict(zip((f"{share:g}" for share in QUANTILES), quantiles, strict=False)),
        "digest": manifest.digest,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "vq_sha256": manifest.vq_sha256,
        "image_size": manifest.image_size,
        "image_tokens": manifest.image_tokens,
        "image_ids": manifest.image_ids,
        "quarantined": {"count": manifest.quarantined, "reasons": refused(shards.folder, 0)[0]},
        "settings": manifest.settings,
    }
