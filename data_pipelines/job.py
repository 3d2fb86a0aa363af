"""A shard job from its units to its marker, in one process and without Ray.

    read -> make (decode, crop, token ids) -> [VQ ids] -> write -> commit

Invariants: every entry of the units is a sample, a line of the quarantine table, or counted under the rule that dropped
it; only one shard, the pictures read ahead and the batches in the VQ tokenizers are in memory.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice, repeat
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipelines import work
from data_pipelines.inputs import files, formats
from data_pipelines.inputs.entries import HEAD_BYTES
from data_pipelines.inputs.pictures import read_picture
from data_pipelines.inputs.versions import check_unchanged, digest
from data_pipelines.limit import read_evenly
from data_pipelines.record import Dropped, Made, Picture, Record, Unit
from data_pipelines.reports import Report, Reporter, Send
from data_pipelines.steps import keep
from data_pipelines.steps.generation import Generation, Prepared
from data_pipelines.steps.text import Text
from data_pipelines.steps.understanding import Understanding
from data_pipelines.work import Marker, ShardJob
from janus_dist.config.mix import Stream
from janus_dist.config.pipeline import InputConfig
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data import images
from janus_dist.data.sample import GenerationSample, Sample
from janus_dist.data.shard import ShardEntry, write_shard
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError
from janus_dist.inspection.inspect import Example, Reject, kinds
from janus_dist.storage.lease import Claim

READERS = 16
"""Pictures that a job reads at once; a store answers in a tenth of a second, a core crops a hundred a second."""
BATCHES_AHEAD = 2
"""Batches that wait for their VQ ids while the next one is made."""
IGNORED_KEYS = 200
"""Keys that a job counts separately: objects whose keys are data have new keys in each record."""
OTHER_KEYS = "(other keys)"
EXAMPLES = 2
"""Examples for people: of records that were kept, and of those that each rule dropped."""
EXAMPLE_SIDE = 160
"""Longest side of an example's image in pixels."""
EXAMPLE_QUALITY = 85
"""JPEG quality of an example's image."""
EXAMPLE_PIXELS = 50_000_000
"""Most pixels of a picture from which an example is made."""
WORDS = 300
"""Characters of an example's text."""
MOST_COLUMNS = 500
"""Columns that are counted; JSON may have as many different keys as records."""

Result = TypeVar("Result")
Encoded = Callable[[], NDArray[np.uint16]]
"""Waits for the VQ ids of a batch: [images, ids] uint16."""


class Encode(Protocol):
    """A function that sends a batch of crops, [images, side, side, 3] uint8, to a VQ tokenizer."""

    def __call__(self, pixels: NDArray[np.uint8]) -> Encoded: ...


@dataclass(frozen=True)
class InputWork:
    """The work on one input, shared by all of its jobs."""

    name: str
    stream: Stream
    folder: str
    """Folder of the shards."""
    source: InputConfig
    recipe: BaseRecipe
    tokenizer: Tokenizer
    claim: Claim | None = None
    """The lease of the folder, which every commit checks."""


@dataclass
class Tally:
    """Counts of a job's records while it runs."""

    with_examples: bool
    records: int = 0
    rejects: list[Reject] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    """Records with a value, by column."""
    ignored: dict[str, Counter[str]] = field(default_factory=dict)
    """Records by key and reason of values that are not used."""
    histograms: dict[str, Counter[str]] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    kept: int = 0
    job: ShardJob | None = None
    reporter: Reporter = field(default_factory=lambda: Reporter(None))
    bytes_before: int = field(default_factory=files.bytes_read)

    def ignore(self, record: Record) -> None:
        """Count the unused values of a record; keys beyond IGNORED_KEYS are counted as one."""
        for key, reason in record.ignored:
            name = key if key in self.ignored or len(self.ignored) < IGNORED_KEYS else OTHER_KEYS
            self.ignored.setdefault(_escaped(name), Counter())[reason] += 1

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time of a block to that of a step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - began

    def attempt(self, record: Record, do: Callable[[Record], Result]) -> Result | None:
        """Return what `do` makes of a record; None when the record is bad or dropped, which is noted."""
        try:
            return do(record)
        except DataError as error:
            self.rejects.append(Reject(record.source, record.key, error.kind, error.message, _first_bytes(record)))
        except Dropped as dropped:
            self.dropped[dropped.rule] += 1
            if self.with_examples and self.dropped[dropped.rule] <= EXAMPLES:
                self.examples.append(_example(record, dropped.rule, dropped.value, _thumbnail(record)))
        return None

    def report(self) -> None:
        """Send the progress of the job when it is due."""
        if self.job is None or not self.reporter.is_due:
            return
        done = self.kept + sum(self.dropped.values()) + sum(reject.records for reject in self.rejects)
        total = self.job.limit or sum(unit.records or 0 for unit in self.job.units)
        if self.job.limit is None and any(unit.records is None for unit in self.job.units):
            read = (files.bytes_read() - self.bytes_before) / max(1, self.job.size)
            total = self.records / read if read else 0
        share = min(1.0, done / total) if total else 0.0
        self.reporter.put(Report(share, done, kinds(self.rejects), first_reasons(self.rejects), dict(self.seconds)))

    def note_columns(self, record: Record) -> None:
        """Count the columns that have a value in a record."""
        for name, value in record.columns.items():
            if (name in self.columns or len(self.columns) < MOST_COLUMNS) and not keep.is_missing(value):
                self.columns[name] += 1

    def made(self, record: Record, made: Made, crop: NDArray[np.uint8] | None = None) -> Made:
        """Note a record that was kept. `crop`: the pixels of its VQ ids, [side, side, 3] uint8."""
        self.kept += 1
        self.report()
        for name, value in made.facts:
            self.histograms.setdefault(name, Counter())[bin_of(value)] += 1
        if self.with_examples and crop is not None and sum(not example.rule for example in self.examples) < EXAMPLES:
            image = images.encode(Image.fromarray(crop), EXAMPLE_QUALITY)
            key, sample = made.samples[0]
            assert isinstance(sample, GenerationSample), "only these have crops"
            self.examples.append(_example(replace(record, key=key), "", "", image, tuple(sample.vq_ids.tolist())))
        return made


def run_job(
    job: ShardJob, input_work: InputWork, encode: Encode | None, with_examples: bool, send: Send | None = None
) -> Marker | None:
    """Do a job, commit it and return its marker; None when another attempt has already committed it.

    `encode` is needed for the generation stream; `send` receives reports of progress. Raises OSError when the input's
    files or the output cannot be reached, DataError when a file has changed since the work was cut, and LeaseLostError
    when another run has taken over the folder.
    """
    check_unchanged(job.units)
    tally = Tally(with_examples, job=job, reporter=Reporter(send))
    attempt, shards = work.attempt_name(), list[ShardEntry]()
    special = (input_work.tokenizer.boi, input_work.tokenizer.image, input_work.tokenizer.eoi)
    samples = _samples(job, input_work, encode, tally)
    while part := list(islice(samples, input_work.recipe.pipeline.shard_samples)):
        with tally.timed("write"):
            name = work.shard_name(job, len(shards), attempt)
            shards.append(write_shard(input_work.folder, name, part, input_work.recipe.model, special))
    marker = Marker(
        job=job.digest,
        number=job.number,
        attempt=attempt,
        records=tally.records,
        shards=tuple(shards),
        rejects=tuple(_with_valid_text(reject) for reject in tally.rejects),
        dropped=dict(tally.dropped),
        columns=dict(tally.columns),
        ignored={key: dict(reasons) for key, reasons in tally.ignored.items()},
        histograms={name: dict(bins) for name, bins in tally.histograms.items()},
        examples=tuple(tally.examples),
        seconds={step: round(seconds, 3) for step, seconds in tally.seconds.items()},
        versions=digest(job.units),
    )
    check_unchanged(job.units)  # again: a file that was cut short during the job ends like a complete one
    return marker if work.commit(input_work.folder, marker, input_work.claim) else None


def prepared(input_work: InputWork) -> list[Prepared]:
    """Return the prompts and crops of a generation input's records that are neither bad nor dropped, in order."""
    step, tally = Generation(input_work.recipe, input_work.source, input_work.tokenizer), Tally(with_examples=False)
    units = formats.units(input_work.source, input_work.recipe.pipeline.shard_samples)
    with ThreadPoolExecutor(READERS, thread_name_prefix="pictures") as pool:
        records = _fetched(_records(units, None, input_work, step.check, tally), pool, tally)
        return [sample for _, sample in _prepared(records, step, tally)]


def first_reasons(rejects: Sequence[Reject]) -> dict[str, str]:
    """Return the first reason of each kind, with the key of its record."""
    reasons: dict[str, str] = {}
    for reject in rejects:
        reasons.setdefault(reject.kind, f"{reject.key}: {reject.reason}")
    return reasons


def bin_of(value: float) -> str:
    """Return the lower edge of a value's bin in a histogram, which has four bins per power of two."""
    return "0" if value <= 0 else f"{2 ** (np.floor(4 * np.log2(value)) / 4):.4g}"


def _samples(job: ShardJob, input_work: InputWork, encode: Encode | None, tally: Tally) -> Iterator[tuple[str, Sample]]:
    """Yield the (key, sample) pairs of a job, in the order of its records."""
    match input_work.stream:
        case "text":
            step = Text(input_work.recipe, input_work.source, input_work.tokenizer)
        case "understanding":
            step = Understanding(input_work.recipe, input_work.source, input_work.tokenizer)
        case "generation":
            step = Generation(input_work.recipe, input_work.source, input_work.tokenizer)
    with ThreadPoolExecutor(READERS, thread_name_prefix="pictures") as pool:
        records = _fetched(_records(job.units, job.limit, input_work, step.check, tally), pool, tally)
        if isinstance(step, Generation):
            assert encode is not None
            results = _encoded(records, step, encode, input_work.recipe.pipeline.encode_batch, tally)
        else:
            results = _made(records, step.make, tally)
        for made in results:
            yield from made.samples


def _records(
    units: Sequence[Unit], limit: int | None, input_work: InputWork, check: Callable[[Record], None], tally: Tally
) -> Iterator[Record]:
    """Yield the records of all units that pass the checks before their pictures are read."""
    source = input_work.source.model_copy(update={"stream": input_work.stream})  # the source itself may leave it out
    readers = (formats.records(source, unit) for unit in units)
    entries = chain.from_iterable(readers) if limit is None else read_evenly(readers, limit)
    while True:
        tally.report()
        with tally.timed("read"):
            entry = next(entries, None)
        if entry is None:
            return
        tally.records += entry.records if isinstance(entry, Reject) else 1
        if isinstance(entry, Reject):
            tally.rejects.append(entry)
            continue
        if input_work.source.where:
            tally.note_columns(entry)
        tally.ignore(entry)
        if tally.attempt(entry, lambda record: check(record) or record) is not None:
            yield entry


def _fetched(records: Iterator[Record], pool: ThreadPoolExecutor, tally: Tally) -> Iterator[Record]:
    """Yield the records with the bytes of their pictures, which are read ahead."""
    waiting: deque[tuple[Record, list[Future[Picture]]]] = deque()
    for record in chain(records, repeat(None)):
        if record is not None:
            waiting.append(
                (record, [pool.submit(read_picture, picture) for picture in record.pictures if picture.content is None])
            )
            if len(waiting) <= READERS and waiting[-1][1]:
                continue
        elif not waiting:
            return
        first, reading = waiting.popleft()
        with tally.timed("read"):
            filled = tally.attempt(first, partial(_filled, reading))
        if filled is not None:
            yield filled


def _filled(reading: Sequence[Future[Picture]], record: Record) -> Record:
    read = iter(reading)
    return replace(
        record,
        pictures=tuple(next(read).result() if picture.content is None else picture for picture in record.pictures),
    )


def _made(records: Iterator[Record], make: Callable[[Record], Made], tally: Tally) -> Iterator[Made]:
    for record in records:
        with tally.timed("make"):
            made = tally.attempt(record, make)
        if made is not None:
            yield tally.made(record, made)


def _encoded(records: Iterator[Record], step: Generation, encode: Encode, batch: int, tally: Tally) -> Iterator[Made]:
    """Yield the results in order, while full batches of crops wait for their VQ ids and the next ones are made."""
    waiting: deque[tuple[list[tuple[Record, Prepared]], Encoded]] = deque()
    prepared = _prepared(records, step, tally)
    while ready := list(islice(prepared, batch)):
        with tally.timed("encode"):
            waiting.append((ready, encode(np.stack([one.pixels for _, one in ready]))))
        if len(waiting) > BATCHES_AHEAD:
            yield from _finished(*waiting.popleft(), step, tally)
    while waiting:
        yield from _finished(*waiting.popleft(), step, tally)


def _prepared(records: Iterator[Record], step: Generation, tally: Tally) -> Iterator[tuple[Record, Prepared]]:
    for record in records:
        with tally.timed("make"):
            prepared = tally.attempt(record, step.prepare)
        if prepared is not None:
            yield replace(record, pictures=()), prepared  # the encoded bytes are no longer needed


def _finished(ready: list[tuple[Record, Prepared]], encoded: Encoded, step: Generation, tally: Tally) -> Iterator[Made]:
    with tally.timed("encode"):
        vq_ids = encoded()
    for (record, prepared), ids in zip(ready, vq_ids, strict=True):
        yield tally.made(record, step.finish(prepared, ids), prepared.pixels)


def _with_valid_text(reject: Reject) -> Reject:
    """Return a reject whose texts are valid Unicode: names of files may not be UTF-8."""
    return replace(reject, **{name: _escaped(getattr(reject, name)) for name in ("source", "key", "reason")})


def _escaped(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _example(record: Record, rule: str, value: str, image: bytes, vq_ids: tuple[int, ...] = ()) -> Example:
    words = record.caption or record.text or "\n".join(map("\n".join, record.turns))
    return Example(
        _escaped(record.key), _escaped(record.source), rule, _escaped(value), _escaped(words[:WORDS]), image, vq_ids
    )


def _thumbnail(record: Record) -> bytes:
    """Return a small JPEG of a record's first picture; empty when it has none or it cannot be decoded."""
    content = record.pictures[0].content if record.pictures else None
    if content is None:
        return b""
    try:
        image = images.load(content, EXAMPLE_PIXELS)
    except DataError:
        return b""
    image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    return images.encode(image, EXAMPLE_QUALITY)


def _first_bytes(record: Record) -> bytes:
    """Return the first bytes of a record's first picture, else of its text."""
    content = next((picture.content for picture in record.pictures if picture.content), None)
    return (content or (record.caption or record.text).encode(errors="backslashreplace"))[:HEAD_BYTES]
