"""`janus plan`: what it says is what the plan does, and what it cannot plan it refuses."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from janus_dist.data.forecast import SAMPLED_STEPS, forecast
from janus_dist.data.plan import Plan, open_shards
from tests import prepared


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared.prepare(folder)
    recipe = prepared.recipe(folder, folder / "runs").model_dump(mode="json")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def janus(folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from janus_dist.cli import janus; janus()", "plan", str(folder / "recipe.yaml")]
    return subprocess.run([*command, *arguments], capture_output=True, text=True)


def make_plan(folder, **sections) -> Plan:
    recipe = prepared.recipe(folder, folder / "runs", **sections)
    shards = open_shards(recipe.data, recipe.mix)
    return Plan(shards, recipe.mix, recipe.batch, recipe.run.seed, recipe.train.answers_only)


def test_totals_are_those_of_the_plan(folder):
    plan = make_plan(folder)
    found = forecast(plan, 50, 3)
    steps = [plan.step(step) for step in range(50)]
    assert found.tokens == sum(int(step.record["tokens"].sum()) for step in steps)
    assert found.sampled_steps == 50 < SAMPLED_STEPS
    for number, source in enumerate(found.sources):
        mine = [step.lane == number for step in steps]
        assert source.samples == sum(int(which.sum()) for which in mine)
        read = sum(int(step.record["bytes"][which].sum()) for step, which in zip(steps, mine, strict=True))
        assert source.bytes == pytest.approx(read, abs=50)
        assert source.epochs == pytest.approx(source.tokens / plan.shards[number].manifest.tokens)
    assert found.most_rows == max(step.rows.num_rows for step in steps)
    assert sum(source.share for source in found.sources) == pytest.approx(1)


def test_the_fill_that_it_names_fits(folder):
    before = forecast(make_plan(folder, batch={"fill": 1.0}), 50, 2)
    assert before.steps_beyond_rows > 0 and before.fill_that_fits is not None
    after = forecast(make_plan(folder, batch={"fill": before.fill_that_fits}), 50, 2)
    assert after.steps_beyond_rows < before.steps_beyond_rows


def test_what_it_prints(folder):
    done = janus(folder, "--world", "3", "train.steps=200", "optim.warmup_steps=0")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "200 steps on 3 ranks" in text
    for wanted in (
        "understanding",
        "generation",
        "epochs",
        "fill",
        "straggler ratio",
        "micro-steps",
        "by 64 of the steps",
    ):
        assert wanted in text, wanted
    assert all(len(line) <= 100 for line in text.splitlines())


def test_json_is_one_object(folder):
    done = janus(folder, "--json")
    found = json.loads(done.stdout)
    assert found["world"] == 2 and len(found["sources"]) == 3 and len(found["plan_digest"]) == 64


def test_what_cannot_be_planned(folder):
    done = janus(folder, "data.root=/nowhere")
    assert done.returncode == 3
    assert done.stderr.startswith("no /nowhere/understanding/manifest.json") and "Traceback" not in done.stderr
    done = janus(folder, "batch.row_tokens=21")
    assert done.returncode == 3
    refused = r"sample generation-\d{5} of \S+shard-00000\.tar takes 22 tokens, more than batch\.row_tokens=21"
    assert re.search(refused, done.stderr), done.stderr
