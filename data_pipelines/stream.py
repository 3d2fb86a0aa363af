"""One input from its files to a manifest: cut, do the jobs that have no marker yet, gather, commit.

Invariants: the manifest is made of markers only and written last, so an interrupted run leaves no manifest and the next
one does the jobs that are missing. One run at a time writes into a folder, and none removes a shard that a committed
manifest lists before another manifest has taken its place.
"""

import hashlib
import logging
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from data_pipelines import gather, work
from data_pipelines.committed import refuse_other_settings
from data_pipelines.encoder import EncoderPool
from data_pipelines.inputs import formats, versions
from data_pipelines.job import InputWork
from data_pipelines.progress import Progress
from data_pipelines.task import SHOWN_REASONS, Summary, do_job
from data_pipelines.work import ShardJob
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data import storage
from janus_dist.data.inspect import QUARANTINE
from janus_dist.data.lease import Lease, LeaseLostError, hold
from janus_dist.data.manifest import Manifest, is_there, table_name
from janus_dist.errors import ClusterError, DataError, JanusError
from janus_dist.tasks import cancel

PIPELINE_VERSION = 3  # goes into the digests of jobs; raise it with every change of what a step makes of a record
ATTEMPTS = 6
"""Of a job, whatever its failures; after them the others go on and the run fails at its end."""
PAUSE_S = 4.0
"""Before the second attempt; 4, 9, 16 and 25 times as long before the next: a store may be down for minutes."""
FAILED_JOBS = 10
"""After so many the run stops at once."""
JUDGED_RECORDS = 10_000
"""From so many records on, `max_bad_share` is held against those read so far, not against all that there will be."""
DOUBT = 1.25
"""How far the number of records expected by bytes of input may be off."""
EXAMPLE_JOBS = 32
"""Jobs that keep examples, spread over all."""
JOBS_AHEAD = 2
"""Jobs in Ray's hands per core: those that wait for one ask an autoscaling cluster for more."""
ENCODED_CPUS = 0.5
"""Cores of a job that mostly waits for VQ ids: with two a core, one feeds the encoders while another begins or ends."""
POLL_S = 1.0
IN_USE = "follow or stop that job, or give this one another data.root; what has a manifest by then is left as it is"

log = logging.getLogger("janus_dist")


def run(of: InputWork, limit: int | None = None, anew: bool = False) -> Manifest:
    """Make what is missing of an input's shards and commit their manifest; needs an initialised Ray.

    Shards with a manifest are left as they are, unless `anew`: then what differs from settings and files of now is made
    beside them, and replaces them at the end. `limit`: records to read, from the beginning.

    DataError when more than `pipeline.max_bad_share` of the records are bad or a file has changed since the work was
    cut, ClusterError when jobs could not be done: what was done stays, and the same call again does the rest.
    ConfigError when another run writes into the folder, or the shards there were made with other settings.
    """
    with hold(of.folder, f"the shard set {of.folder}", f"tokenizing {of.name}", log.info, IN_USE) as lease:
        return _make(replace(of, claim=lease.claim), limit, anew, lease)


def _make(of: InputWork, limit: int | None, anew: bool, lease: Lease) -> Manifest:
    """`run` for whoever holds the folder."""
    shard_samples = of.recipe.pipeline.shard_samples
    units = formats.units(of.source, shard_samples)  # first, since it says what is wrong with the source
    made_by = settings(of)
    if not anew and (made := _committed(of, made_by)) is not None:
        return made
    jobs = work.cut(units, shard_samples, made_by, limit)
    progress = Progress(of.name, len(jobs), sum(job.size for job in jobs))
    judge = Judge(of)
    found = _found(of, jobs)
    for job in jobs:
        if job.digest in found:
            progress.found(job.size)
            judge.add(found[job.digest], progress.share)
    left = [job for job in jobs if job.digest not in found]
    if left and found:
        log.info("%s: %d of %d jobs were done by an earlier run", of.name, len(found), len(jobs))
    failures: list[Failure] = []
    for job, summary in _finished(of, left, failures, progress):
        lease.check()
        progress.add(job.size, summary.records, summary.seconds)
        judge.add(summary, progress.share)
        if judge.too_many:
            break
    lease.check()
    gathered = gather.gather(of.folder, work.markers(of.folder, jobs))
    judge.check()
    if failures or gathered.jobs != len(jobs):
        raise (DataError if any(isinstance(one.error, DataError) for one in failures) else ClusterError)(
            f"{of.name}: {len(jobs) - gathered.jobs} of {len(jobs)} jobs were not done; "
            f"{'; '.join(one.text for one in failures[:SHOWN_REASONS]) or 'their markers are gone'}",
            next((one.error.hint for one in failures if isinstance(one.error, DataError)), None)
            or "what was done stays: run the same command again",
        )
    manifest = gathered.manifest(of, made_by)
    _commit(of, manifest, jobs, anew, lease)
    progress.close(manifest)
    return manifest


def _commit(of: InputWork, manifest: Manifest, jobs: Sequence[ShardJob], anew: bool, lease: Lease) -> None:
    """Write the manifest. Shards that no manifest lists are removed before, those of one that is replaced after it."""
    lease.check()
    try:
        before = _manifest(of.folder)
    except DataError:
        if not anew:
            raise
        before = None  # a damaged one keeps no shards
    if before is not None and not anew:
        raise DataError(
            f"{of.folder} got a manifest while its shards were made: by a job that does not know of the lease there",
            "see which job that is (of an older version, perhaps); both lists of shards are whole, and this job's are "
            "removed by: python jobs/tokenize.py RECIPE.yaml ... --replace",
        )
    work.remove_strays(of.folder, jobs, [*manifest.shards, *(before.shards if before is not None else ())])
    lease.check()
    manifest.save(of.folder)
    if before is not None:
        work.remove_strays(of.folder, jobs, manifest.shards)
        if before.shards.digest != manifest.shards.digest:
            storage.remove(f"{of.folder}/{table_name(before.shards.digest)}")


def _manifest(folder: str) -> Manifest | None:
    return Manifest.load(folder) if is_there(folder) else None


def _committed(of: InputWork, made_by: dict[str, Any]) -> Manifest | None:
    """The manifest of shards that are there; ConfigError when they were made with other settings."""
    manifest = _manifest(of.folder)
    if manifest is not None:
        refuse_other_settings(of, manifest, made_by)
        log.info("%s: %d samples are there, made by another job", of.name, manifest.samples)
    return manifest


def settings(of: InputWork, vq: str | None = None) -> dict[str, Any]:
    """Everything beside the input's files that decides what the shards hold.

    `vq`: sha256 of the VQ weights, where it is known.
    """
    recipe, pipeline = of.recipe, of.recipe.pipeline
    found: dict[str, Any] = {
        "pipeline_version": PIPELINE_VERSION,
        "stream": of.stream,
        "input": of.source.model_dump(mode="json"),
        "shard_samples": pipeline.shard_samples,
        "tokenizer_sha256": of.tokenizer.sha256,
        "max_positions": recipe.model.text.max_positions,
    }
    if of.source.class_names is not None:
        found["class_names_sha256"] = sha256_of(of.source.class_names)
    if of.stream == "text":
        return found | {"text_document_tokens": pipeline.text_document_tokens}
    return found | {
        "chat": recipe.data.chat.model_dump(),
        "image_size": recipe.model.image_size,
        "image_tokens": recipe.model.image_tokens,
        "image_ids": recipe.model.image_ids,
        "jpeg_quality": pipeline.jpeg_quality,
        "max_image_pixels": pipeline.max_image_pixels,
        "vq_sha256": (vq or vq_sha256(recipe)) if of.stream == "generation" else None,
        "vq_codes": recipe.model.vq.codes,
    }


def _found(of: InputWork, jobs: Sequence[ShardJob]) -> dict[str, Summary]:
    """What earlier runs did, by the digest of the job.

    Where that alone has too many bad records, the run would fail for ever, whatever became of its source: jobs that
    refused records lose their markers and are done again.
    """
    by_digest, found, changed = {job.digest: job for job in jobs}, dict[str, Summary](), list[ShardJob]()
    for marker in work.done(of.folder, jobs):
        job = by_digest[marker.job]
        if marker.versions in ("", versions.digest(job.units)):
            found[marker.job] = Summary.of(marker)
        else:
            changed.append(job)
    if changed:
        log.info(
            "%s: %d jobs were done by an earlier run from files that have changed since, as %s: they are done again",
            *(of.name, len(changed), changed[0].units[0].path),
        )
    for job in changed:
        work.forget(of.folder, job)
    if others := work.of_other_cuts(of.folder, jobs):
        log.info(
            "%s: %d jobs in %s were done with other settings or from other files: they do not count, and what they "
            "made is removed when all is done",
            *(of.name, len(others), of.folder),
        )
    judge = Judge(of)
    for summary in found.values():
        judge.add(summary, 1.0)
    if judge.failed:
        again = [job for job in jobs if job.digest in found and found[job.digest].bad]
        log.info(
            "%s: %d of %d records that earlier runs read were bad, too many: their %d jobs are done again",
            *(of.name, judge.bad, judge.records, len(again)),
        )
        for job in again:
            work.forget(of.folder, job)
            del found[job.digest]
    return found


class Judge:
    """Whether too many records are bad."""

    def __init__(self, of: InputWork):
        self.of, self.records, self.bad, self.expected = of, 0, 0, 0.0
        self.reasons: list[str] = []

    def add(self, summary: Summary, share_done: float) -> None:
        """`share_done`: of the input, by bytes."""
        self.records += summary.records
        self.bad += summary.bad
        self.reasons += summary.reasons[: SHOWN_REASONS - len(self.reasons)]
        self.expected = self.records / share_done

    @property
    def too_many(self) -> bool:
        """Whether no hope is left, by what is expected still to come, generously."""
        return self._beyond(max(self.records, min(DOUBT * self.expected, JUDGED_RECORDS)))

    @property
    def failed(self) -> bool:
        """Whether too many of the records read are bad."""
        return self._beyond(self.records)

    def check(self) -> None:
        """DataError when too many of the records read are bad."""
        if self.failed:
            raise DataError(
                f"{self.of.name}: {self.bad} of {self.records} records are bad, more than pipeline.max_bad_share="
                f"{self.of.recipe.pipeline.max_bad_share:g} allows: {'; '.join(self.reasons)}",
                f"see {self.of.folder}/{QUARANTINE}; repair the source, or raise pipeline.max_bad_share, "
                "and run the same command again: it reads anew what had bad records, and keeps the rest",
            )

    def _beyond(self, records: float) -> bool:
        return self.bad > self.of.recipe.pipeline.max_bad_share * records


@dataclass(frozen=True)
class Failure:
    """Why a job could not be done."""

    text: str
    error: BaseException


def _finished(
    of: InputWork, jobs: Sequence[ShardJob], failures: list[Failure], progress: Progress
) -> Iterator[tuple[ShardJob, Summary]]:
    """Do jobs on the cluster and give each as it is done; why others could not be goes to `failures`."""
    if not jobs:
        return
    encoders = EncoderPool.start(of.recipe) if of.stream == "generation" else None
    cpus = ENCODED_CPUS if encoders else 1
    shared, waiting, attempts = ray.put(of), deque(jobs), Counter[int]()
    paused: list[tuple[float, ShardJob]] = []
    every = max(1, len(jobs) // EXAMPLE_JOBS)
    running: dict[ray.ObjectRef, ShardJob] = {}
    try:
        while (waiting or paused or running) and len(failures) < FAILED_JOBS:
            now = time.monotonic()
            waiting.extend(job for until, job in paused if until <= now)
            paused = [(until, job) for until, job in paused if until > now]
            while waiting and len(running) < JOBS_AHEAD * ray.cluster_resources().get("CPU", 1) / cpus:
                job = waiting.popleft()
                attempts[job.number] += 1
                do = do_job.options(num_cpus=cpus)
                running[do.remote(job, shared, encoders, job.number % every == 0)] = job
            progress.say()
            if not running:
                time.sleep(POLL_S)
                continue
            for done in ray.wait(list(running), timeout=POLL_S)[0]:
                job = running.pop(done)
                try:
                    yield job, ray.get(done)
                except (RayError, JanusError, OSError) as error:
                    if attempts[job.number] < ATTEMPTS and _may_pass(error):
                        paused.append((time.monotonic() + PAUSE_S * attempts[job.number] ** 2, job))
                    else:
                        failures.append(_failure(job, error))
    finally:
        cancel(list(running))
        if encoders is not None:
            encoders.stop()


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may succeed: our own faults do not pass, a store, a disk or a node may come back."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, OSError | RayError | ClusterError) and not isinstance(cause, LeaseLostError)


def _failure(job: ShardJob, error: Exception) -> Failure:
    cause = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, JanusError | OSError | RayError):
        log.error("%s", "".join(traceback.format_exception(error)))
    said = str(cause).strip().split("\n")[0]
    return Failure(f"job {job.number} ({job.units[0].path}): {type(cause).__name__}: {said}", cause)


def vq_sha256(recipe: BaseRecipe) -> str:
    """sha256 of the VQ weights: of a file its own, of a folder that of a file with its VQ tokenizer alone."""
    path = recipe.data.vq_weights
    if not Path(path).is_dir():
        return sha256_of(path)
    from janus_dist.model.vq_weights import digest, load_vq  # here: the model's libraries take 4 s, before any message

    return digest(load_vq(recipe.model, path))


def sha256_of(path: str) -> str:
    """sha256 of a file."""
    return hashlib.sha256(storage.read(path)).hexdigest()
