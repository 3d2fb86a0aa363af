"""LitData: optimized chunks of 64 MB, `CombinedStreamingDataset` with weights.

Its documented settings for speed: chunks on the local disk, which its readers map into memory; items of plain bytes
(its own JPEG column decodes with torchvision, which does not load without a CUDA torch); a block shuffle that keeps to
the window it decodes at once; persistent workers. A combined set ends with its shortest stream, so the index names each
chunk many times over (hard links), or epochs of a second would be measured. It has no packing but fixed blocks of one
token stream: a batch is a number of samples, laid one behind the other by the collate function.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"

import litdata

from benchmarks.peers import common
from benchmarks.peers.common import Delivery, Settings

CHUNK_BYTES = "64MB"
REPEATS = 24
PREFETCH = 4


class _Store:
    """What `optimize` calls with an index, in its worker."""

    def __init__(self, dump: Path, stream: str):
        self.stored = list(common.samples(dump, stream))

    def __call__(self, number: int) -> dict[str, bytes]:
        return {name: self.stored[number].get(name, b"") for name in ("ids", "jpg", "vq")}


def write(dump: Path, folder: Path) -> None:
    for stream in common.STREAMS:
        store = _Store(dump, stream)
        litdata.optimize(
            fn=store,
            inputs=list(range(len(store.stored))),
            output_dir=str(folder / stream),
            chunk_bytes=CHUNK_BYTES,
            num_workers=1,
        )
        _repeat(folder / stream)


def _repeat(folder: Path) -> None:
    path = folder / "index.json"
    index = json.loads(path.read_text())
    chunks = list(index["chunks"])
    for number in range(1, REPEATS):
        for chunk in chunks:
            name = f"repeat-{number}-{chunk['filename']}"
            (folder / name).hardlink_to(folder / chunk["filename"])
            index["chunks"].append({**chunk, "filename": name})
    path.write_text(json.dumps(index))


def read(settings: Settings) -> Iterator[Delivery]:
    decode = common.decoder(settings.decoder)

    def collate(samples: list[dict[str, bytes]]) -> common.Packed:
        return common.pack([common.encode(sample["ids"], sample["jpg"], sample["vq"], decode) for sample in samples])

    streams = [litdata.StreamingDataset(f"{settings.folder}/{stream}", shuffle=True) for stream in common.STREAMS]
    loader = litdata.StreamingDataLoader(
        litdata.CombinedStreamingDataset(
            streams, weights=[settings.weights[stream] for stream in common.STREAMS], iterate_over_all=False
        ),
        batch_size=settings.batch_samples,
        collate_fn=collate,
        num_workers=settings.workers,
        prefetch_factor=PREFETCH if settings.workers else None,
        persistent_workers=settings.workers > 0,
    )
    while True:
        for packed in loader:
            yield packed.delivery()


def describe(settings: Settings) -> dict[str, Any]:
    return {
        "chunk_bytes": CHUNK_BYTES,
        "shuffle": True,
        "prefetch_factor": PREFETCH,
        "columns": "bytes",
        "packs": False,
        "mixes": "by sample",
    }


if __name__ == "__main__":
    common.main(write, read, litdata.__version__, describe)
