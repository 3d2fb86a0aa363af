"""Plain WebDataset: tar shards, resampled for ever, mixed by `RandomMix`, batched in the workers.

Its documented settings for speed: resampled shards (no barrier at the end of an epoch), a shuffle buffer of samples,
`batched` with its own collation inside the workers, and `WebLoader(batch_size=None)`, so that a whole batch crosses to
the consumer at once. Members have whole seconds as `mtime`, or each would have a second header to parse. It has no
packing: a batch is a number of samples, here laid one behind the other without padding, which is the least work that
it can be given.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import webdataset as wds

from benchmarks.peers import common
from benchmarks.peers.common import Delivery, Settings

SHARD_SAMPLES = 500
SHUFFLE = 1_000
PREFETCH = 4


def write(dump: Path, folder: Path) -> None:
    for stream in common.STREAMS:
        (folder / stream).mkdir(parents=True, exist_ok=True)
        with wds.ShardWriter(f"{folder}/{stream}/%06d.tar", maxcount=SHARD_SAMPLES, verbose=0, mtime=0) as shards:
            for number, sample in enumerate(common.samples(dump, stream)):
                shards.write({"__key__": f"{number:08d}", **sample})


def read(settings: Settings) -> Iterator[Delivery]:
    decode = common.decoder(settings.decoder)

    def encode(sample: dict[str, Any]) -> common.Encoded:
        return common.encode(sample["ids"], sample.get("jpg"), sample.get("vq"), decode)

    streams = [
        wds.WebDataset(
            sorted(map(str, Path(settings.folder, stream).glob("*.tar"))),
            resampled=True,
            shardshuffle=False,
            nodesplitter=None,
        ).shuffle(SHUFFLE)
        for stream in common.STREAMS
    ]
    mixed = wds.DataPipeline(
        wds.RandomMix(streams, [settings.weights[stream] for stream in common.STREAMS]),
        wds.map(encode),
        wds.batched(settings.batch_samples, collation_fn=common.pack),
    )
    loader = wds.WebLoader(
        mixed,
        batch_size=None,
        num_workers=settings.workers,
        prefetch_factor=PREFETCH if settings.workers else None,
        worker_init_fn=random.seed,
    )
    return (packed.delivery() for packed in loader)


def describe(settings: Settings) -> dict[str, Any]:
    return {"resampled": True, "shuffle": SHUFFLE, "prefetch_factor": PREFETCH, "packs": False, "mixes": "by sample"}


if __name__ == "__main__":
    common.main(write, read, wds.__version__, describe)
