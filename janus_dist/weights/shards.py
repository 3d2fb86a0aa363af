"""Safetensors files, written one after the other: a model of any size passes through the memory of one file.

The library's own writer has a file's tensors in memory twice. Invariant: what is written is what `safetensors` reads:
eight bytes of length, a JSON header, the tensors' bytes one after the other, the widest types first so that each
stands at a multiple of its own width.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from janus_dist.weights.layouts import Shape

TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
ALIGNMENT = 8
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Planned:
    """One tensor of the files to write."""

    name: str
    shape: Shape
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


Make = Callable[[Sequence[str]], Iterator[Tensor]]
"""Gives the tensors of these names, in this order."""


def write_shards(folder: Path, tensors: Sequence[Planned], make: Make, max_bytes: int) -> list[Path]:
    """Write `model.safetensors`, or files of at most `max_bytes` of tensors each with their index.

    `make` is asked once a file, and gives tensors of the planned shapes, which are rounded to the planned types. A
    tensor that is larger than `max_bytes` has a file of its own. Returns the files.
    """
    shards = _split(tensors, max_bytes)
    if len(shards) == 1:
        _write(folder / "model.safetensors", shards[0], make)
        return [folder / "model.safetensors"]
    paths = [folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for path, shard in zip(paths, shards, strict=True):
        _write(path, shard, make)
    index = {
        "metadata": {"total_size": sum(planned.bytes for planned in tensors)},
        "weight_map": {p.name: path.name for path, shard in zip(paths, shards, strict=True) for p in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return paths


def _split(tensors: Sequence[Planned], max_bytes: int) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    size = 0
    for planned in tensors:
        if shards[-1] and size + planned.bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(planned)
        size += planned.bytes
    return shards


def _write(path: Path, tensors: Sequence[Planned], make: Make) -> None:
    ordered = sorted(tensors, key=lambda planned: -planned.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for planned in ordered:
        header[planned.name] = {
            "dtype": TYPES[planned.dtype],
            "shape": list(planned.shape),
            "data_offsets": [offset, offset + planned.bytes],
        }
        offset += planned.bytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for planned, tensor in zip(ordered, make([planned.name for planned in ordered]), strict=True):
            assert tuple(tensor.shape) == planned.shape, f"{planned.name}: {tuple(tensor.shape)}, not {planned.shape}"
            file.write(tensor.to(planned.dtype).reshape(-1).view(torch.uint8).numpy().data)
