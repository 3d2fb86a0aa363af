"""summary.json of a proof: the results of each part, the machine that made them, and the time that each part took.

Invariant: the file is complete at any time and has no results of other settings; the time of a part includes all its
attempts.
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

SAVE_EVERY_S = 30.0
"""Seconds between two writes of the time so far, so that a killed process keeps most of it."""
CODE = Path(__file__).parent


class Summary:
    """Results so far (`found`), all made with the same `settings`."""

    def __init__(self, path: Path, settings: Sequence[str]):
        self.path = path
        results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        if results.get("settings") != list(settings):
            results = {"settings": list(settings), "parts": results.get("parts", {})}
        self.found = results

    def write(self) -> None:
        """Write the file in one step, so that it is never partial."""
        write_whole(self.path, json.dumps(self.found, indent=1) + "\n")

    @contextmanager
    def working(self, part: str) -> Iterator[None]:
        """Add the time of a `with` block to that of a part, also when it fails or is killed, and write the machine,
        the commit and the date."""
        previous_s, began, ended = self.took_s(part), time.perf_counter(), threading.Event()
        origin = {"machine": machine(), "cores": len(os.sched_getaffinity(0)), "commit": commit()}

        def save() -> None:
            took_s, date = previous_s + time.perf_counter() - began, datetime.now(UTC).date().isoformat()
            self.found["parts"][part] = {"took_s": round(took_s, 1), "date": date, **origin}
            self.write()

        def save_often() -> None:
            while not ended.wait(SAVE_EVERY_S):
                save()

        saver = threading.Thread(target=save_often, name="summary", daemon=True)
        saver.start()
        try:
            yield
        finally:
            ended.set()
            saver.join()
            save()

    def took_s(self, part: str) -> float:
        """Return the seconds that were spent on a part so far."""
        return self.found["parts"].get(part, {}).get("took_s", 0.0)


def commit() -> str | None:
    """Return the commit of this code, with `-dirty` when files were changed since; None outside of a repository."""
    try:
        process = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=CODE, capture_output=True, text=True
        )
    except OSError:  # git is not installed
        return None
    return process.stdout.strip() or None
