"""A published Janus of a few thousand parameters asked all benchmarks: what is written, resuming, sharing, refusals."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ray.exceptions import RayTaskError, WorkerCrashedError

from janus_dist.checkpoint import commits
from janus_dist.config.evaluate import BenchmarkName
from janus_dist.config.recipe import StageRecipe
from janus_dist.data.tokenizer import train_tokenizer
from janus_dist.errors import CheckpointError, ClusterError, ConfigError, DataError
from janus_dist.evaluation.benchmarks import run, work
from janus_dist.evaluation.benchmarks.all import BENCHMARKS
from janus_dist.evaluation.benchmarks.work import BenchmarkJob
from janus_dist.evaluation.sampler import Sampler
from janus_dist.launch import task_pool
from janus_dist.model.sample import TokenChoice
from tests import benchmarks, prepared, published
from tests.checkpoints import IDENTITY

TOKENS = 6


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights never end an answer."""
    for name, benchmark in BENCHMARKS.items():
        monkeypatch.setitem(BENCHMARKS, name, dataclasses.replace(benchmark, max_new_tokens=TOKENS))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., StageRecipe]:
    """Recipes of a run without a checkpoint that would start from a published Janus, by its root and settings."""
    train_tokenizer(["is there a cat in the image? yes no"], prepared.VOCAB, tmp_path / "tokenizer.json")
    model = prepared.recipe(tmp_path, tmp_path).model
    weights = {name: 0.2 * value for name, value in published.tensors(published.deepseek(model)).items()}
    janus = str(published.write(tmp_path / "janus", weights))

    def made(asked: dict[BenchmarkName, Path], root: str = "runs", seed: int = 3, **evaluate: Any) -> StageRecipe:
        recipe = prepared.recipe(
            tmp_path,
            tmp_path / root,
            run={"seed": seed, "start_weights": {"janus": janus}},
            evaluate={"benchmarks": {name: str(path) for name, path in asked.items()}, "batch": 2, **evaluate},
        )
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"vq_weights": janus})})

    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results(folder: Path) -> dict[str, bytes]:
    """Files but the summaries, which name the folder that they lie in."""
    return {name: content for name, content in files(folder).items() if not name.endswith(run.SUMMARY)}


def out_of(recipe: StageRecipe) -> Path:
    return recipe.run.dir / "benchmarks" / "start"


def test_all_benchmarks_are_written_as_their_scorers_read_them(make, tmp_path: Path):
    asked: dict[BenchmarkName, Path] = {
        "geneval": benchmarks.geneval(tmp_path / "geneval"),
        "pope": benchmarks.pope(tmp_path / "pope"),
        "mme": benchmarks.mme(tmp_path / "mme"),
        "gqa": benchmarks.gqa(tmp_path / "gqa"),
        "mmbench": benchmarks.mmbench(tmp_path / "mmbench"),
        "seed": benchmarks.seed(tmp_path / "seed"),
        "mmvet": benchmarks.mmvet(tmp_path / "mmvet"),
    }
    assert asked.keys() == BENCHMARKS.keys()
    recipe = make(asked, images_per_prompt=2)
    found = run.evaluate(recipe, run.do_here)
    names = {name for name in files(out_of(recipe)) if "/jobs/" not in name}
    drawn = {f"geneval/{n:05d}/{file}" for n in range(3) for file in ("metadata.jsonl", *SAMPLES)}
    assert names == drawn | {f"{name}/summary.json" for name in asked} | {
        "pope/answers.jsonl", "pope/questions.jsonl", "pope/answers_popular.jsonl", "pope/answers_random.jsonl",
        "mme/existence.txt", "mme/artwork.txt", "gqa/testdev_balanced_predictions.json", "mmbench/predictions.tsv",
        "seed/predictions.jsonl", "mmvet/predictions.json",
    }  # fmt: skip
    assert {name: summary["questions"] for name, summary in found.items()} == {
        "geneval": 3, "pope": 8, "mme": 6, "gqa": 2, "mmbench": 3, "seed": 1, "mmvet": 2,
    }  # fmt: skip
    for name, summary in found.items():
        written = json.loads((out_of(recipe) / name / "summary.json").read_text())
        assert written | {"out": str(out_of(recipe) / name)} == summary
        assert (written["checkpoint"], written["unreadable"]) == (None, [])


SAMPLES = ("samples/0000.png", "samples/0001.png")


def test_answers_are_those_to_each_question_alone(make, tmp_path: Path):
    recipe = make({"pope": benchmarks.pope(tmp_path / "pope")})
    run.evaluate(recipe, run.do_here)
    sampler = Sampler.load(recipe, None)
    answers = [json.loads(line) for line in (out_of(recipe) / "pope" / "answers.jsonl").read_text().splitlines()]
    questions = BENCHMARKS["pope"].read(tmp_path / "pope")
    for question, answer in zip(questions, answers, strict=True):
        features = sampler.image_features(sampler.picture(question.images[0])[None])
        alone = sampler.answer([question.prompt], features, [[0]], TOKENS)
        assert alone == [answer["text"]]
    assert len({answer["text"] for answer in answers}) > 1, "they depend on what is asked"


def test_drawings_have_the_seeds_of_their_places(make, tmp_path: Path):
    recipe = make({"geneval": benchmarks.geneval(tmp_path / "geneval")}, images_per_prompt=2, guidance=2.0, top_k=9)
    run.evaluate(recipe, run.do_here)
    sampler = Sampler.load(recipe, None)
    alone = sampler.draw(["a photo of bench 2"], [3 + 2 * 2 + 1], 2.0, TokenChoice(1.0, 9))
    with Image.open(out_of(recipe) / "geneval" / "00002" / SAMPLES[1]) as image:
        assert np.array_equal(np.asarray(image), alone[0])
    drawings = {content for name, content in files(out_of(recipe)).items() if name.endswith(".png")}
    assert len(drawings) == 6, "each drawing has a seed of its own"


class StoppedError(Exception):
    """Instead of a kill."""


def stopping_after(number: int) -> run.JobRunner:
    def do(recipe: StageRecipe, checkpoint: str | None, jobs: Sequence[BenchmarkJob]) -> None:
        run.do_here(recipe, checkpoint, jobs[:number])
        raise StoppedError

    return do


def in_two_shares(recipe: StageRecipe, checkpoint: str | None, jobs: Sequence[BenchmarkJob]) -> None:
    run.do_here(recipe, checkpoint, jobs[1::2])
    run.do_here(recipe, checkpoint, jobs[::2])


def test_interrupted_and_shared_out_the_files_are_the_same(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {"geneval": benchmarks.geneval(tmp_path / "geneval"), "pope": benchmarks.pope(tmp_path / "pope", 20)}
    whole = make(asked, "whole", images_per_prompt=2)
    run.evaluate(whole, run.do_here)
    expected = results(out_of(whole))
    assert len([name for name in expected if "/jobs/" in name]) == 3 + 5  # by prompt, and 8 questions at a time

    shared = make(asked, "shared", images_per_prompt=2)
    run.evaluate(shared, in_two_shares)
    assert results(out_of(shared)) == expected

    broken = make(asked, "broken", images_per_prompt=2)
    done: list[str] = []
    do = work.do
    monkeypatch.setattr(work, "do", lambda sampler, job: (done.append(job.marker), do(sampler, job)))
    with pytest.raises(StoppedError):
        run.evaluate(broken, stopping_after(4))
    assert len(done) == 4 and not list(out_of(broken).rglob(run.SUMMARY))
    run.evaluate(broken, run.do_here)
    assert len(done) == len(set(done)) == 8, "what was done stays"
    assert results(out_of(broken)) == expected
    run.evaluate(broken, stopping_after(0))  # which is not called: nothing is left to do
    assert results(out_of(broken)) == expected


def test_what_other_settings_left_is_made_anew(make, tmp_path: Path):
    asked = {"geneval": benchmarks.geneval(tmp_path / "geneval"), "pope": benchmarks.pope(tmp_path / "pope")}
    run.evaluate(make(asked, images_per_prompt=3), run.do_here)
    before = files(out_of(make(asked)))
    run.evaluate(make(asked, images_per_prompt=2, max_questions=2, seed=4), run.do_here)
    after = files(out_of(make(asked)))
    fresh = make(asked, "fresh", images_per_prompt=2, max_questions=2, seed=4)
    run.evaluate(fresh, run.do_here)
    assert {name for name in after if name.startswith("geneval/0")} == {
        f"geneval/0000{n}/{file}" for n in (0, 1) for file in ("metadata.jsonl", *SAMPLES)
    }, "GenEval's scorer would count what is left"
    assert after["geneval/00000/samples/0000.png"] != before["geneval/00000/samples/0000.png"]
    assert {name: after[name] for name in results(out_of(fresh))} == results(out_of(fresh))


def test_a_drawing_that_is_gone_is_drawn_again(make, tmp_path: Path):
    recipe = make({"geneval": benchmarks.geneval(tmp_path / "geneval")}, images_per_prompt=2)
    run.evaluate(recipe, run.do_here)
    before = files(out_of(recipe))
    (out_of(recipe) / "geneval" / "00001" / SAMPLES[0]).unlink()
    run.evaluate(recipe, run.do_here)
    assert files(out_of(recipe)) == before


def test_a_picture_that_is_none_gets_an_empty_answer_and_is_told(make, tmp_path: Path, caplog):
    folder = benchmarks.pope(tmp_path / "pope")
    (folder / "val2014" / "COCO_val2014_000000000001.jpg").write_bytes(b"<html>")
    found = run.evaluate(make({"pope": folder}), run.do_here)["pope"]
    assert found["unreadable"] == [f"{name}/{place}" for name in ("popular", "random") for place in (2, 3)]
    answers = (out_of(make({})) / "pope" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] == "" for line in answers] == [False, False, True, True] * 2
    assert "pope: 4 questions have no readable image" in caplog.text


def test_a_checkpoint_is_asked_before_what_it_started_from(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = make({"gqa": benchmarks.gqa(tmp_path / "gqa")})
    path = commits.folder(recipe.run.saved_in, 2)
    commits.write_marker(
        path,
        commits.Commit(commits.VERSION, 2, **IDENTITY, world=1, optimizer_steps=2, shapes={}, trainable=[], files={}),
    )
    load = Sampler.load
    given: list[str | None] = []
    monkeypatch.setattr(
        Sampler, "load", lambda recipe, checkpoint, device, dtype: (given.append(checkpoint), load(recipe, None))[1]
    )
    found = run.evaluate(recipe, run.do_here)["gqa"]
    assert given == [path] == [found["checkpoint"]]
    assert found["out"] == str(recipe.run.dir / "benchmarks" / "step-00000002" / "gqa")


def test_what_is_refused(make, tmp_path: Path):
    folder = benchmarks.pope(tmp_path / "pope")
    recipe = make({"pope": folder})
    alone = recipe.model_copy(update={"run": recipe.run.model_copy(update={"start_weights": {}})})
    with pytest.raises(CheckpointError, match="no committed checkpoint under"):
        run.evaluate(alone, run.do_here)
    nowhere = recipe.run.model_copy(update={"start_weights": {"janus": str(tmp_path / "none")}})
    with pytest.raises(CheckpointError, match=r"run\.start_weights\.janus=.*none does not exist"):
        run.evaluate(recipe.model_copy(update={"run": nowhere}), run.do_here)
    for path in (folder / "val2014").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"evaluate\.benchmarks\.pope=.*: 2 of 2 images do not exist: .*_000000000000"):
        run.evaluate(recipe, run.do_here)
    (folder / "coco" / "coco_pope_random.json").write_text("")
    (folder / "coco" / "coco_pope_popular.json").write_text("")
    with pytest.raises(DataError, match="has no questions"):
        run.evaluate(recipe, run.do_here)
    twice = benchmarks.mmbench(tmp_path / "mmbench") / "mmbench_dev_20230712.tsv"
    twice.write_text(twice.read_text().replace("\n252\t", "\n241\t"))
    with pytest.raises(DataError, match="3 questions have 2 ids"):
        run.evaluate(make({"mmbench": twice.parent}), run.do_here)


class Shares:
    """Stands in for Ray: shares are done in this process when they are waited for, the last one first. After one that
    fails no other ends."""

    def __init__(self, failing: Exception | None = None):
        self.failing, self.given, self.settings = failing, [], {}
        self.cancelled: list[Any] = []
        self.has_failed = False

    def options(self, **settings: Any) -> "Shares":
        self.settings = settings
        return self

    def remote(self, settings: dict[str, Any], checkpoint: str | None, jobs: Sequence[BenchmarkJob]) -> int:
        self.given.append((settings, checkpoint, jobs))
        return len(self.given) - 1

    def wait(self, running: list[int], timeout: float, num_returns: int = 1) -> tuple[list[int], list[int]]:
        ended = 0 if self.has_failed else num_returns
        return running[len(running) - ended :], running[: len(running) - ended]

    def get(self, ended: list[int]) -> None:
        for number in ended:
            if self.failing is not None:
                self.has_failed = True
                raise self.failing
            settings, checkpoint, jobs = self.given[number]
            run.do_here(StageRecipe.model_validate(settings), checkpoint, jobs)

    def cancel(self, left: int, force: bool) -> None:
        self.cancelled.append(left)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Shares":
        monkeypatch.setattr(task_pool, "connect", lambda: None)
        monkeypatch.setattr(task_pool, "_share", self)
        for name in ("wait", "get", "cancel"):
            monkeypatch.setattr(task_pool.ray, name, getattr(self, name))
        return self


def test_each_process_of_a_cluster_gets_its_share(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {"geneval": benchmarks.geneval(tmp_path / "geneval"), "pope": benchmarks.pope(tmp_path / "pope")}
    alone = make(asked, "alone", images_per_prompt=2)
    run.evaluate(alone, run.do_here)
    shares = Shares().install(monkeypatch)
    recipe = make(asked, images_per_prompt=2)
    run.evaluate(recipe, task_pool.do_jobs)
    assert results(out_of(recipe)) == results(out_of(alone))
    assert [len(jobs) for _, _, jobs in shares.given] == [2, 2]  # cluster.workers
    assert shares.settings == {"num_cpus": 1, "num_gpus": 0, "max_retries": recipe.cluster.restarts}


def test_what_a_process_of_a_cluster_refuses_is_said(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = make({"geneval": benchmarks.geneval(tmp_path / "geneval")}, images_per_prompt=2)
    cause = ConfigError("it takes too many positions", "ask for less")
    shares = Shares(RayTaskError("share", "", cause)).install(monkeypatch)
    with pytest.raises(ConfigError, match="it takes too many positions") as caught:
        run.evaluate(recipe, task_pool.do_jobs)
    assert caught.value is cause and shares.cancelled == [0], "the others are stopped"
    Shares(WorkerCrashedError()).install(monkeypatch)
    with pytest.raises(ClusterError, match="a process was lost 4 times"):
        run.evaluate(recipe, task_pool.do_jobs)
    Shares(RayTaskError("share", "", ZeroDivisionError("ours"))).install(monkeypatch)
    with pytest.raises(RayTaskError):  # our own fault keeps its traceback
        run.evaluate(recipe, task_pool.do_jobs)


def test_published_weights_are_those_of_the_folder(make, tmp_path: Path):
    recipe = make({})
    loaded = Sampler.load(recipe, None).model
    theirs = published.tensors(published.deepseek(recipe.model))
    assert torch.equal(loaded.lm_head.weight, 0.2 * theirs["language_model.lm_head.weight"])
    embedding = loaded.model.language_model.embed_tokens.weight
    assert torch.equal(embedding, 0.2 * theirs["language_model.model.embed_tokens.weight"])
