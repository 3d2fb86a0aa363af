"""Preparation of one input, from its files to a manifest: cut, do the jobs without a marker, gather, commit.

Invariants: the manifest is made only of markers and written last, so an interrupted run leaves no manifest and the next
one does the missing jobs. Only one run at a time writes into a folder, and a shard that a committed manifest lists is
only removed after another manifest has replaced that one.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipelines import gather, work
from data_pipelines.committed import refuse_other_settings
from data_pipelines.inputs import formats, versions
from data_pipelines.job import InputWork
from data_pipelines.job_runner import Failure, finished_jobs
from data_pipelines.judge import BadRecordJudge
from data_pipelines.limit import limit_line
from data_pipelines.outcome import SHOWN_REASONS, RuleWatch, check_outcome, report_counts
from data_pipelines.progress import PipelineProgress
from data_pipelines.task import JobSummary
from data_pipelines.work import ShardJob
from janus_dist.config.recipe import BaseRecipe
from janus_dist.config.streams import SPECS
from janus_dist.data.manifest import Manifest, is_there, table_name
from janus_dist.errors import ClusterError, DataError
from janus_dist.storage import fs
from janus_dist.storage.lease import Lease, hold

PIPELINE_VERSION = 4  # part of the digests of jobs; increase it with every change of the samples that a step makes
IN_USE = "follow or stop that job, or set another data.root for this one; finished inputs are left unchanged"

log = logging.getLogger("janus_dist")


def run(input_work: InputWork, limit: int | None = None, anew: bool = False) -> Manifest:
    """Make the missing shards of an input, commit their manifest and return it; needs an initialised Ray.

    Shards with a manifest are left unchanged, unless `anew`: then shards that differ from the current settings and
    files are made next to them, and replace them at the end. `limit`: records to read, spread over the input.

    Raises DataError when more than `pipeline.max_bad_share` of the records are bad, when a rule needs a column that no
    record has, when no sample was made or when a file has changed since the work was cut; ClusterError when jobs could
    not be done: finished jobs are kept, and the same call again does the others; ConfigError when another run writes
    into the folder, or when its shards were made with other settings.
    """
    with hold(
        input_work.folder, f"the shard set {input_work.folder}", f"tokenizing {input_work.name}", log.info, IN_USE
    ) as lease:
        return _make(replace(input_work, claim=lease.claim), limit, anew, lease)


def _make(input_work: InputWork, limit: int | None, anew: bool, lease: Lease) -> Manifest:
    """Do what `run` does for a caller that holds the lease of the folder."""
    shard_samples = input_work.recipe.pipeline.shard_samples
    units = formats.units(input_work.source, shard_samples)  # first, since it checks the source
    made_by = settings(input_work)
    if not anew and (committed := _committed(input_work, made_by)) is not None:
        return committed
    jobs = work.cut(units, shard_samples, made_by, limit)
    if limit is not None:
        line = limit_line([job.units for job in jobs], [job.limit or 0 for job in jobs])
        log.info("%s: %s", input_work.name, line)
    progress = PipelineProgress(input_work.name, len(jobs), sum(job.size for job in jobs))
    judge = BadRecordJudge(input_work)
    failures = _do_missing(input_work, jobs, RuleWatch(input_work, units), progress, judge, lease)
    lease.check()
    gathered = gather.gather(input_work.folder, work.markers(input_work.folder, jobs))
    judge.check(units)
    if failures or gathered.jobs != len(jobs):
        raise _incomplete(input_work.name, len(jobs) - gathered.jobs, len(jobs), failures)
    check_outcome(input_work, gathered, units)
    for line in gathered.ignored_lines():
        log.info("%s: %s", input_work.name, line)
    manifest = gathered.manifest(input_work, made_by)
    _commit(input_work, manifest, jobs, anew, lease)
    progress.close(manifest)
    report_counts(input_work, gathered)
    return manifest


def _do_missing(
    input_work: InputWork,
    jobs: Sequence[ShardJob],
    rules: RuleWatch,
    progress: PipelineProgress,
    judge: BadRecordJudge,
    lease: Lease,
) -> list[Failure]:
    """Do the jobs that no earlier run did, and return the failures of others; stop when too many records are bad."""
    earlier = _earlier_summaries(input_work, jobs)
    for job in jobs:
        if job.digest in earlier:
            progress.found(job.size)
            judge.add(earlier[job.digest], progress.share)
    missing = [job for job in jobs if job.digest not in earlier]
    if missing and earlier:
        log.info("%s: %d of %d jobs were done by an earlier run", input_work.name, len(earlier), len(jobs))
    failures: list[Failure] = []
    for job, summary in finished_jobs(input_work, missing, failures, progress, judge):
        lease.check()
        progress.add(job.size, summary.records, summary.seconds)
        rules.add(summary)
        judge.add(summary, progress.share)
        judge.watch(progress.reports, progress.share)
        if judge.too_many:
            break
    return failures


def _incomplete(name: str, missing: int, jobs: int, failures: Sequence[Failure]) -> DataError | ClusterError:
    """Return the error of a run whose jobs were not all done: a DataError when the data made one of them fail."""
    data_errors = [failure.error for failure in failures if isinstance(failure.error, DataError)]
    hint = data_errors[0].hint if data_errors else None
    reasons = "; ".join(failure.text for failure in failures[:SHOWN_REASONS]) or "their markers are gone"
    return (DataError if data_errors else ClusterError)(
        f"{name}: {missing} of {jobs} jobs were not done; {reasons}",
        hint or "finished jobs are kept: run the same command again to do the others",
    )


def _commit(input_work: InputWork, manifest: Manifest, jobs: Sequence[ShardJob], anew: bool, lease: Lease) -> None:
    """Write the manifest.

    Shards that no manifest lists are removed before, those of a replaced manifest after it. Raises DataError when
    another program has written a manifest meanwhile.
    """
    lease.check()
    try:
        before = _manifest(input_work.folder)
    except DataError:
        if not anew:
            raise
        before = None  # the shards of a damaged manifest are not kept
    if before is not None and not anew:
        raise DataError(
            f"{input_work.folder} got a manifest while its shards were made, by a job that does not use leases",
            "see which job that is (of an older version, perhaps); both lists of shards are whole, and this job's are "
            "removed by: python jobs/prepare.py RECIPE.yaml ... --replace",
        )
    work.remove_strays(input_work.folder, jobs, [*manifest.shards, *(before.shards if before is not None else ())])
    lease.check()
    manifest.save(input_work.folder)
    if before is not None:
        work.remove_strays(input_work.folder, jobs, manifest.shards)
        if before.shards.digest != manifest.shards.digest:
            fs.remove(f"{input_work.folder}/{table_name(before.shards.digest)}")


def _manifest(folder: str) -> Manifest | None:
    return Manifest.load(folder) if is_there(folder) else None


def _committed(input_work: InputWork, made_by: dict[str, Any]) -> Manifest | None:
    """Return the committed manifest, if any; raises ConfigError when its shards were made with other settings."""
    manifest = _manifest(input_work.folder)
    if manifest is not None:
        refuse_other_settings(input_work, manifest, made_by)
        log.info("%s: %d samples exist already, made by another job", input_work.name, manifest.samples)
    return manifest


def settings(input_work: InputWork, vq: str | None = None) -> dict[str, Any]:
    """Return all settings that determine the content of shards, in addition to the input's files.

    `vq`: sha256 of the VQ weights, if it is known.
    """
    recipe, pipeline = input_work.recipe, input_work.recipe.pipeline
    values: dict[str, Any] = {
        "pipeline_version": PIPELINE_VERSION,
        "stream": input_work.stream,
        "input": input_work.source.model_dump(mode="json"),
        "shard_samples": pipeline.shard_samples,
        "tokenizer_sha256": input_work.tokenizer.sha256,
        "max_positions": recipe.model.text.max_positions,
    }
    if input_work.source.class_names is not None:
        values["class_names_sha256"] = sha256_of(input_work.source.class_names)
    if not SPECS[input_work.stream].has_images:
        return values | {"text_document_tokens": pipeline.text_document_tokens}
    return values | {
        "chat": recipe.data.chat.model_dump(),
        "image_size": recipe.model.image_size,
        "image_tokens": recipe.model.image_tokens,
        "image_ids": recipe.model.image_ids,
        "jpeg_quality": pipeline.jpeg_quality,
        "max_image_pixels": pipeline.max_image_pixels,
        "vq_sha256": (vq or vq_sha256(recipe)) if SPECS[input_work.stream].draws_images else None,
        "vq_codes": recipe.model.vq.codes,
    }


def _earlier_summaries(input_work: InputWork, jobs: Sequence[ShardJob]) -> dict[str, JobSummary]:
    """Return what earlier runs did, by the digest of the job.

    Jobs whose files have changed since lose their markers and are done again. Where the earlier jobs alone have too
    many bad records, or no sample, the run would always fail, even after the source was repaired: jobs that refused
    records lose their markers, too.
    """
    by_digest, summaries, changed = {job.digest: job for job in jobs}, dict[str, JobSummary](), list[ShardJob]()
    for marker in work.done(input_work.folder, jobs):
        job = by_digest[marker.job]
        if marker.versions in ("", versions.digest(job.units)):
            summaries[marker.job] = JobSummary.of(marker)
        else:
            changed.append(job)
    if changed:
        log.info(
            "%s: %d jobs were done by an earlier run from files that have changed since, such as %s: they are done "
            "again",
            *(input_work.name, len(changed), changed[0].units[0].path),
        )
    for job in changed:
        work.forget(input_work.folder, job)
    if foreign := work.of_other_cuts(input_work.folder, jobs):
        log.info(
            "%s: %d jobs in %s were done with other settings or from other files: they do not count, and their "
            "shards are removed at the end",
            *(input_work.name, len(foreign), input_work.folder),
        )
    for job in _jobs_to_repeat(input_work, jobs, summaries):
        work.forget(input_work.folder, job)
        del summaries[job.digest]
    return summaries


def _jobs_to_repeat(
    input_work: InputWork, jobs: Sequence[ShardJob], summaries: Mapping[str, JobSummary]
) -> list[ShardJob]:
    """Return the jobs with bad records where earlier runs read too many of them or made no sample; else none."""
    judge = BadRecordJudge(input_work)
    for summary in summaries.values():
        judge.add(summary, 1.0)
    with_bad = [job for job in jobs if job.digest in summaries and summaries[job.digest].bad]
    has_samples = any(summary.samples for summary in summaries.values())
    if not judge.failed and (has_samples or not with_bad):
        return []
    log.info(
        "%s: %d of %d records that earlier runs read were bad, too many: their %d jobs are done again",
        *(input_work.name, judge.bad, judge.records, len(with_bad)),
    )
    return with_bad


def vq_sha256(recipe: BaseRecipe) -> str:
    """Return the sha256 of the VQ weights: for a folder, that of a file with only its VQ tokenizer."""
    path = recipe.data.vq_weights
    if not Path(path).is_dir():
        return sha256_of(path)
    from janus_dist.weights.vq import digest, load_vq  # imported here: the model's libraries take 4 s

    return digest(load_vq(recipe.model, path))


def sha256_of(path: str) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(fs.read(path)).hexdigest()
