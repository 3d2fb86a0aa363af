"""What happened to a run beside its steps: starts, resumes, saves, skipped steps, stops. One JSON line each in
events.jsonl of the run's folder.

Invariant: lines are only added, each in one write, so that a killed run damages at most its last one.
"""

import json
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from janus_dist.data.json_lines import read_records

Kind = Literal[
    "started", "resumed", "saved", "not saved", "skipped", "went back", "slow", "lost", "stopped", "failed", "note"
]
WARNINGS: tuple[Kind, ...] = ("not saved", "skipped", "went back", "slow", "lost", "failed")
FILE = "events.jsonl"
VARIES = re.compile(r"(?<!rank )(?<![\w.-])\d+(\.\d+)?(e[+-]?\d+)?(?![\w-]|\.\d)|(?<=step-)\d+")
"""Numbers of one occurrence: steps, seconds, losses. Not those of ranks, nor those in names and addresses of nodes."""


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    time: float
    """Unix time."""
    step: int
    kind: Kind
    text: str

    @property
    def what(self) -> tuple[Kind, str]:
        """The same for events that differ in when they happened and how much of it there was, not in what or where."""
        return self.kind, VARIES.sub("N", self.text)


def record(run_dir: Path, kind: Kind, step: int, text: str) -> None:
    """Add a line; a disk that refuses costs the line, not the run."""
    event = Event(time.time(), step, kind, text)
    try:
        with (run_dir / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(event)) + "\n")
    except OSError:
        pass


def read(run_dir: Path) -> list[Event]:
    """Return all events of a run in order; a line that is not an event is left out."""
    events: list[Event] = []
    for values in read_records(run_dir / FILE):
        with suppress(TypeError):  # an event of another version
            events.append(Event(**values))
    return events
