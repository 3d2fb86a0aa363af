"""MosaicML Streaming: MDS shards, streams in proportions, a batch size that the data set knows.

Its documented settings for speed: shards local, `batch_size` given to the data set as well as to the loader, persistent
workers, uncompressed shards, columns of plain bytes (its own `jpeg` column decodes with Pillow), and an `epoch_size`
so large that no epoch ends while it is measured. It has no packing: a batch is a number of samples, laid one behind the
other by the collate function.
"""

import sys
import types
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers.utils  # before the stand-ins: it looks whether torchvision is installed

from benchmarks.peers import common
from benchmarks.peers.common import Delivery, Settings


def _without_torchvision() -> None:
    """Stand-ins for the three names that `import streaming` wants of torchvision, whose wheel needs a CUDA torch.

    They belong to its classes for CIFAR and the like, which are not used here.
    """
    datasets, functional = (
        types.ModuleType("torchvision.datasets"),
        types.ModuleType("torchvision.transforms.functional"),
    )
    datasets.VisionDataset = type("VisionDataset", (), {})  # type: ignore[attr-defined]
    functional.to_tensor = None  # type: ignore[attr-defined]
    for name in ("torchvision", "torchvision.transforms"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules |= {datasets.__name__: datasets, functional.__name__: functional}


assert transformers.utils
_without_torchvision()

from streaming import MDSWriter, Stream, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

COLUMNS = {"ids": "bytes", "jpg": "bytes", "vq": "bytes"}
EPOCH_SAMPLES = 400_000
PREFETCH = 4
BATCHING = "stratified"


def write(dump: Path, folder: Path) -> None:
    for stream in common.STREAMS:
        with MDSWriter(out=str(folder / stream), columns=COLUMNS, size_limit="64mb") as shards:
            for sample in common.samples(dump, stream):
                shards.write({name: sample.get(name, b"") for name in COLUMNS})


def read(settings: Settings) -> Iterator[Delivery]:
    decode = common.decoder(settings.decoder)

    def collate(samples: list[dict[str, bytes]]) -> tuple[list[int], common.Packed]:
        packed = common.pack([common.encode(sample["ids"], sample["jpg"], sample["vq"], decode) for sample in samples])
        return packed.lengths, packed  # its loader counts samples by the length of the first member

    clean_stale_shared_memory()
    dataset = StreamingDataset(
        streams=[
            Stream(local=f"{settings.folder}/{stream}", proportion=weight)
            for stream, weight in settings.weights.items()
        ],
        epoch_size=EPOCH_SAMPLES,
        batch_size=settings.batch_samples,
        shuffle=True,
        batching_method=BATCHING,
    )
    loader = StreamingDataLoader(
        dataset,
        batch_size=settings.batch_samples,
        collate_fn=collate,
        num_workers=settings.workers,
        prefetch_factor=PREFETCH if settings.workers else None,
        persistent_workers=settings.workers > 0,
    )
    while True:
        for _, packed in loader:
            yield packed.delivery()


def describe(settings: Settings) -> dict[str, Any]:
    return {
        "epoch_size": EPOCH_SAMPLES,
        "shuffle": "py1e",
        "batching_method": BATCHING,
        "prefetch_factor": PREFETCH,
        "columns": "bytes",
        "packs": False,
        "mixes": "by sample",
    }


if __name__ == "__main__":
    common.main(write, read, version("mosaicml-streaming"), describe)
