"""From the plan to the batches of one rank: which rows are mine, their bytes, the packed tensors; read ahead by
threads.

Invariant: the loader has no state. What `batches(step)` gives depends on the plan, the rank and the world alone, so a
resumed run needs the step number and nothing else.
"""

import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from janus_dist.batch import Batch
from janus_dist.config.data import STREAMS, Stream
from janus_dist.data import packing, storage
from janus_dist.data.collate import DocumentFormat, collate
from janus_dist.data.manifest import ShardSet
from janus_dist.data.plan import Plan, StepPlan, row_costs
from janus_dist.data.sample import Sample, decode
from janus_dist.errors import DataError

AHEAD_STEPS = 2


@dataclass(frozen=True)
class RankStep:
    """One step as one rank sees it: the global plan, and its own batch for every micro-step."""

    plan: StepPlan
    batches: list[Batch]


class Loader:
    """Batches of one rank, step after step."""

    def __init__(self, plan: Plan, form: DocumentFormat, rank: int, world: int, ahead_steps: int = AHEAD_STEPS):
        self.plan, self.form, self.rank, self.world, self.ahead_steps = plan, form, rank, world, ahead_steps

    def load(self, step: int) -> RankStep:
        """Plan and read one step (counted from 0)."""
        plan = self.plan.step(step)
        shards: dict[Stream, ShardSet] = {name: line.shards for name, line in self.plan.lines.items()}
        batches = []
        for ranks in packing.deal(row_costs(plan), self.world, self.plan.batch.micro_rows):
            documents = [document for row in ranks[self.rank] for document in plan.rows[row]]
            batches.append(collate(read_documents(plan, documents, shards), self.form))
        return RankStep(plan, batches)

    def steps(self, first: int, stop: int) -> Iterator[RankStep]:
        """Steps `first` to `stop - 1`, each read while those before it train."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
            ahead: list[Future[RankStep]] = []
            try:
                for step in range(first, stop):
                    while len(ahead) <= self.ahead_steps and step + len(ahead) < stop:
                        ahead.append(pool.submit(self.load, step + len(ahead)))
                    yield ahead.pop(0).result()
            finally:
                for waiting in ahead:
                    waiting.cancel()


def read_documents(
    plan: StepPlan, documents: list[int], shards: Mapping[Stream, ShardSet]
) -> list[tuple[Sample, bool]]:
    """(sample, drop its prompt) of some documents of a step, in their order; DataError for a damaged sample."""
    found: dict[int, Sample] = {}
    for number, name in enumerate(STREAMS):
        mine = [document for document in documents if plan.stream[document] == number]
        if not mine:
            continue
        payloads = read_payloads(shards[name], plan.sample[mine])
        found.update(zip(mine, (decode(name, payload) for payload in payloads), strict=True))
    return [(found[document], bool(plan.drop_prompt[document])) for document in documents]


def read_payloads(shards: ShardSet, samples: np.ndarray) -> list[bytes]:
    """The stored bytes of samples, each shard read once from front to back; DataError on a wrong checksum."""
    payloads: list[bytes] = [b""] * len(samples)
    by_shard: dict[int, list[int]] = {}
    for place in np.argsort(samples, kind="stable").tolist():
        by_shard.setdefault(shards.shard_of(int(samples[place])), []).append(place)
    for shard, places in by_shard.items():
        with storage.open_binary(shards.path(shard)) as file:
            for place in places:
                record = shards.records[samples[place]]
                file.seek(int(record["offset"]))
                payload = file.read(int(record["bytes"]))
                if zlib.crc32(payload) != int(record["crc32"]):
                    raise DataError(
                        f"sample {samples[place]} of {shards.path(shard)} is damaged: its checksum is "
                        f"{zlib.crc32(payload):08x}, the index says {int(record['crc32']):08x}",
                        "make this shard again: delete it with its index and manifest, then run jobs/tokenize.py",
                    )
                payloads[place] = payload
    return payloads
