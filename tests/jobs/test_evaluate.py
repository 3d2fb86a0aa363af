"""`python jobs/evaluate.py` with published benchmarks, as a user runs it: killed in between, and on a cluster."""

import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from janus_dist.data.tokenizer import train_tokenizer
from tests import benchmarks, prepared, published
from tests.jobs.test_stages import run, start
from tests.limits import HANG_S

pytestmark = pytest.mark.long

JOBS = 20 + 3
"""Four of 80 questions in each, and one of three prompts."""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A recipe of a published Janus of a few thousand parameters, and two benchmarks in JOBS jobs."""
    train_tokenizer(["is there a cat in the image? yes no"], prepared.VOCAB, tmp_path / "tokenizer.json")
    model = prepared.recipe(tmp_path, tmp_path).model
    weights = {name: 0.2 * value for name, value in published.tensors(published.deepseek(model)).items()}
    janus = str(published.write(tmp_path / "janus", weights))
    recipe = prepared.recipe(
        tmp_path,
        tmp_path / "runs",
        run={"start_weights": {"janus": janus}},
        data={"vq_weights": janus},
        evaluate={
            "benchmarks": {
                "pope": str(benchmarks.pope(tmp_path / "pope", 40)),
                "geneval": str(benchmarks.geneval(tmp_path / "geneval")),
            },
            "batch": 1,
            "images_per_prompt": 2,
        },
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    return ["jobs/evaluate.py", str(tmp_path / "recipe.yaml")]


def results(root: Path) -> dict[str, bytes]:
    """What was written, but summaries, which name the folder that they lie in."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "summary.json"
    }


def test_killed_and_started_again_it_leaves_the_same_files(arguments: list[str], tmp_path: Path):
    log = tmp_path / "whole.log"
    whole = ["cluster.workers=1", f"run.root={tmp_path / 'whole'}"]
    assert run([*arguments, *whole], log) == 0, log.read_text()
    said = log.read_text()
    assert f"{JOBS} of {JOBS} jobs of pope, geneval" in said and "pope: 80 questions, " in said
    assert "pope/random/f1" in said

    log, root = tmp_path / "killed.log", tmp_path / "killed"
    killed = ["cluster.workers=1", f"run.root={root}"]
    job = start([*arguments, *killed], log)
    deadline = time.monotonic() + HANG_S
    while len(list(root.rglob("pope/jobs/*.json"))) < 2:
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    left = len(list(root.rglob("jobs/*.json")))
    assert 2 <= left < JOBS and not list(root.rglob("summary.json"))
    assert run([*arguments, *killed], log) == 0, log.read_text()
    assert f"{JOBS - left} of {JOBS} jobs" in log.read_text()
    assert results(root) == results(tmp_path / "whole")


def test_on_a_cluster_the_files_are_the_same(arguments: list[str], tmp_path: Path):
    log = tmp_path / "log"
    for name, workers in (("one", 1), ("two", 2)):
        overrides = [f"cluster.workers={workers}", f"run.root={tmp_path / name}"]
        assert run([*arguments, *overrides], log) == 0, log.read_text()
    assert f"{JOBS} of {JOBS} jobs\n" in log.read_text()
    assert results(tmp_path / "two") == results(tmp_path / "one")
