"""Counts of a job's records, examples of them, and reports of progress.

Invariant: counts depend only on the outcomes of the stages and their order.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from data_pipelines.inputs import files
from data_pipelines.record import Record, StepResult
from data_pipelines.reports import Report, Reporter
from data_pipelines.stages import DroppedRecord, Kept, Outcome, Read, Rejected, StepClock
from data_pipelines.steps import keep
from data_pipelines.work import ShardJob
from janus_dist.data import images
from janus_dist.data.sample import GenerationSample
from janus_dist.errors import DataError
from janus_dist.inspection.inspect import Example, Reject, kinds

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


@dataclass
class JobTally:
    """Counts of a job's records while it runs."""

    with_examples: bool
    has_rules: bool = False
    """Whether the recipe has rules on columns, whose values are counted then."""
    records: int = 0
    rejects: list[Reject] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    """Records with a value, by column."""
    ignored: dict[str, Counter[str]] = field(default_factory=dict)
    """Records by key and reason of values that are not used."""
    histograms: dict[str, Counter[str]] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    clock: StepClock = field(default_factory=StepClock)
    kept: int = 0
    job: ShardJob | None = None
    reporter: Reporter = field(default_factory=lambda: Reporter(None))
    bytes_before: int = field(default_factory=files.bytes_read)

    def ignore(self, record: Record) -> None:
        """Count the unused values of a record; keys beyond IGNORED_KEYS are counted as one."""
        for key, reason in record.ignored:
            name = key if key in self.ignored or len(self.ignored) < IGNORED_KEYS else OTHER_KEYS
            self.ignored.setdefault(escaped(name), Counter())[reason] += 1

    def count(self, outcome: Outcome[StepResult]) -> None:
        """Count an outcome of a job's stages."""
        match outcome:
            case Read():
                self.report()
                self.records += outcome.records
                if outcome.record is not None:
                    if self.has_rules:
                        self.note_columns(outcome.record)
                    self.ignore(outcome.record)
            case Rejected():
                self.rejects.append(outcome.reject)
            case DroppedRecord():
                self.dropped[outcome.rule] += 1
                if self.with_examples and self.dropped[outcome.rule] <= EXAMPLES:
                    record = outcome.record
                    self.examples.append(_example(record, outcome.rule, outcome.value, _thumbnail(record)))
            case Kept():
                self.keep(outcome)

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
        self.reporter.put(
            Report(share, done, kinds(self.rejects), first_reasons(self.rejects), dict(self.clock.seconds))
        )

    def note_columns(self, record: Record) -> None:
        """Count the columns that have a value in a record."""
        for name, value in record.columns.items():
            if (name in self.columns or len(self.columns) < MOST_COLUMNS) and not keep.is_missing(value):
                self.columns[name] += 1

    def keep(self, kept: Kept[StepResult]) -> None:
        """Count a record that was kept."""
        self.kept += 1
        self.report()
        for name, value in kept.value.facts:
            self.histograms.setdefault(name, Counter())[bin_of(value)] += 1
        has_room = sum(not example.rule for example in self.examples) < EXAMPLES
        if self.with_examples and kept.crop is not None and has_room:
            image = images.encode(Image.fromarray(kept.crop), EXAMPLE_QUALITY)
            key, sample = kept.value.samples[0]
            assert isinstance(sample, GenerationSample), "only these have crops"
            vq_ids = tuple(sample.vq_ids.tolist())
            self.examples.append(_example(replace(kept.record, key=key), "", "", image, vq_ids))


def first_reasons(rejects: Sequence[Reject]) -> dict[str, str]:
    """Return the first reason of each kind, with the key of its record."""
    reasons: dict[str, str] = {}
    for reject in rejects:
        reasons.setdefault(reject.kind, f"{reject.key}: {reject.reason}")
    return reasons


def bin_of(value: float) -> str:
    """Return the lower edge of a value's bin in a histogram, which has four bins per power of two."""
    return "0" if value <= 0 else f"{2 ** (np.floor(4 * np.log2(value)) / 4):.4g}"


def escaped(text: str) -> str:
    """Return a text with the escapes of characters that UTF-8 cannot encode."""
    return text.encode(errors="backslashreplace").decode()


def _example(record: Record, rule: str, value: str, image: bytes, vq_ids: tuple[int, ...] = ()) -> Example:
    words = record.caption or record.text or "\n".join(map("\n".join, record.turns))
    return Example(
        escaped(record.key), escaped(record.source), rule, escaped(value), escaped(words[:WORDS]), image, vq_ids
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
