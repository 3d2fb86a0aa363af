"""Stages of a shard job: read, fetch pictures, make, encode.

Each stage is a generator that maps the outcomes of the one before. It works on records that are kept so far, of which
it may hold back some, and passes all other outcomes on at once. Invariant: kept records stay in the order of the input.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipelines.inputs import formats
from data_pipelines.inputs.entries import HEAD_BYTES
from data_pipelines.inputs.pictures import read_picture
from data_pipelines.limit import read_evenly
from data_pipelines.record import DroppedByRule, Picture, Record, StepResult, Unit
from data_pipelines.steps.generation import Generation, PromptAndCrop
from janus_dist.config.pipeline import InputConfig
from janus_dist.errors import DataError
from janus_dist.inspection.inspect import Reject

READERS = 16
"""Pictures that a job reads at once; a store answers in a tenth of a second, a core crops a hundred a second."""
BATCHES_AHEAD = 2
"""Batches that wait for their VQ ids while the next one is made."""

Value = TypeVar("Value", covariant=True)
Result = TypeVar("Result")
PendingIds = Callable[[], NDArray[np.uint16]]
"""Waits for the VQ ids of a batch: [images, ids] uint16."""


class EncodeFunction(Protocol):
    """A function that sends a batch of crops, [images, side, side, 3] uint8, to a VQ tokenizer."""

    def __call__(self, pixels: NDArray[np.uint8]) -> PendingIds: ...


@dataclass(frozen=True)
class Read:
    """An entry of the input that was read; an outcome of a later stage follows."""

    records: int
    """Records that it represents; an entry that cannot be read may represent several."""
    record: Record | None = None


@dataclass(frozen=True)
class Kept(Generic[Value]):
    """A record that passed a stage."""

    record: Record
    value: Value
    """What the stage made of it."""
    crop: NDArray[np.uint8] | None = None
    """Pixels of its VQ ids, [side, side, 3] uint8."""


@dataclass(frozen=True)
class DroppedRecord:
    """A record that breaks a rule of the recipe."""

    record: Record
    rule: str
    value: str


@dataclass(frozen=True)
class Rejected:
    """A bad record."""

    reject: Reject


Outcome = Read | Kept[Result] | DroppedRecord | Rejected


@dataclass
class StepClock:
    """Time spent in each step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time of a block to that of a step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - began


def attempt(record: Record, do: Callable[[Record], Result]) -> Kept[Result] | DroppedRecord | Rejected:
    """Return the outcome of a function of a record that raises DataError or DroppedByRule."""
    try:
        return Kept(record, do(record))
    except DataError as error:
        return Rejected(Reject(record.source, record.key, error.kind, error.message, _first_bytes(record)))
    except DroppedByRule as dropped:
        return DroppedRecord(record, dropped.rule, dropped.value)


def read(
    units: Sequence[Unit], limit: int | None, config: InputConfig, check: Callable[[Record], None], clock: StepClock
) -> Iterator[Outcome[Record]]:
    """Yield the entries of all units, and the outcome of the check before their pictures are read."""
    readers = (formats.records(config, unit) for unit in units)
    entries = chain.from_iterable(readers) if limit is None else read_evenly(readers, limit)
    while True:
        with clock.timed("read"):
            entry = next(entries, None)
        if entry is None:
            return
        if isinstance(entry, Reject):
            yield Read(entry.records)
            yield Rejected(entry)
        else:
            yield Read(1, entry)
            yield attempt(entry, lambda record: check(record) or record)


def fetch(outcomes: Iterator[Outcome[Record]], pool: ThreadPoolExecutor, clock: StepClock) -> Iterator[Outcome[Record]]:
    """Add the bytes of their pictures to records; up to READERS records are read ahead."""
    waiting: deque[tuple[Record, list[Future[Picture]]]] = deque()

    def fetched() -> Outcome[Record]:
        record, reading = waiting.popleft()
        with clock.timed("read"):
            return attempt(record, partial(_filled, reading))

    for outcome in outcomes:
        if not isinstance(outcome, Kept):
            yield outcome
            continue
        record = outcome.value
        reading = [pool.submit(read_picture, picture) for picture in record.pictures if picture.content is None]
        waiting.append((record, reading))
        if len(waiting) > READERS or not reading:
            yield fetched()
    while waiting:
        yield fetched()


def _filled(reading: Sequence[Future[Picture]], record: Record) -> Record:
    read = iter(reading)
    return replace(
        record,
        pictures=tuple(next(read).result() if picture.content is None else picture for picture in record.pictures),
    )


def make(
    outcomes: Iterator[Outcome[Record]], do: Callable[[Record], Result], clock: StepClock
) -> Iterator[Outcome[Result]]:
    """Apply a step to records."""
    for outcome in outcomes:
        if isinstance(outcome, Kept):
            with clock.timed("make"):
                made = attempt(outcome.value, do)
            yield made
        else:
            yield outcome


def encode_batches(
    outcomes: Iterator[Outcome[PromptAndCrop]], step: Generation, encode: EncodeFunction, batch: int, clock: StepClock
) -> Iterator[Outcome[StepResult]]:
    """Add VQ ids to samples; full batches of crops wait for their ids while the next ones are made."""
    ready: list[Kept[PromptAndCrop]] = []
    waiting: deque[tuple[list[Kept[PromptAndCrop]], PendingIds]] = deque()

    def send() -> None:
        with clock.timed("encode"):
            waiting.append((list(ready), encode(np.stack([kept.value.pixels for kept in ready]))))
        ready.clear()

    for outcome in outcomes:
        if not isinstance(outcome, Kept):
            yield outcome
            continue
        # the encoded bytes of the pictures are no longer needed
        ready.append(Kept(replace(outcome.record, pictures=()), outcome.value))
        if len(ready) == batch:
            send()
            if len(waiting) > BATCHES_AHEAD:
                yield from _finished(*waiting.popleft(), step, clock)
    if ready:
        send()
    while waiting:
        yield from _finished(*waiting.popleft(), step, clock)


def _finished(
    ready: list[Kept[PromptAndCrop]], encoded: PendingIds, step: Generation, clock: StepClock
) -> Iterator[Kept[StepResult]]:
    """Wait for the VQ ids of a batch and yield its samples."""
    with clock.timed("encode"):
        vq_ids = encoded()
    for kept, ids in zip(ready, vq_ids, strict=True):
        yield Kept(kept.record, step.finish(kept.value, ids), kept.value.pixels)


def _first_bytes(record: Record) -> bytes:
    """Return the first bytes of a record's first picture, else of its text."""
    content = next((picture.content for picture in record.pictures if picture.content), None)
    return (content or (record.caption or record.text).encode(errors="backslashreplace"))[:HEAD_BYTES]
