"""What passes between readers and steps: units of input, the records in them, and what becomes of those not used.

Invariant: a unit names the same records on every run while its files stay as they are, so work that is cut again after
a crash is the same work.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from janus_dist.data.sample import Sample

Turn = tuple[str, str]


@dataclass(frozen=True)
class Unit:
    """The smallest piece of an input that a reader can begin at."""

    path: str
    """File or folder, local or s3://."""
    size: int
    """Bytes of it, for progress; with the path, what tells it from another version of itself."""
    start: int = 0
    """First byte, row group or file, by the format."""
    stop: int | None = None
    """One past the last; None: to the end."""
    records: int | None = None
    """How many records are in it, where the format says so."""
    names: tuple[str, ...] = ()
    """Files of a folder."""
    stem: str = ""
    """What keys of its records begin with: the path below what all files of the input share, without its ending."""
    versions: tuple[tuple[str, str], ...] = ()
    """(path, version) of the files that it is read from, when the work was cut; does not count for what it is."""


@dataclass(frozen=True)
class Picture:
    """An encoded image: its bytes, or where they are."""

    source: str
    """Path or URL, or the place in a larger file, for people."""
    content: bytes | None = None
    """None: to be read from `source`."""
    root: str = field(default="", compare=False)
    """Folder that a link at `source` must not lead out of; it may lead anywhere when empty."""


@dataclass(frozen=True)
class Record:
    """One entry of an input, as it was found: nothing of it is checked yet."""

    key: str
    """Unique in its input: that of the source where it has one."""
    source: str
    """File and place in it, for people."""
    pictures: tuple[Picture, ...] = ()
    turns: tuple[Turn, ...] = ()
    """Questions and answers (understanding); `<image>` stands for each picture in turn; without any, all come first."""
    context: tuple[int, ...] = ()
    """Numbers of the turns whose answers are read but not learned, as the source says."""
    system: str = ""
    """What a conversation's system message says."""
    caption: str = ""
    """(generation)"""
    text: str = ""
    """A document (text), or text around `<image>` marks (understanding, plain layout)."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Other values of the entry, for `where`."""
    ignored: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """(key, reason) of each value of the entry that is not used; what was not read makes no other record."""


@dataclass(frozen=True)
class Made:
    """What a stream's step made of a record."""

    samples: list[tuple[str, Sample]]
    """(key, sample) pairs: one, or several of a document that was cut."""
    facts: tuple[tuple[str, float], ...]
    """(name, value) pairs for histograms: `width`, `height`, `aspect` of each picture, `caption_chars`."""


class Dropped(Exception):
    """A record that a rule of the recipe (`where`) leaves out."""

    def __init__(self, rule: str, value: str):
        """`rule`: as `width >= 256`; `value`: what the record has."""
        super().__init__(rule, value)
        self.rule, self.value = rule, value
