"""Jobs of a benchmark: some of its questions, answered or drawn in one process, and the marker of a finished job.

    OUT/jobs/DIGEST.json    the answers; drawings lie where GenEval's scorer wants them, before the marker is written

Questions of one length go through the model together, so a job holds such as are about as long. Invariants: the cut
depends on the questions and settings alone, not on who does the jobs; a job is done or not, and done again it leaves
the same. Batches do not cross jobs, so a run that was interrupted ends with the same answers.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from janus_dist.config.evaluate import BenchmarkName
from janus_dist.config.train import Dtype
from janus_dist.errors import DataError
from janus_dist.evaluation.benchmarks.all import BENCHMARKS
from janus_dist.evaluation.benchmarks.geneval import sample
from janus_dist.evaluation.benchmarks.question import BenchmarkQuestion
from janus_dist.evaluation.sampler import Sampler
from janus_dist.model.sample import TokenChoice
from janus_dist.storage import fs
from janus_dist.storage.job_markers import JobMarkers, digest_of

VERSION = 1  # goes into the digests of jobs; raise it with every change of what a question becomes
BATCHES = 4
"""Batches of questions in a job: with more, more is redone after an interruption; with fewer, lengths vary more."""
MARKERS = "jobs"


@dataclass(frozen=True)
class BenchmarkJob:
    """Some questions of one benchmark."""

    benchmark: BenchmarkName
    out: str
    """The folder of the benchmark's results."""
    questions: tuple[BenchmarkQuestion, ...]
    places: tuple[int, ...]
    """Positions of its questions in the benchmark."""
    digest: str
    """sha256 of everything that determines its results."""
    dtype: Dtype = "float32"
    """Dtype that the model computes in, the same in all processes of an evaluation."""

    @property
    def marker(self) -> str:
        """Return the path of its marker."""
        return markers(self.out).path(self.digest)


@dataclass(frozen=True)
class BenchmarkMarker:
    """Results of a finished job."""

    job: str
    """Digest of the job."""
    answers: Mapping[str, str]
    """Answers by the ids of the questions."""
    unreadable: tuple[str, ...]
    """Ids of questions with an unreadable image; their answers are empty."""


def markers(out: str) -> JobMarkers:
    """Return the markers of the jobs whose results are in `out`."""
    return JobMarkers(f"{out}/{MARKERS}")


def cut(
    name: BenchmarkName,
    questions: Sequence[BenchmarkQuestion],
    out: str,
    batch: int,
    each: int,
    settings: Mapping[str, Any],
    dtype: Dtype = "float32",
) -> list[BenchmarkJob]:
    """Return the jobs of a benchmark: a few batches of questions or one of drawings each, `each` drawings per prompt.

    `settings` is everything except the questions that determines the results.
    """
    size = max(1, batch // each) if BENCHMARKS[name].is_drawn else BATCHES * batch
    by_length = sorted(range(len(questions)), key=lambda place: len(questions[place].prompt))
    jobs: list[BenchmarkJob] = []
    for first in range(0, len(questions), size):
        places = tuple(by_length[first : first + size])
        part = tuple(questions[place] for place in places)
        asked = [(place, _identity(question)) for place, question in zip(places, part, strict=True)]
        jobs.append(BenchmarkJob(name, out, part, places, digest_of([VERSION, name, asked, settings]), dtype))
    return jobs


def _identity(question: BenchmarkQuestion) -> list[str]:
    """Return id, prompt and images of a question; files by name only, since their folder may be moved."""
    images = (hashlib.sha256(one).hexdigest() if isinstance(one, bytes) else one.name for one in question.images)
    return [question.id, question.prompt, *images]


def do(sampler: Sampler, job: BenchmarkJob) -> None:
    """Answer or draw, then write the marker. Raises DataError or ConfigError when a question does not fit the model."""
    if BENCHMARKS[job.benchmark].is_drawn:
        _draw(sampler, job)
        marker = BenchmarkMarker(job.digest, {}, ())
    else:
        marker = _answer(sampler, job)
    content = {"job": marker.job, "answers": marker.answers, "unreadable": marker.unreadable}
    markers(job.out).write(content)


def load(job: BenchmarkJob) -> BenchmarkMarker | None:
    """Return the marker of a job; None when it is absent or another program's."""
    return markers(job.out).load(
        job.digest, lambda values: BenchmarkMarker(values["job"], values["answers"], tuple(values["unreadable"]))
    )


def _answer(sampler: Sampler, job: BenchmarkJob) -> BenchmarkMarker:
    """Return the marker with the most likely answers; each image is encoded once."""
    found: dict[Path | bytes, int] = {}
    pictures: list[torch.Tensor] = []
    unreadable: list[str] = []
    for question in job.questions:
        try:
            for image in question.images:
                if image not in found:
                    pictures.append(sampler.picture(image))
                    found[image] = len(found)
        except DataError:
            unreadable.append(question.id)
    asked = [question for question in job.questions if question.id not in unreadable]
    side = sampler.recipe.model.image_size
    answers = sampler.answer(
        [question.prompt for question in asked],
        sampler.image_features(torch.stack(pictures) if pictures else torch.empty(0, 3, side, side)),
        [[found[image] for image in question.images] for question in asked],
        BENCHMARKS[job.benchmark].max_new_tokens,
    )
    given = dict(zip((question.id for question in asked), answers, strict=True))
    return BenchmarkMarker(
        job.digest, {question.id: given.get(question.id, "") for question in job.questions}, (*unreadable,)
    )


def _draw(sampler: Sampler, job: BenchmarkJob) -> None:
    """Write the drawings of each prompt, with seeds by their positions in the benchmark."""
    settings = sampler.recipe.evaluate
    each = settings.images_per_prompt
    seed = sampler.recipe.run.seed
    drawings = sampler.draw(
        [question.prompt for question in job.questions for _ in range(each)],
        [seed + place * each + number for place in job.places for number in range(each)],
        settings.guidance,
        TokenChoice(settings.temperature, settings.top_k),
    )
    for number, drawing in enumerate(drawings):
        buffer = io.BytesIO()
        Image.fromarray(drawing).save(buffer, "PNG")
        name = sample(job.questions[number // each].id, number % each)
        fs.write_whole(f"{job.out}/{name}", buffer.getvalue())
