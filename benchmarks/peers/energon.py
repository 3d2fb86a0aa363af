"""Megatron-Energon: prepared WebDataset shards, a metadataset that blends, packing on the fly.

Its documented settings for speed: no automatic decoding (`decoder = None`) and crude samples with a cooker, so that
nothing is touched twice; `postencode_sample`, which decodes an image only when its pack is known, so that the packing
buffer holds JPEG bytes; the loader behind `get_loader` and not the savable one, whose snapshots
cost, without watchdog and with a garbage collection every 100 batches, not 10. Packing is the user's function by
design; it is given best-fit decreasing over the buffer, and the packs of a batch are joined once, in `batch`.
"""

import json
from bisect import bisect_left, insort
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import webdataset as wds
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_train_dataset,
    stateless,
)
from megatron.energon.flavors import BaseWebdatasetFactory
from megatron.energon.savable_loader import BasicDataLoader

from benchmarks.peers import common
from benchmarks.peers.common import Delivery, Settings

SHARD_SAMPLES = 500
SHUFFLE = 100
SEQUENCE_SAMPLES = 100
PACKING_BUFFER = 512
PREFETCH = 4
GC_STEPS = 100


@edataclass
class Stored(Sample):
    """A sample as it lies in the shard, with its length."""

    ids: bytes
    jpg: bytes | None
    vq: bytes | None
    tokens: int


@edataclass
class Ready(Sample):
    """A sample with its image decoded."""

    encoded: common.Encoded


@edataclass
class Row(Sample):
    """The samples of one pack."""

    members: list[common.Encoded]


@stateless
def cook(sample: dict[str, Any]) -> Stored:
    ids, jpg, vq = sample["ids"], sample.get("jpg"), sample.get("vq")
    return Stored(**basic_sample_keys(sample), ids=ids, jpg=jpg, vq=vq, tokens=common.num_tokens(ids, jpg, vq))


class TaskEncoder(DefaultTaskEncoder):
    """Packs rows of `row_tokens`."""

    decoder = None
    cookers = [Cooker(cook)]  # noqa: RUF012 - Energon's interface

    def __init__(self, settings: Settings):
        super().__init__()
        self.row_tokens, self.decode = settings.row_tokens, common.decoder(settings.decoder)

    @stateless
    def postencode_sample(self, sample: Stored) -> Ready:
        return Ready.derive_from(sample, encoded=common.encode(sample.ids, sample.jpg, sample.vq, self.decode))

    def select_samples_to_pack(self, samples: list[Stored]) -> list[list[Stored]]:
        rows: list[list[Stored]] = []
        spaces: list[tuple[int, int]] = []
        for sample in sorted(samples, key=lambda sample: -sample.tokens):
            found = bisect_left(spaces, (sample.tokens, -1))
            free, row = spaces.pop(found) if found < len(spaces) else (self.row_tokens, len(rows))
            if row == len(rows):
                rows.append([])
            rows[row].append(sample)
            insort(spaces, (free - sample.tokens, row))
        return rows

    @stateless
    def pack_selected_samples(self, samples: list[Ready]) -> Row:
        return Row.derive_from(samples[0], members=[sample.encoded for sample in samples])

    @stateless
    def batch(self, samples: list[Row]) -> common.Packed:
        return common.pack([member for row in samples for member in row.members], rows=len(samples))


def write(dump: Path, folder: Path) -> None:
    for stream in common.STREAMS:
        path = folder / stream
        path.mkdir(parents=True, exist_ok=True)
        with wds.ShardWriter(f"{path}/%06d.tar", maxcount=SHARD_SAMPLES, verbose=0, mtime=0) as shards:
            for number, sample in enumerate(common.samples(dump, stream)):
                shards.write({"__key__": f"{number:08d}", **sample})
        names = sorted(tar.name for tar in path.glob("*.tar"))
        parts = [("train", 1.0), ("val", 0.0), ("test", 0.0)]
        BaseWebdatasetFactory.prepare_dataset(path, names, split_parts_ratio=parts, shuffle_seed=None, workers=2)
        crude = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
        (path / ".nv-meta" / "dataset.yaml").write_text(json.dumps(crude))


def read(settings: Settings) -> Iterator[Delivery]:
    blend = [{"weight": weight, "path": f"./{stream}"} for stream, weight in settings.weights.items()]
    metadataset = {
        "__module__": "megatron.energon",
        "__class__": "MetadatasetV2",
        "splits": {"train": {"blend": blend}},
    }
    path = Path(settings.folder) / "blend.yaml"
    path.write_text(json.dumps(metadataset))
    dataset = get_train_dataset(
        path,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=settings.workers),
        batch_size=settings.rows,
        packing_buffer_size=PACKING_BUFFER,
        shuffle_buffer_size=SHUFFLE,
        max_samples_per_sequence=SEQUENCE_SAMPLES,
        task_encoder=TaskEncoder(settings),
    )
    loader = BasicDataLoader(
        dataset, prefetch_factor=PREFETCH, gc_collect_every_n_steps=GC_STEPS, watchdog_timeout_seconds=None
    )
    return (packed.delivery() for packed in loader)


def describe(settings: Settings) -> dict[str, Any]:
    return {
        "shuffle_buffer_size": SHUFFLE,
        "max_samples_per_sequence": SEQUENCE_SAMPLES,
        "packing_buffer_size": PACKING_BUFFER,
        "prefetch_factor": PREFETCH,
        "gc_collect_every_n_steps": GC_STEPS,
        "decoder": None,
        "packs": "best-fit decreasing in select_samples_to_pack",
        "mixes": "by sample",
    }


if __name__ == "__main__":
    common.main(write, read, version("megatron-energon"), describe)
