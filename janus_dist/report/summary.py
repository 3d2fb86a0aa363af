"""summary.json of a proof: what was found, part by part, on what, and how long each part took.

Invariant: the file is whole at any time; what was found with other settings is not in it, and the time that a part took
is that of all its attempts.
"""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from janus_dist.report.curves import machine
from janus_dist.storage.local import write_whole

NOTED_S = 30.0
"""How often the time so far is written down, for a process that is killed."""
CODE = Path(__file__).parent


class Summary:
    """What was found so far, as `found`; `settings` are those that all of it was found with."""

    def __init__(self, path: Path, settings: Sequence[str]):
        self.path = path
        before: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        if before.get("settings") != list(settings):
            before = {"settings": list(settings), "parts": before.get("parts", {})}
        self.found = before

    def write(self) -> None:
        """Write the file, whole or not at all."""
        write_whole(self.path, json.dumps(self.found, indent=1) + "\n")

    @contextmanager
    def working(self, part: str) -> Iterator[None]:
        """Count a `with` block as work on a part: its time is added to that of the part, also when it
        ends by an error or is killed, and where it was done is written down."""
        before, began, ended = self.took_s(part), time.perf_counter(), threading.Event()
        made = {"machine": machine(), "cores": len(os.sched_getaffinity(0)), "commit": commit()}

        def note() -> None:
            took_s, date = before + time.perf_counter() - began, datetime.now(UTC).date().isoformat()
            self.found["parts"][part] = {"took_s": round(took_s, 1), "date": date, **made}
            self.write()

        def note_often() -> None:
            while not ended.wait(NOTED_S):
                note()

        noting = threading.Thread(target=note_often, name="summary", daemon=True)
        noting.start()
        try:
            yield
        finally:
            ended.set()
            noting.join()
            note()

    def took_s(self, part: str) -> float:
        """Return seconds that were spent on a part so far."""
        return self.found["parts"].get(part, {}).get("took_s", 0.0)


def commit() -> str | None:
    """Return the commit of this code, with `-dirty` when files differ from it; None outside of a repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=CODE, capture_output=True, text=True
        )
    except OSError:  # no git
        return None
    return done.stdout.strip() or None
