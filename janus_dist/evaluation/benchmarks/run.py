"""Published benchmarks on a run's newest checkpoint, or on the published Janus that the run would start from.

    RUN/benchmarks/step-XXXXXXXX/NAME/    files for NAME's scorer, jobs/, and summary.json, written last
    RUN/benchmarks/start/NAME/            the same for a run without a checkpoint, by `run.start_weights.janus`

Invariant: results are made from the markers of all jobs, independent of the process and time that did them; without a
summary.json something is missing, and the same command run again completes it.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.find import require_checkpoint
from janus_dist.config.evaluate import BenchmarkName
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.train import DtypeChoice
from janus_dist.data.tokenizer import load_tokenizer
from janus_dist.errors import DataError
from janus_dist.evaluation.benchmarks import work
from janus_dist.evaluation.benchmarks.all import BENCHMARKS
from janus_dist.evaluation.benchmarks.geneval import sample
from janus_dist.evaluation.benchmarks.question import BenchmarkQuestion
from janus_dist.evaluation.benchmarks.work import BenchmarkJob
from janus_dist.evaluation.sampler import Sampler, dtype_for
from janus_dist.storage import fs
from janus_dist.weights.start import open_weights
from janus_dist.weights.vq import digest, load_vq

SUMMARY = "summary.json"
SHOWN = 3
"""Largest number of names in a message."""
JobRunner = Callable[[StageRecipe, str | None, Sequence[BenchmarkJob]], None]
"""Function that does jobs with a checkpoint, in this process or others, and returns when all have a marker."""

log = logging.getLogger("janus_dist")


@dataclass(frozen=True)
class PreparedBenchmark:
    """One benchmark and its jobs."""

    name: BenchmarkName
    out: str
    questions: list[BenchmarkQuestion]
    jobs: list[BenchmarkJob]


def evaluate(recipe: StageRecipe, do: JobRunner, dtype: DtypeChoice = "auto") -> dict[str, dict[str, Any]]:
    """Run all of `evaluate.benchmarks`, write the files for their scorers and return the summaries by name.

    `dtype` is what the model computes in, decided here for all processes (`sampler.dtype_for`). Jobs that an earlier
    call did are not done again. Raises CheckpointError when the run has no checkpoint, DataError when a benchmark's
    files are missing or have another format.
    """
    recipe = recipe.with_absolute_paths()
    checkpoint = _checkpoint(recipe)
    prepared = [_prepare(recipe, name, checkpoint, dtype) for name in recipe.evaluate.benchmarks]
    jobs = [
        job for benchmark in prepared for job in benchmark.jobs if not _is_done(job, recipe.evaluate.images_per_prompt)
    ]
    total = sum(len(benchmark.jobs) for benchmark in prepared)
    source = checkpoint or recipe.run.start_weights["janus"]
    log.info("%s: %d of %d jobs of %s", source, len(jobs), total, ", ".join(recipe.evaluate.benchmarks))
    if jobs:
        do(recipe, checkpoint, jobs)
    return {benchmark.name: _finish(recipe, benchmark, checkpoint) for benchmark in prepared}


def do_here(recipe: StageRecipe, checkpoint: str | None, jobs: Sequence[BenchmarkJob]) -> None:
    """Do jobs one after another in this process, on its GPU with `cluster.gpu`."""
    sampler = Sampler.load(recipe, checkpoint, _device(recipe), jobs[0].dtype)
    for number, job in enumerate(jobs, start=1):
        if work.load(job) is None:  # an earlier attempt may have done it
            work.do(sampler, job)
        log.info("%s: job %d of %d", job.benchmark, number, len(jobs))


def _device(recipe: StageRecipe) -> str:
    return "cuda" if recipe.cluster.gpu else "cpu"


def _checkpoint(recipe: StageRecipe) -> str | None:
    """Return the run's newest checkpoint, or None when it has none but a whole Janus to start from.

    Raises CheckpointError when it has neither.
    """
    if "janus" in recipe.run.start_weights and commits.latest_committed(recipe.run.saved_in) is None:
        return None
    return require_checkpoint(recipe.run.saved_in)


def _identity(recipe: StageRecipe, checkpoint: str | None) -> str:
    """Return the sha256 of the checkpoint's marker, or of the listing of the folder of weights."""
    if checkpoint is not None:
        return commits.identity(checkpoint)
    open_weights(recipe.model, recipe.run.start_weights)  # fail here, where the user sees the error
    path = Path(recipe.run.start_weights["janus"])
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    listed = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _settings(recipe: StageRecipe, checkpoint: str | None, is_drawn: bool) -> dict[str, Any]:
    """Return everything except the questions that determines the results."""
    how = recipe.evaluate
    shared = {
        "checkpoint": _identity(recipe, checkpoint),
        "tokenizer": load_tokenizer(recipe).sha256,
        "chat": recipe.data.chat.model_dump(),
        "batch": how.batch,
    }
    if not is_drawn:
        return shared | {"max_image_pixels": recipe.pipeline.max_image_pixels}
    return shared | {
        "vq": digest(load_vq(recipe.model, recipe.data.vq_weights)),
        "seed": recipe.run.seed,
        **how.model_dump(include={"guidance", "temperature", "top_k", "images_per_prompt"}),
    }


def _prepare(recipe: StageRecipe, name: BenchmarkName, checkpoint: str | None, dtype: DtypeChoice) -> PreparedBenchmark:
    """Read a benchmark and cut it into jobs; remove the results of another cut or other settings."""
    how, benchmark, folder = recipe.evaluate, BENCHMARKS[name], Path(recipe.evaluate.benchmarks[name]).absolute()
    questions = benchmark.read(folder)
    questions = questions[: how.max_questions] if how.max_questions else questions
    _check(name, questions, folder)
    out = f"{recipe.run.dir}/benchmarks/{commits.name_of(checkpoint) if checkpoint else 'start'}/{name}"
    settings = _settings(recipe, checkpoint, benchmark.is_drawn) | ({} if dtype == "auto" else {"dtype": dtype})
    computed_in = dtype_for(recipe, _device(recipe), dtype)
    jobs = work.cut(name, questions, out, how.batch, how.images_per_prompt, settings, computed_in)
    if SUMMARY in fs.names(out):
        fs.remove(f"{out}/{SUMMARY}")
    # remove old markers before their drawings are overwritten, or they would vouch for the wrong ones
    work.markers(out).remove_others(job.digest for job in jobs)
    return PreparedBenchmark(name, out, questions, jobs)


def _check(name: str, questions: Sequence[BenchmarkQuestion], folder: Path) -> None:
    """Raise DataError unless there are questions, each with a unique id and images that exist."""
    if not questions:
        raise DataError(f"evaluate.benchmarks.{name}={folder} has no questions")
    ids = {question.id for question in questions}
    if len(ids) != len(questions):
        raise DataError(f"evaluate.benchmarks.{name}={folder}: {len(questions)} questions have {len(ids)} ids")
    files = dict.fromkeys(image for question in questions for image in question.images if isinstance(image, Path))
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise DataError(
            f"evaluate.benchmarks.{name}={folder}: {len(missing)} of {len(files)} images do not exist: "
            f"{', '.join(missing[:SHOWN])}{', ...' if len(missing) > SHOWN else ''}",
            "see docs/evaluation.md for their location",
        )


def _is_done(job: BenchmarkJob, each: int) -> bool:
    if work.load(job) is None:
        return False
    drawn = job.questions if BENCHMARKS[job.benchmark].is_drawn else ()
    if all(fs.size(f"{job.out}/{sample(question.id, index)}") for question in drawn for index in range(each)):
        return True
    fs.remove(job.marker)
    return False


def _finish(recipe: StageRecipe, prepared: PreparedBenchmark, checkpoint: str | None) -> dict[str, Any]:
    """Write the files for the scorer, then the summary; return the summary and its folder `out`."""
    answered, unreadable = _collect_answers(prepared)
    benchmark = BENCHMARKS[prepared.name]
    if benchmark.is_drawn:
        _remove_other_drawings(prepared, recipe.evaluate.images_per_prompt)
    for name, text in benchmark.write(answered).items():
        fs.write_whole(f"{prepared.out}/{name}", text.encode())
    if unreadable:
        log.warning("%s: %d questions have no readable image: %s", prepared.name, len(unreadable), unreadable[:SHOWN])
    summary = {
        "checkpoint": checkpoint,
        "start_weights": None if checkpoint else recipe.run.start_weights["janus"],
        "folder": recipe.evaluate.benchmarks[prepared.name],
        "questions": len(answered),
        "unreadable": unreadable,
        "evaluate": recipe.evaluate.model_dump(exclude={"benchmarks"}),
        "scores": benchmark.score(answered),
    }
    fs.write_whole(f"{prepared.out}/{SUMMARY}", json.dumps(summary, indent=1).encode() + b"\n")
    return summary | {"out": prepared.out}


def _collect_answers(prepared: PreparedBenchmark) -> tuple[list[tuple[BenchmarkQuestion, str]], list[str]]:
    """Return (question, answer) in the published order, and the ids of questions without a readable image."""
    answers: dict[str, str] = {}
    without_image: set[str] = set()
    for job in prepared.jobs:
        marker = work.load(job)
        assert marker, "`do` came back before all jobs had markers"
        answers |= marker.answers
        without_image |= set(marker.unreadable)
    unreadable = [question.id for question in prepared.questions if question.id in without_image]
    return [(question, answers.get(question.id, "")) for question in prepared.questions], unreadable


def _remove_other_drawings(prepared: PreparedBenchmark, each: int) -> None:
    """Remove the drawings of an evaluation with more prompts or drawings, which the scorer would count."""
    kept = {question.id for question in prepared.questions}
    for path in Path(prepared.out).iterdir():
        if path.name.isdigit() and path.name not in kept:
            fs.remove_folder(path)
        elif path.name.isdigit():
            names = {Path(sample(path.name, index)).name for index in range(each)}
            for other in fs.names(path / "samples"):
                if other not in names:
                    fs.remove(path / "samples" / other)
