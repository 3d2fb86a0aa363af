"""Pipelines in one process: the work on an input, and a run whose jobs are done one after the other, without Ray."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import stream
from data_pipelines.job import InputWork, run_job
from data_pipelines.prepare import input_work
from data_pipelines.task import JobSummary
from data_pipelines.tokenizer import PATH
from data_pipelines.work import ShardJob
from janus_dist.config.load import load
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data.tokenizer import Tokenizer

BASE = Path(__file__).parents[1] / "jobs" / "recipes" / "tiny" / "base.yaml"
SMALL = ["model.image_size=16", "pipeline.shard_samples=8", "pipeline.jpeg_quality=null", f"data.tokenizer={PATH}"]
TOKENIZER = Tokenizer.load(PATH)


def recipe(root: Path | str, *overrides: str) -> BaseRecipe:
    """A recipe that writes below `root`."""
    return load(BaseRecipe, [BASE], [*SMALL, f"data.root={root}", *overrides]).recipe


def work_on(name: str, path: Path | str, root: Path | str, *overrides: str, form: str = "jsonl") -> InputWork:
    """The work on one input, named like its stream, of files at a path."""
    own = f"pipeline.inputs.{name}={{format: {form}, path: '{path}'}}"
    return input_work(name, recipe(root, own, *overrides), TOKENIZER)


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Let `stream.run` do its jobs here, in their order."""

    def finished(of: InputWork, jobs: Sequence[ShardJob], *_: Any) -> Iterator[tuple[ShardJob, JobSummary]]:
        for job in jobs:
            marker = run_job(job, of, None, with_examples=True)
            assert marker is not None
            yield job, JobSummary.of(marker)

    patch.setattr(stream, "finished_jobs", finished)
