"""From the plan to the batches of one rank: which rows are mine, their bytes, the packed tensors; read ahead by
threads.

Invariant: the loader has no state that a batch depends on. What `load(step)` gives depends on the plan, the rank and
the world alone, so a resumed run needs the step number and nothing else. A sample that is damaged keeps its place: pad
tokens without labels stand there, so no other sample moves.
"""

import logging
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from janus_dist.batch import Batch
from janus_dist.data import packing
from janus_dist.data.collate import Document, DocumentFormat, collate, decode_images
from janus_dist.data.manifest import ShardSet
from janus_dist.data.plan import Plan, StepPlan
from janus_dist.data.reader import Range
from janus_dist.data.sample import UnderstandingSample, decode
from janus_dist.errors import DataError
from janus_dist.storage.repair import REMAKE_SHARD

THREADS = 2
MOST_AHEAD_STEPS = 32
TOLD_STEPS = 64  # how far ahead the node's cache knows what is needed; a step takes 10 to 20 ms to plan
ALWAYS_BEARABLE = 4
"""Damaged samples that a rank goes on after however few it has read; beyond, `data.max_bad_share` counts."""

log = logging.getLogger("janus_dist")


@dataclass(frozen=True)
class RankStep:
    """One step as one rank sees it: the global plan, and its own batch for every micro-step."""

    plan: StepPlan
    batches: list[Batch]
    straggler_ratio: float
    """Cost of the slowest rank over the mean of all, by the plan's costs."""
    bad_samples: int
    """Damaged samples that this rank has met so far."""


class Loader:
    """Batches of one rank, step after step."""

    def __init__(
        self,
        plan: Plan,
        form: DocumentFormat,
        rank: int,
        world: int,
        threads: int = THREADS,
        ahead_bytes: int = 2**30,
        max_bad_share: float = 0.0,
        node: range | None = None,
    ):
        """`threads` load steps at the same time (0: the caller does), as far ahead as `ahead_bytes` of batches.

        `node` are the ranks of this node, whose needs the node's cache is told; this rank alone when absent.
        """
        self.form, self.rank, self.world = form, rank, world
        self.threads, self.ahead_bytes = threads, ahead_bytes
        self.bad = BadSamples(max_bad_share)
        self.node = node or range(rank, rank + 1)
        self.use(plan)

    def use(self, plan: Plan) -> None:
        """Give batches of this plan from now on."""
        self.plan = plan
        # all shard sets of a rank share one reader
        self._cached = [shards.reader for shards in plan.shards if shards.reader.caches][:1]
        self._step_plan = lru_cache(maxsize=2 * TOLD_STEPS if self._cached else 1)(plan.step)
        self._told = -1

    def load(self, step: int) -> RankStep:
        """Plan and read one step (counted from 0); DataError when too many samples are damaged."""
        plan = self._step_plan(step)
        dealt = self._deal(plan)
        self._tell_cache(step)
        pieces = [[piece for row in ranks[self.rank] for piece in plan.rows.row(row)] for ranks in dealt]
        documents = self.read(plan, [piece for micro_step in pieces for piece in micro_step])
        batches = [collate([documents[piece] for piece in micro_step], self.form) for micro_step in pieces]
        return RankStep(plan, batches, packing.straggler_ratio(plan.row_costs, dealt), self.bad.number)

    def steps(self, first: int, stop: int) -> Iterator[RankStep]:
        """Steps `first` to `stop - 1`, each read while those before it train."""
        if self.threads == 0:
            yield from map(self.load, range(first, stop))
            return
        with ThreadPoolExecutor(self.threads, thread_name_prefix="loader") as pool:
            ahead: list[Future[RankStep]] = []
            wanted = self.threads
            try:
                for step in range(first, stop):
                    while len(ahead) <= wanted and step + len(ahead) < stop:
                        ahead.append(pool.submit(self.load, step + len(ahead)))
                    ready = ahead.pop(0).result()
                    step_bytes = sum(batch.num_bytes for batch in ready.batches)
                    wanted = max(self.threads, min(MOST_AHEAD_STEPS, self.ahead_bytes // max(1, step_bytes)))
                    yield ready
            finally:
                for waiting in ahead:
                    waiting.cancel()

    def read(self, plan: StepPlan, pieces: Sequence[int]) -> dict[int, Document]:
        """The documents of some pieces of a step; a text that several of them share is read once."""
        numbers = list(dict.fromkeys(plan.rows.document[list(pieces)].tolist()))
        self.bad.count(len(numbers))
        images = self._room_for_images(plan, numbers)
        whole: dict[int, Document] = {}
        for lane, shards in enumerate(self.plan.shards):
            mine = [number for number in numbers if plan.lane[number] == lane]
            payloads = read_payloads(shards, plan.sample[mine], plan.record[mine])
            for number, payload in zip(mine, payloads, strict=True):
                whole[number] = self._document(shards, plan, number, payload, images[number])
        rows, found = plan.rows, dict[int, Document]()
        for piece in pieces:
            document, tokens = whole[int(rows.document[piece])], int(rows.tokens[piece])
            is_whole = tokens == document.tokens  # most are, and a copy takes longer than to look
            found[piece] = document if is_whole else replace(document, first=int(rows.first[piece]), tokens=tokens)
        return found

    def _deal(self, plan: StepPlan) -> list[list[list[int]]]:
        return packing.deal(plan.row_costs, self.world, self.plan.batch.micro_rows)

    def _tell_cache(self, step: int) -> None:
        """Tell the node's cache, where there is one, what the node's ranks will read in the steps to come."""
        if not self._cached:
            return
        for ahead in range(max(step, self._told + 1), step + TOLD_STEPS):
            plan = self._step_plan(ahead)
            rows = [row for ranks in self._deal(plan) for rank in self.node for row in ranks[rank]]
            documents = np.unique(plan.rows.document[[piece for row in rows for piece in plan.rows.row(row)]])
            wanted = [
                asked
                for lane, shards in enumerate(self.plan.shards)
                for mine in [documents[plan.lane[documents] == lane]]
                for asked in payload_ranges(shards, plan.sample[mine], plan.record[mine])
            ]
            # other ranks of the node may be behind
            self._cached[0].expect({ahead: wanted}, now=max(0, step - MOST_AHEAD_STEPS))
            self._told = ahead

    def _room_for_images(self, plan: StepPlan, numbers: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
        """Where each document's images are decoded to: one behind the other, in the order in which they are used."""
        counts = plan.record["images"][list(numbers)].astype(np.int64)
        stops = np.cumsum(counts)
        side = self.form.image_size
        room = np.empty((int(counts.sum()), side, side, 3), dtype=np.uint8)
        return {number: room[stop - count : stop] for number, count, stop in zip(numbers, counts, stops, strict=True)}

    def _document(
        self, shards: ShardSet, plan: StepPlan, number: int, payload: bytes | DataError, images: NDArray[np.uint8]
    ) -> Document:
        tokens = int(plan.record["tokens"][number])
        try:
            if isinstance(payload, DataError):
                raise payload
            sample = decode(shards.manifest.stream, payload)
            if isinstance(sample, UnderstandingSample):
                decode_images(sample.images, images)
            return Document(sample, tokens, drop_prompt=bool(plan.drop_prompt[number]), images=images)
        except DataError as error:
            self.bad.add(f"sample {plan.sample[number]} of {shards.folder}", error)
            return Document(None, tokens)


class BadSamples:
    """Counts damaged samples of a rank; DataError when there are too many."""

    def __init__(self, max_share: float):
        self.max_share, self.number, self.read = max_share, 0, 0
        self._lock = threading.Lock()

    def count(self, samples: int) -> None:
        with self._lock:
            self.read += samples

    def add(self, which: str, error: DataError) -> None:
        """One more, and why."""
        with self._lock:
            self.number += 1
            bearable = ALWAYS_BEARABLE + self.max_share * self.read if self.max_share else 0
            if self.number > bearable:
                raise DataError(
                    f"{self.number} of {self.read} samples are damaged, more than "
                    f"data.max_bad_share={self.max_share:g} allows; the last one is {which}: {error.message}",
                    f"{REMAKE_SHARD}; or raise data.max_bad_share to train without such samples",
                )
        log.warning("%s is damaged, training goes on without it: %s", which, error.message)


def payload_ranges(shards: ShardSet, samples: np.ndarray, records: np.ndarray) -> list[Range]:
    """Where the stored bytes of samples are."""
    numbers = shards.shard_of(samples).tolist()
    paths = {shard: shards.path(shard) for shard in set(numbers)}
    return [
        Range(paths[shard], offset, size)
        for shard, offset, size in zip(numbers, records["offset"].tolist(), records["bytes"].tolist(), strict=True)
    ]


def read_payloads(shards: ShardSet, samples: np.ndarray, records: np.ndarray) -> list[bytes | DataError]:
    """The stored bytes of samples; a DataError stands for one whose checksum is wrong, read twice."""
    wanted = payload_ranges(shards, samples, records)
    payloads: list[bytes | DataError] = []
    for asked, payload, right in zip(wanted, shards.reader.read(wanted), records["crc32"].tolist(), strict=True):
        if zlib.crc32(payload) == right:
            payloads.append(payload)
            continue
        payload = shards.reader.read_again(asked)
        found = zlib.crc32(payload)
        payloads.append(
            payload
            if found == right
            else DataError(
                f"{asked.path} from byte {asked.offset} has checksum {found:08x}, the index says {right:08x}",
                REMAKE_SHARD,
            )
        )
    return payloads
