"""Shard jobs: an input cut into pieces of work before the run, and the commit markers of finished jobs.

Invariants: the cut depends only on the input and the settings. A job's shards have names of that attempt and count only
if its marker lists them, which is created once: of several attempts, at the same time or after each other, only one
counts, and no reader ever sees bytes of two.
"""

import re
import uuid
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

from data_pipelines.limit import SPREAD, share_out, spread
from data_pipelines.record import Unit
from janus_dist.data.shard import INDEX_DTYPE, INDEX_HEADER_BYTES, ShardEntry
from janus_dist.inspection.inspect import COMMITS, Example, Reject, kind_in_old_reason
from janus_dist.storage import fs
from janus_dist.storage.job_markers import JobMarkers, digest_of, name_of
from janus_dist.storage.lease import LeaseClaim

LISTERS = 32
"""Markers that are read at once."""
SHARD_FILE = re.compile(r"\d{6,}-\d{2,}-[0-9a-f]{12}\.(tar|index\.npy)")


@dataclass(frozen=True)
class ShardJob:
    """The work for one shard, or for a few when a unit cannot be cut."""

    number: int
    """Index in the order of the input, which is the order of the manifest."""
    units: tuple[Unit, ...]
    limit: int | None
    """Most records to read; None: all."""
    digest: str
    """sha256 of settings, units and limit: two jobs with the same digest make the same samples."""

    @property
    def size(self) -> int:
        """Return the bytes of input."""
        return sum(unit.size for unit in self.units)


@dataclass(frozen=True)
class JobMarker:
    """The result of a finished job."""

    job: str
    """Digest of the job."""
    number: int
    attempt: str
    records: int
    """Records that were read, good and bad; a reject counts as the number of records that it represents."""
    shards: tuple[ShardEntry, ...]
    rejects: tuple[Reject, ...]
    dropped: Mapping[str, int]
    """Dropped records by rule."""
    histograms: Mapping[str, Mapping[str, int]]
    """Histograms of width, height, aspect and caption_chars: lower edge of a bin -> records."""
    examples: tuple[Example, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Time by step, spent waiting or working in the job's process."""
    columns: Mapping[str, int] | None = None
    """Records with a value, by column, where the recipe has rules; None for markers of earlier versions."""
    versions: str = ""
    """Digest of the versions of the files read; empty if unknown, as in older markers."""
    ignored: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Key of an unused value -> reason -> records; empty for markers of earlier versions."""

    @property
    def samples(self) -> int:
        """Return the number of samples in all shards."""
        return sum(entry.samples for entry in self.shards)


def cut(units: Sequence[Unit], shard_samples: int, settings: Mapping[str, Any], limit: int | None) -> list[ShardJob]:
    """Return jobs of at least `shard_samples` records if the units know their number of records, else of one unit each.

    With a `limit`, the jobs read that many records in total, spread over the units (`spread`): jobs of about
    `shard_samples` records if all units know their number, else one job.
    """
    if limit is not None:
        return _cut_limited(units, shard_samples, settings, limit)
    groups: list[list[Unit]] = []
    missing_records = 0
    for unit in units:
        if unit.records is not None and 0 < unit.records <= missing_records:
            groups[-1].append(unit)
            missing_records -= unit.records
            continue
        groups.append([unit])
        missing_records = max(0, shard_samples - unit.records) if unit.records is not None else 0
    return [_job(index, group, None, settings) for index, group in enumerate(groups)]


def _cut_limited(units: Sequence[Unit], shard_samples: int, settings: Mapping[str, Any], limit: int) -> list[ShardJob]:
    """Distribute the units among as few jobs as make shards of the usual size, and share the limit among the jobs."""
    ordered = spread(units)
    counts = _record_counts(ordered)
    jobs = min(len(units), -(-limit // shard_samples) if counts is not None else 1)
    if counts is None:
        capacities = [limit] * jobs
    else:
        ordered = ordered[: _units_for(counts, limit, SPREAD * jobs)]  # no job needs the names of a million files
        counts = counts[: len(ordered)]
        capacities = [sum(counts[index::jobs]) for index in range(jobs)]
    shares = share_out(limit, capacities)
    return [_job(index, ordered[index::jobs], share, settings) for index, share in enumerate(shares) if share]


def _record_counts(units: Sequence[Unit]) -> list[int] | None:
    """Return the number of records of each unit; None when a unit does not know it."""
    counts = [unit.records for unit in units if unit.records is not None]
    return counts if len(counts) == len(units) else None


def _units_for(counts: Sequence[int], limit: int, least: int) -> int:
    """Return how many of the first units are used: those that hold `limit` records, at least `least`; all when all hold
    fewer."""
    enough = next((index for index, total in enumerate(accumulate(counts), 1) if total >= limit), 0)
    return max(enough, least) if enough else len(counts)


def attempt_name() -> str:
    """Return a unique name for an attempt."""
    return uuid.uuid4().hex[:12]


def shard_name(job: ShardJob, part: int, attempt: str) -> str:
    """Return the name of a shard, such as `000012-00-ATTEMPT`: job, part, and the attempt that wrote it."""
    return f"{job.number:06d}-{part:02d}-{attempt}"


def commit(folder: str, marker: JobMarker, claim: LeaseClaim | None = None) -> bool:
    """Create a job's marker and return True; when another attempt has done so before, remove the shards, return False.

    Raises LeaseLostError when another run has taken over the folder, whose lease is `claim`.
    """
    values = asdict(marker)
    for reject in values["rejects"]:
        reject["head"] = b64encode(reject["head"]).decode()
    for example in values["examples"]:
        example["image"] = b64encode(example["image"]).decode()
    if claim is not None:
        claim.check()
    if _markers(folder).create(values, is_conditional=claim is None or claim.conditional):
        return True
    for entry in marker.shards:
        for name in _files(entry):
            fs.remove(f"{folder}/{name}")
    return False


def load_marker(folder: str, job: ShardJob) -> JobMarker | None:
    """Return the marker of a job; None when it is absent or not in our format."""
    return _markers(folder).load(job.digest, _decoded)


def _decoded(values: dict[str, Any]) -> JobMarker:
    shards = tuple(ShardEntry.from_json(entry) for entry in values.pop("shards"))
    rejects = tuple(map(_reject, values.pop("rejects")))
    examples = tuple(
        Example(**example | {"image": b64decode(example["image"]), "vq_ids": tuple(example["vq_ids"])})
        for example in values.pop("examples")
    )
    return JobMarker(**values, shards=shards, rejects=rejects, examples=examples)


def _reject(values: Mapping[str, Any]) -> Reject:
    """Return a reject of its values in a marker; markers of earlier versions have no kind."""
    kind = values.get("kind") or kind_in_old_reason(values["reason"])
    return Reject(**values | {"kind": kind, "head": b64decode(values["head"])})  # pyright: ignore


def markers(folder: str, jobs: Sequence[ShardJob]) -> Iterator[JobMarker]:
    """Yield the markers of jobs that have one, in the order of the jobs; only some are read ahead."""
    with ThreadPoolExecutor(LISTERS) as pool:
        for start in range(0, len(jobs), 8 * LISTERS):
            loaded = pool.map(partial(load_marker, folder), jobs[start : start + 8 * LISTERS])
            yield from (marker for marker in loaded if marker is not None)


def done(folder: str, jobs: Sequence[ShardJob]) -> Iterator[JobMarker]:
    """Yield the markers whose shards are complete; remove the others, so that their jobs are done again."""
    committed = _markers(folder).names()
    sizes = fs.sizes(folder)  # after the markers: the shards of each were written before it
    marked_jobs = [job for job in jobs if name_of(job.digest) in committed]
    complete: set[str] = set()
    for marker in markers(folder, marked_jobs):
        if all(_is_complete(entry, sizes) for entry in marker.shards):
            complete.add(marker.job)
            yield marker
    for job in marked_jobs:
        if job.digest not in complete:
            forget(folder, job)


def forget(folder: str, job: ShardJob) -> None:
    """Remove a job's marker, so that it is done again; its shards no longer count."""
    _markers(folder).remove(job.digest)


def of_other_cuts(folder: str, jobs: Sequence[ShardJob]) -> list[str]:
    """Return the names of markers of other cuts: of other settings or files, or of other versions."""
    return _markers(folder).others(job.digest for job in jobs)


def remove_strays(folder: str, jobs: Sequence[ShardJob], entries: Iterable[ShardEntry]) -> None:
    """Remove shards that are not in `entries` and markers of other cuts; files with other names are left.

    A plain tar reader would read such shards as data.
    """
    kept = {name for entry in entries for name in _files(entry)}
    for name in fs.names(folder):
        if SHARD_FILE.fullmatch(name) and name not in kept:
            fs.remove(f"{folder}/{name}")
    _markers(folder).remove_others(job.digest for job in jobs)


def _is_complete(entry: ShardEntry, sizes: Mapping[str, int]) -> bool:
    tar, index = _files(entry)
    index_bytes = INDEX_HEADER_BYTES + entry.samples * INDEX_DTYPE.itemsize
    return sizes.get(tar) == entry.bytes and sizes.get(index) == index_bytes


def _files(entry: ShardEntry) -> tuple[str, str]:
    return f"{entry.name}.tar", f"{entry.name}.index.npy"


def _markers(folder: str) -> JobMarkers:
    return JobMarkers(f"{folder}/{COMMITS}")


def _job(number: int, units: Sequence[Unit], limit: int | None, settings: Mapping[str, Any]) -> ShardJob:
    described = [asdict(replace(unit, versions=())) for unit in units]
    for values in described:
        del values["versions"]  # compared separately: touching a file does not change its jobs
    return ShardJob(number, tuple(units), limit, digest_of([settings, described, limit]))
