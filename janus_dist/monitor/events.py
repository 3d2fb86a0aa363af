"""Events of a run: starts, resumes, saves, skipped steps, stops. Each is one JSON line in events.jsonl of the run's
folder.

Invariant: lines are only appended, each in one write, so that a killed run damages at most its last line.
"""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from janus_dist.storage.json_lines import read_records

Kind = Literal[
    "started", "resumed", "saved", "not saved", "skipped", "went back", "slow", "lost", "stopped", "failed", "note"
]
WARNINGS: tuple[Kind, ...] = ("not saved", "skipped", "went back", "slow", "lost", "failed")
"""Kinds of events that need the attention of a person."""
FILE = "events.jsonl"


@dataclass(frozen=True)
class Event:
    """One event of a run."""

    time: float
    """Unix time."""
    step: int
    kind: Kind
    text: str
    subject: str | None = None
    """Text that events share when they differ only in their time or in figures; None when `text` is such a text."""

    @property
    def group(self) -> tuple[Kind, str]:
        """Return the kind and the subject, which are equal for events that are shown as one."""
        return self.kind, self.text if self.subject is None else self.subject


def record(run_dir: Path, kind: Kind, step: int, text: str, subject: str | None = None) -> None:
    """Append an event to the file; when the disk refuses the write, the event is lost and the run continues."""
    line = asdict(Event(time.time(), step, kind, text, subject))
    if subject is None:
        del line["subject"]
    try:
        with (run_dir / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError:
        pass


def read(run_dir: Path) -> list[Event]:
    """Return all events of a run in order; a line that is not an event is left out."""
    events: list[Event] = []
    for values in read_records(run_dir / FILE):
        with suppress(TypeError):  # an event of another version
            events.append(Event(**values))
    return events
