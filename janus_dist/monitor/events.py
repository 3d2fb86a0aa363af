"""What happened to a run beside its steps: starts, resumes, saves, skipped steps, stops. One JSON line each in
events.jsonl of the run's folder.

Invariant: lines are only added, each in one write, so that a killed run damages at most its last one.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Kind = Literal[
    "started", "resumed", "saved", "not saved", "skipped", "went back", "slow", "lost", "stopped", "failed", "note"
]
WARNINGS: tuple[Kind, ...] = ("not saved", "skipped", "went back", "slow", "lost", "failed")
FILE = "events.jsonl"


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    time: float
    """Unix time."""
    step: int
    kind: Kind
    text: str
    subject: str | None = None
    """What happened and where, the same for events that differ only in when or by how much; None: as the text says."""

    @property
    def group(self) -> tuple[Kind, str]:
        """The kind and the subject: equal for events that are shown as one."""
        return self.kind, self.text if self.subject is None else self.subject


def record(run_dir: Path, kind: Kind, step: int, text: str, subject: str | None = None) -> None:
    """Add a line; a disk that refuses costs the line, not the run."""
    line = asdict(Event(time.time(), step, kind, text, subject))
    if subject is None:
        del line["subject"]
    try:
        with (run_dir / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError:
        pass


def read(run_dir: Path) -> list[Event]:
    """All events of a run in order; a line cut short by a kill is left out."""
    path, found = run_dir / FILE, list[Event]()
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Event(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found
