"""Shard jobs: a stream's items cut into shards before the run, and the commit markers of those that are done.

Invariants: the cut depends on the items and the settings alone; a marker is written after its shard and index and names
their digests, so a shard with a marker of the same job is whole and holds exactly that job's items.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from data_pipelines.sources import Item
from janus_dist.config.mix import Stream
from janus_dist.data import storage
from janus_dist.data.inspect import COMMITS, Reject
from janus_dist.data.shard import ShardEntry


@dataclass(frozen=True)
class ShardJob:
    """The work for one shard."""

    number: int
    items: tuple[Item, ...]
    digest: str
    """sha256 of the settings and the items: two jobs with the same digest make the same shard."""

    @property
    def name(self) -> str:
        return shard_name(self.number)


@dataclass(frozen=True)
class Marker:
    """What a finished job left."""

    job: str
    """Digest of the job."""
    items: int
    shard: ShardEntry
    rejects: tuple[Reject, ...]


def shard_name(number: int) -> str:
    """`shard-00000` and so on."""
    return f"shard-{number:05d}"


def cut(items: list[Item], shard_samples: int, settings: dict[str, Any]) -> list[ShardJob]:
    """Jobs of `shard_samples` items each, the last one of what is left."""
    return [
        ShardJob(
            number, tuple(items[start : start + shard_samples]), _digest(settings, items[start : start + shard_samples])
        )
        for number, start in enumerate(range(0, len(items), shard_samples))
    ]


def save_marker(folder: str, marker: Marker) -> None:
    """Commit a shard: write `FOLDER/commits/SHARD.json`, last of all its files."""
    values = asdict(marker)
    for reject in values["rejects"]:
        reject["head"] = reject["head"].hex()
    storage.write_whole(_path(folder, marker.shard.name), json.dumps(values, sort_keys=True).encode())


def load_marker(folder: str, job: ShardJob) -> Marker | None:
    """The marker of a job that is done; None when it has to be done (again)."""
    try:
        values = json.loads(storage.read(_path(folder, job.name)))
        marker = Marker(
            job=values["job"],
            items=values["items"],
            shard=ShardEntry.from_json(values["shard"]),
            rejects=tuple(Reject(**reject | {"head": bytes.fromhex(reject["head"])}) for reject in values["rejects"]),
        )
        index = storage.read(f"{folder}/{job.name}.index.npy")
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    same = marker.job == job.digest and hashlib.sha256(index).hexdigest() == marker.shard.index_sha256
    return marker if same and storage.size(f"{folder}/{job.name}.tar") == marker.shard.bytes else None


def remove_strays(folder: str, jobs: list[ShardJob]) -> None:
    """Remove shards of an earlier cut that are no job's any more; a plain tar reader would take them for data."""
    for sub, endings in (("", (".tar", ".index.npy")), (f"/{COMMITS}", (".json",))):
        kept = {f"{job.name}{ending}" for job in jobs for ending in endings}
        for name in storage.names(f"{folder}{sub}"):
            if name.startswith("shard-") and name.endswith(endings) and name not in kept:
                storage.remove(f"{folder}{sub}/{name}")


def stream_folder(root: str, stream: Stream) -> str:
    """Where a stream's shards are."""
    return f"{root}/{stream}"


def _path(folder: str, name: str) -> str:
    return f"{folder}/{COMMITS}/{name}.json"


def _digest(settings: dict[str, Any], items: list[Item]) -> str:
    content = json.dumps([settings, [asdict(item) for item in items]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
