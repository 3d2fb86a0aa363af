"""Markers of finished jobs: one small JSON file per job, named after the job's digest.

    FOLDER/DIGEST[:32].json    {"job": DIGEST, ...}

Invariant: a job is done when its marker exists and names its digest, so a change of anything that the digest covers
repeats the job. The work of a job is written before its marker.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from janus_dist.storage import fs

T = TypeVar("T")
NAME_CHARS = 32
"""Hexadecimal digits of the digest in the name of a marker."""
NAME = re.compile(rf"[0-9a-f]{{{NAME_CHARS}}}\.json")


def digest_of(content: Any) -> str:
    """Return the sha256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def name_of(digest: str) -> str:
    """Return the file name of a job's marker."""
    return f"{digest[:NAME_CHARS]}.json"


@dataclass(frozen=True)
class JobMarkers:
    """The markers in one folder, on a disk or in a store."""

    folder: str

    def path(self, digest: str) -> str:
        """Return the path of a job's marker."""
        return f"{self.folder}/{name_of(digest)}"

    def load(self, digest: str, decode: Callable[[dict[str, Any]], T]) -> T | None:
        """Return `decode` of the marker's values, or None when the marker is absent, unreadable or of another job.

        `decode` may raise ValueError, TypeError or KeyError for values that another program wrote.
        """
        try:
            values = json.loads(fs.read(self.path(digest)))
            return decode(values) if values["job"] == digest else None
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def write(self, values: Mapping[str, Any]) -> None:
        """Write the marker of the job `values["job"]`, replacing an older one."""
        fs.write_whole(self.path(values["job"]), json.dumps(values).encode())

    def create(self, values: Mapping[str, Any], is_conditional: bool = True) -> bool:
        """Write the marker of the job `values["job"]` unless one exists; return True to exactly one of several writers.

        `values["attempt"]` names the writer: a request that is repeated because its answer was lost finds its own
        marker, which counts as written. `is_conditional`: as `conditional` of `fs.create`.
        """
        path = self.path(values["job"])
        if fs.create(path, json.dumps(values, sort_keys=True).encode(), is_conditional):
            return True
        return json.loads(fs.read(path))["attempt"] == values["attempt"]

    def remove(self, digest: str) -> None:
        """Remove a job's marker, so that the job is repeated."""
        fs.remove(self.path(digest))

    def names(self) -> set[str]:
        """Return the names of all files in the folder."""
        return set(fs.names(self.folder))

    def others(self, digests: Iterable[str]) -> list[str]:
        """Return the names of the markers of all other jobs; files that are not markers are left out."""
        known = {name_of(digest) for digest in digests}
        return [name for name in fs.names(self.folder) if NAME.fullmatch(name) and name not in known]

    def remove_others(self, digests: Iterable[str]) -> None:
        """Remove the markers of all other jobs; keep files that are not markers."""
        for name in self.others(digests):
            fs.remove(f"{self.folder}/{name}")
