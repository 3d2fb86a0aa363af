"""A shard job from its units to its marker, in one process and without Ray.

    read -> make (decode, crop, token ids) -> [VQ ids] -> write -> commit

Invariants: every entry of the units is a sample, a line of the quarantine table, or counted under the rule that dropped
it; only one shard, the pictures read ahead and the batches in the VQ tokenizers are in memory.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

from data_pipelines import stages, work
from data_pipelines.inputs import formats
from data_pipelines.inputs.versions import check_unchanged, digest
from data_pipelines.record import StepResult
from data_pipelines.reports import Reporter, Send
from data_pipelines.stages import EncodeFunction, Kept, Outcome, StepClock
from data_pipelines.steps.generation import Generation, PromptAndCrop
from data_pipelines.steps.text import Text
from data_pipelines.steps.understanding import Understanding
from data_pipelines.tally import JobTally, escaped
from data_pipelines.work import JobMarker, ShardJob
from janus_dist.config.pipeline import InputConfig
from janus_dist.config.recipe import BaseRecipe
from janus_dist.config.streams import Stream
from janus_dist.data.sample import Sample
from janus_dist.data.shard import ShardEntry, write_shard
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.inspection.inspect import Reject
from janus_dist.storage.lease import LeaseClaim


@dataclass(frozen=True)
class InputWork:
    """The work on one input, shared by all of its jobs."""

    name: str
    stream: Stream
    folder: str
    """Folder of the shards."""
    source: InputConfig
    recipe: BaseRecipe
    tokenizer: Tokenizer
    claim: LeaseClaim | None = None
    """The lease of the folder, which every commit checks."""


def run_job(
    job: ShardJob, input_work: InputWork, encode: EncodeFunction | None, with_examples: bool, send: Send | None = None
) -> JobMarker | None:
    """Do a job, commit it and return its marker; None when another attempt has already committed it.

    `encode` is needed for the generation stream; `send` receives reports of progress. Raises OSError when the input's
    files or the output cannot be reached, DataError when a file has changed since the work was cut, and LeaseLostError
    when another run has taken over the folder.
    """
    check_unchanged(job.units)
    tally = JobTally(with_examples, has_rules=bool(input_work.source.where), job=job, reporter=Reporter(send))
    attempt, shards = work.attempt_name(), list[ShardEntry]()
    special = (input_work.tokenizer.boi, input_work.tokenizer.image, input_work.tokenizer.eoi)
    samples = _samples(_outcomes(job, input_work, encode, tally.clock), tally)
    while part := list(islice(samples, input_work.recipe.pipeline.shard_samples)):
        with tally.clock.timed("write"):
            name = work.shard_name(job, len(shards), attempt)
            shards.append(write_shard(input_work.folder, name, part, input_work.recipe.model, special))
    marker = JobMarker(
        job=job.digest,
        number=job.number,
        attempt=attempt,
        records=tally.records,
        shards=tuple(shards),
        rejects=tuple(_with_valid_text(reject) for reject in tally.rejects),
        dropped=dict(tally.dropped),
        columns=dict(tally.columns),
        ignored={key: dict(reasons) for key, reasons in tally.ignored.items()},
        histograms={name: dict(bins) for name, bins in tally.histograms.items()},
        examples=tuple(tally.examples),
        seconds={step: round(seconds, 3) for step, seconds in tally.clock.seconds.items()},
        versions=digest(job.units),
    )
    check_unchanged(job.units)  # again: a file that was cut short during the job ends like a complete one
    return marker if work.commit(input_work.folder, marker, input_work.claim) else None


def prepared(input_work: InputWork) -> list[PromptAndCrop]:
    """Return the prompts and crops of a generation input's records that are neither bad nor dropped, in order."""
    config, clock = _config(input_work), StepClock()
    step = Generation(input_work.recipe, config, input_work.tokenizer)
    units = formats.units(input_work.source, input_work.recipe.pipeline.shard_samples)
    with ThreadPoolExecutor(stages.READERS, thread_name_prefix="pictures") as pool:
        records = stages.fetch(stages.read(units, None, config, step.check, clock), pool, clock)
        outcomes = stages.make(records, step.prepare, clock)
        return [outcome.value for outcome in outcomes if isinstance(outcome, Kept)]


def _samples(outcomes: Iterator[Outcome[StepResult]], tally: JobTally) -> Iterator[tuple[str, Sample]]:
    """Count all outcomes and yield the (key, sample) pairs of kept records."""
    for outcome in outcomes:
        tally.count(outcome)
        if isinstance(outcome, Kept):
            yield from outcome.value.samples


def _outcomes(
    job: ShardJob, input_work: InputWork, encode: EncodeFunction | None, clock: StepClock
) -> Iterator[Outcome[StepResult]]:
    """Yield the outcomes of a job's records, kept ones in the order of the input."""
    recipe, config = input_work.recipe, _config(input_work)
    match input_work.stream:
        case "text":
            step = Text(recipe, config, input_work.tokenizer)
        case "understanding":
            step = Understanding(recipe, config, input_work.tokenizer)
        case "generation":
            step = Generation(recipe, config, input_work.tokenizer)
    with ThreadPoolExecutor(stages.READERS, thread_name_prefix="pictures") as pool:
        records = stages.fetch(stages.read(job.units, job.limit, config, step.check, clock), pool, clock)
        if isinstance(step, Generation):
            assert encode is not None
            prepared = stages.make(records, step.prepare, clock)
            yield from stages.encode_batches(prepared, step, encode, recipe.pipeline.encode_batch, clock)
        else:
            yield from stages.make(records, step.make, clock)


def _config(input_work: InputWork) -> InputConfig:
    """Return the settings of an input with its stream, which the source itself may leave out."""
    return input_work.source.model_copy(update={"stream": input_work.stream})


def _with_valid_text(reject: Reject) -> Reject:
    """Return a reject whose texts are valid Unicode: names of files may not be UTF-8."""
    return replace(reject, **{name: escaped(getattr(reject, name)) for name in ("source", "key", "reason")})
