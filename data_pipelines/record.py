"""Types that readers and steps exchange: units of input, their records, and the results of steps.

Invariant: a unit has the same records on every run while its files are unchanged, so work that is cut again after a
crash is the same work.
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
    """Path or URL of a file or folder."""
    size: int
    """Bytes, for progress; with the path they identify the version of the unit."""
    start: int = 0
    """Index of the first byte, row group or file, by the format."""
    stop: int | None = None
    """Index after the last one; None: to the end."""
    records: int | None = None
    """Number of records, if the format knows it."""
    names: tuple[str, ...] = ()
    """Names of the files of a folder."""
    stem: str = ""
    """Prefix of its records' keys: the path below the folder that all files of the input share, without the ending."""
    versions: tuple[tuple[str, str], ...] = ()
    """(path, version) of its files when the work was cut; not a part of its identity."""


@dataclass(frozen=True)
class Picture:
    """An encoded image: its bytes, or the path of its file."""

    source: str
    """Path or URL; for people, the position in a larger file."""
    content: bytes | None = None
    """None: to be read from `source`."""
    root: str = field(default="", compare=False)
    """Folder out of which a link at `source` must not lead; empty: no restriction."""


@dataclass(frozen=True)
class Record:
    """An entry of an input as it was read, before any check."""

    key: str
    """Key, unique in the input: that of the source if it has one."""
    source: str
    """File and position in the file, for people."""
    pictures: tuple[Picture, ...] = ()
    turns: tuple[Turn, ...] = ()
    """(question, answer) pairs (understanding), with `<image>` for each picture in turn; without any, all pictures are
    first."""
    context: tuple[int, ...] = ()
    """Indices of the turns whose answers are not learned, as the source says."""
    system: str = ""
    """System message of a conversation."""
    caption: str = ""
    """Caption of the image (generation)."""
    text: str = ""
    """A document (text), or text around `<image>` marks (understanding, plain layout)."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Other values of the entry by name, for `where`."""
    ignored: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """(key, reason) of each unused value of the entry; not a part of the record's identity."""


@dataclass(frozen=True)
class StepResult:
    """The result of a stream's step for a record."""

    samples: list[tuple[str, Sample]]
    """(key, sample) pairs: one, or several for a document that was cut."""
    facts: tuple[tuple[str, float], ...]
    """(name, value) pairs for histograms: `width`, `height`, `aspect` of each picture, `caption_chars`."""


class DroppedByRule(Exception):
    """A record that a rule of the recipe (`where`) excludes."""

    def __init__(self, rule: str, value: str):
        """Name the rule, such as `width >= 256`, and the record's value."""
        super().__init__(rule, value)
        self.rule, self.value = rule, value
