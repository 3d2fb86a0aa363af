"""Shards: plain WebDataset tar files, each with an index that locates any sample for one range read.

Each conversation is one tar slice (`KEY.tokens`, `KEY.answers`, `KEY.jpg` or `.png`). Text and VQ ids are smaller than
tar headers, so up to 256 samples share a member `block-N.ids` and a `block-N.json` with their keys. Invariants: the
bytes of a shard depend only on its samples; a shard or index is complete or absent under its name.
"""

import hashlib
import io
import json
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus_dist.config.model import ModelConfig
from janus_dist.data.sample import (
    TAR_BLOCK,
    GenerationSample,
    Sample,
    TextSample,
    UnderstandingSample,
    encode,
    learned,
    members,
)
from janus_dist.storage.fs import write_whole

INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # first byte of the sample in the tar
        ("bytes", "<u4"),  # length of the sample in the tar
        ("tokens", "<u4"),  # tokens in a row: placeholders expanded, VQ ids included
        ("text_labels", "<u4"),  # labels of the text head when all text is supervised
        ("answer_labels", "<u4"),  # labels of the text head when only answers are (all of a text document)
        ("images", "<u2"),  # images for the vision tower
        ("image_ids", "<u2"),  # labels of the image head
        ("crc32", "<u4"),  # checksum of the sample's bytes
    ]
)
"""Index record of a sample."""
INDEX_HEADER_BYTES = 256
"""Bytes before the records of an index file: NumPy pads the header of this dtype to this length for any count."""
BLOCK_SAMPLES = 256
"""Samples of a block, fewer in the last block of a shard."""


@dataclass(frozen=True)
class ShardEntry:
    """A shard's entry in the manifest."""

    name: str
    samples: int
    tokens: int
    bytes: int
    sha256: str
    index_sha256: str
    longest_tokens: int
    block_tokens: tuple[int, ...]
    """Tokens of each block: 256 adjacent samples, fewer in the last."""
    block_crc32: tuple[int, ...]
    """Checksum of each block's index records."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ShardEntry":
        """Return the entry of `dataclasses.asdict` after JSON; raise TypeError for missing or unknown fields."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})


def write_shard(
    folder: str | Path, name: str, samples: list[tuple[str, Sample]], model: ModelConfig, special: tuple[int, int, int]
) -> ShardEntry:
    """Write `NAME.tar` and `NAME.index.npy` of (key, sample) pairs of one stream into a folder (local or s3://).

    `special` holds the ids of begin_of_image, placeholder and end_of_image, as in `learned`.
    """
    tar = _Tar()
    records: list[tuple[int, bytes]] = []
    if samples and isinstance(samples[0][1], UnderstandingSample):
        for key, sample in samples:
            assert isinstance(sample, UnderstandingSample)
            records.append(tar.add(members(key, sample)))
    else:
        for block, start in enumerate(range(0, len(samples), BLOCK_SAMPLES)):
            records += _add_block(tar, block, samples[start : start + BLOCK_SAMPLES])
    index = np.zeros(len(samples), dtype=INDEX_DTYPE)
    for row, ((_, sample), (offset, content)) in enumerate(zip(samples, records, strict=True)):
        index[row] = (offset, len(content), *counts(sample, model, special), zlib.crc32(content))
    encoded_index = io.BytesIO()
    np.save(encoded_index, index, allow_pickle=False)
    assert encoded_index.tell() == INDEX_HEADER_BYTES + index.nbytes, "readers rely on this length"
    content = tar.close()
    write_whole(f"{folder}/{name}.index.npy", encoded_index.getvalue())
    write_whole(f"{folder}/{name}.tar", content)
    return ShardEntry(
        name=name,
        samples=len(samples),
        tokens=int(index["tokens"].sum()),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        index_sha256=hashlib.sha256(encoded_index.getvalue()).hexdigest(),
        **block_columns(index),
    )


def block_columns(index: NDArray[np.void]) -> dict[str, Any]:
    """Return the fields of a ShardEntry that depend on its index records, `index`: [sample] INDEX_DTYPE."""
    blocks = [index[start : start + BLOCK_SAMPLES] for start in range(0, len(index), BLOCK_SAMPLES)]
    return {
        "longest_tokens": int(index["tokens"].max(initial=0)),
        "block_tokens": tuple(int(block["tokens"].sum()) for block in blocks),
        "block_crc32": tuple(zlib.crc32(block.tobytes()) for block in blocks),
    }


def counts(sample: Sample, model: ModelConfig, special: tuple[int, int, int]) -> tuple[int, int, int, int, int]:
    """Return (tokens, text labels, answer labels, images, image ids) of a sample."""
    text, answers = (int(learned(sample, special, only).sum()) for only in (False, True))
    match sample:
        case TextSample():
            return len(sample.ids), text, answers, 0, 0
        case UnderstandingSample():
            num_images = len(sample.images)
            return len(sample.ids) + num_images * (model.image_tokens - 1), text, answers, num_images, 0
        case GenerationSample():
            return len(sample.prompt_ids) + len(sample.vq_ids), text, answers, 0, len(sample.vq_ids)


def read_index(content: bytes) -> NDArray[np.void]:
    """Return the records of an index file: [sample] INDEX_DTYPE; raise ValueError when it is not one."""
    index = np.load(io.BytesIO(content), allow_pickle=False)
    if index.dtype != INDEX_DTYPE:
        raise ValueError(f"the index has dtype {index.dtype}, expected {INDEX_DTYPE}")
    return index


class _Tar:
    """A tar in memory with reproducible headers and known offsets of its members."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()
        self.tar = tarfile.TarFile(fileobj=self.buffer, mode="w", format=tarfile.USTAR_FORMAT)

    def add(self, contents: list[tuple[str, bytes]]) -> tuple[int, bytes]:
        """Append members and return (offset, bytes) of their slice, headers included."""
        start = self.tar.offset
        for name, content in contents:
            info = tarfile.TarInfo(name)  # mtime, uid and gid are 0
            info.size = len(content)
            self.tar.addfile(info, io.BytesIO(content))
        return start, self.buffer.getbuffer()[start : self.tar.offset].tobytes()

    def close(self) -> bytes:
        """Finish the tar and return its bytes."""
        self.tar.close()
        return self.buffer.getvalue()


def _add_block(tar: _Tar, block: int, samples: list[tuple[str, Sample]]) -> list[tuple[int, bytes]]:
    """Append a block of samples and return (offset, bytes) of each payload."""
    payloads = [encode(sample) for _, sample in samples if not isinstance(sample, UnderstandingSample)]
    names = {"keys": [key for key, _ in samples], "bytes": [len(payload) for payload in payloads]}
    name = f"block-{block:06d}"
    start, _ = tar.add([(f"{name}.ids", b"".join(payloads))])
    tar.add([(f"{name}.json", json.dumps(names).encode())])
    offsets = start + TAR_BLOCK + np.concatenate([[0], np.cumsum(names["bytes"])[:-1]]).astype(int)
    return list(zip(offsets.tolist(), payloads, strict=True))
