"""Loading of one rank's batches: its rows of the plan, their bytes, the packed tensors; threads read ahead.

Invariant: no batch depends on state of the loader. `load(step)` depends only on the plan, the rank and the world size,
so a resumed run needs only the step number. Pad tokens without labels replace a damaged sample, so no other sample
moves.
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
from janus_dist.data.reader import ByteRange
from janus_dist.data.sample import UnderstandingSample, decode
from janus_dist.errors import DataError
from janus_dist.storage.repair import REMAKE_SHARD

THREADS = 2
"""Default number of steps that are loaded at the same time."""
MOST_AHEAD_STEPS = 32
"""Most steps that are loaded ahead of training."""
CACHE_HINT_STEPS = 64
"""Steps ahead of training whose reads the node's cache is told; a step takes 10 to 20 ms to plan."""
MIN_TOLERATED_BAD_SAMPLES = 4
"""Damaged samples that a rank tolerates even when it has read few; beyond, `data.max_bad_share` decides."""

log = logging.getLogger("janus_dist")


@dataclass(frozen=True)
class RankStep:
    """One step of one rank: the global plan, and the rank's own batch for every micro-step."""

    plan: StepPlan
    batches: list[Batch]
    straggler_ratio: float
    """Cost of the slowest rank divided by the mean cost of all ranks, by the plan's costs."""
    bad_samples: int
    """Damaged samples that this rank has read so far."""


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
        """Create the loader of rank `rank` in a world of `world` ranks.

        `threads` steps are loaded at the same time (0: the caller's thread loads them), as far ahead as batches of
        `ahead_bytes` bytes. `node` holds the ranks of this node, whose reads the node's cache is told; default: this
        rank only.
        """
        self.form, self.rank, self.world = form, rank, world
        self.threads, self.ahead_bytes = threads, ahead_bytes
        self.bad = BadSampleCounter(max_bad_share)
        self.node = node or range(rank, rank + 1)
        self.use(plan)

    def use(self, plan: Plan) -> None:
        """Load batches of this plan from now on."""
        self.plan = plan
        # all shard sets of a rank share one reader
        self._caching_readers = [shards.reader for shards in plan.shards if shards.reader.caches][:1]
        self._step_plan = lru_cache(maxsize=2 * CACHE_HINT_STEPS if self._caching_readers else 1)(plan.step)
        self._last_hinted_step = -1

    def load(self, step: int) -> RankStep:
        """Plan and read one step (counted from 0).

        Raises DataError when too many samples are damaged or a shard cannot be read.
        """
        plan = self._step_plan(step)
        dealt = self._deal(plan)
        self._tell_cache(step)
        pieces = [[piece for row in ranks[self.rank] for piece in plan.rows.row(row)] for ranks in dealt]
        documents = self.read(plan, [piece for micro_step in pieces for piece in micro_step])
        batches = [collate([documents[piece] for piece in micro_step], self.form) for micro_step in pieces]
        return RankStep(plan, batches, packing.straggler_ratio(plan.row_costs, dealt), self.bad.number)

    def steps(self, first: int, stop: int) -> Iterator[RankStep]:
        """Yield the steps `first` to `stop - 1`, each read while earlier steps train.

        Raises DataError when too many samples are damaged or a shard cannot be read.
        """
        if self.threads == 0:
            yield from map(self.load, range(first, stop))
            return
        with ThreadPoolExecutor(self.threads, thread_name_prefix="loader") as pool:
            ahead: list[Future[RankStep]] = []
            num_ahead = self.threads
            try:
                for step in range(first, stop):
                    while len(ahead) <= num_ahead and step + len(ahead) < stop:
                        ahead.append(pool.submit(self.load, step + len(ahead)))
                    ready = ahead.pop(0).result()
                    step_bytes = sum(batch.num_bytes for batch in ready.batches)
                    num_ahead = max(self.threads, min(MOST_AHEAD_STEPS, self.ahead_bytes // max(1, step_bytes)))
                    yield ready
            finally:
                for future in ahead:
                    future.cancel()

    def read(self, plan: StepPlan, pieces: Sequence[int]) -> dict[int, Document]:
        """Return the documents of some pieces of a step by piece; a text that several pieces share is read once.

        Raises DataError when too many samples are damaged or a shard cannot be read.
        """
        indices = list(dict.fromkeys(plan.rows.document[list(pieces)].tolist()))
        self.bad.count(len(indices))
        images = self._image_buffers(plan, indices)
        whole: dict[int, Document] = {}
        for lane, shards in enumerate(self.plan.shards):
            in_lane = [index for index in indices if plan.lane[index] == lane]
            payloads = read_payloads(shards, plan.sample[in_lane], plan.record[in_lane])
            for index, payload in zip(in_lane, payloads, strict=True):
                whole[index] = self._document(shards, plan, index, payload, images[index])
        rows, documents = plan.rows, dict[int, Document]()
        for piece in pieces:
            document, tokens = whole[int(rows.document[piece])], int(rows.tokens[piece])
            is_whole = tokens == document.tokens  # true for most; a copy takes longer than this comparison
            documents[piece] = document if is_whole else replace(document, first=int(rows.first[piece]), tokens=tokens)
        return documents

    def _deal(self, plan: StepPlan) -> list[list[list[int]]]:
        """Return the rows of each rank in each micro-step, as `packing.deal`."""
        return packing.deal(plan.row_costs, self.world, self.plan.batch.micro_rows)

    def _tell_cache(self, step: int) -> None:
        """Tell the node's cache, if it exists, what the node's ranks will read in the coming steps."""
        if not self._caching_readers:
            return
        for ahead in range(max(step, self._last_hinted_step + 1), step + CACHE_HINT_STEPS):
            plan = self._step_plan(ahead)
            rows = [row for ranks in self._deal(plan) for rank in self.node for row in ranks[rank]]
            documents = np.unique(plan.rows.document[[piece for row in rows for piece in plan.rows.row(row)]])
            ranges = [
                payload_range
                for lane, shards in enumerate(self.plan.shards)
                for in_lane in [documents[plan.lane[documents] == lane]]
                for payload_range in payload_ranges(shards, plan.sample[in_lane], plan.record[in_lane])
            ]
            # other ranks of the node may be behind
            self._caching_readers[0].expect({ahead: ranges}, now=max(0, step - MOST_AHEAD_STEPS))
            self._last_hinted_step = ahead

    def _image_buffers(self, plan: StepPlan, indices: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
        """Return each document's buffer for its images: [image, side, side, 3] uint8.

        The buffers are adjacent slices of one array, in the order in which they are used.
        """
        counts = plan.record["images"][list(indices)].astype(np.int64)
        stops = np.cumsum(counts)
        side = self.form.image_size
        pixels = np.empty((int(counts.sum()), side, side, 3), dtype=np.uint8)
        return {index: pixels[stop - count : stop] for index, count, stop in zip(indices, counts, stops, strict=True)}

    def _document(
        self, shards: ShardSet, plan: StepPlan, index: int, payload: bytes | DataError, images: NDArray[np.uint8]
    ) -> Document:
        """Return a document with its images decoded into `images`: [image, side, side, 3] uint8.

        A damaged sample is counted and becomes a document without a sample.
        """
        tokens = int(plan.record["tokens"][index])
        try:
            if isinstance(payload, DataError):
                raise payload
            sample = decode(shards.manifest.stream, payload)
            if isinstance(sample, UnderstandingSample):
                decode_images(sample.images, images)
            return Document(sample, tokens, drop_prompt=bool(plan.drop_prompt[index]), images=images)
        except DataError as error:
            self.bad.add(f"sample {plan.sample[index]} of {shards.folder}", error)
            return Document(None, tokens)


class BadSampleCounter:
    """A rank's counter of samples and damaged samples, which tolerates a share of damaged ones."""

    def __init__(self, max_share: float):
        self.max_share, self.number, self.read = max_share, 0, 0
        self._lock = threading.Lock()

    def count(self, samples: int) -> None:
        """Count samples that are about to be read."""
        with self._lock:
            self.read += samples

    def add(self, which: str, error: DataError) -> None:
        """Count and log one damaged sample; raise DataError when there are too many."""
        with self._lock:
            self.number += 1
            tolerated = MIN_TOLERATED_BAD_SAMPLES + self.max_share * self.read if self.max_share else 0
            if self.number > tolerated:
                raise DataError(
                    f"{self.number} of {self.read} samples are damaged, more than "
                    f"data.max_bad_share={self.max_share:g} allows; the last one is {which}: {error.message}",
                    f"{REMAKE_SHARD}; or raise data.max_bad_share to train without such samples",
                )
        log.warning("%s is damaged, training continues without it: %s", which, error.message)


def payload_ranges(shards: ShardSet, samples: np.ndarray, records: np.ndarray) -> list[ByteRange]:
    """Return the range of each sample's stored bytes.

    `samples`: [sample] int64 indices in the shard set; `records`: [sample] INDEX_DTYPE.
    """
    shard_indices = shards.shard_of(samples).tolist()
    paths = {shard: shards.path(shard) for shard in set(shard_indices)}
    return [
        ByteRange(paths[shard], offset, size)
        for shard, offset, size in zip(
            shard_indices, records["offset"].tolist(), records["bytes"].tolist(), strict=True
        )
    ]


def read_payloads(shards: ShardSet, samples: np.ndarray, records: np.ndarray) -> list[bytes | DataError]:
    """Return the stored bytes of samples; a DataError in place of one whose checksum is wrong after a second read.

    `samples`: [sample] int64 indices in the shard set; `records`: [sample] INDEX_DTYPE. Raises DataError when a shard
    cannot be read.
    """
    ranges = payload_ranges(shards, samples, records)
    payloads: list[bytes | DataError] = []
    for stored, payload, expected in zip(ranges, shards.reader.read(ranges), records["crc32"].tolist(), strict=True):
        if zlib.crc32(payload) == expected:
            payloads.append(payload)
            continue
        payload = shards.reader.read_again(stored)
        crc32 = zlib.crc32(payload)
        payloads.append(
            payload
            if crc32 == expected
            else DataError(
                f"{stored.path} from byte {stored.offset} has checksum {crc32:08x}, the index says {expected:08x}",
                REMAKE_SHARD,
            )
        )
    return payloads
