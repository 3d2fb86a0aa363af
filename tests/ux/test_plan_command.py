"""`janus plan`: what it says is what the plan does, and what it cannot plan it refuses."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

from janus_dist.cli import plan as plan_cli
from janus_dist.cli.plan import lines
from janus_dist.data.plan import Plan, open_shards
from janus_dist.estimate import forecast as forecast_module
from janus_dist.estimate.forecast import EVERY_STEP, forecast
from tests import prepared
from tests.synthetic import stream_tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared.prepare(folder)
    recipe = prepared.recipe(folder, folder / "runs").model_dump(mode="json")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def janus(folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from janus_dist.cli.main import janus; janus()",
        "plan",
        str(folder / "recipe.yaml"),
    ]
    return subprocess.run([*command, *arguments], capture_output=True, text=True)


def make_plan(folder, **sections) -> Plan:
    recipe = prepared.recipe(folder, folder / "runs", **sections)
    shards = open_shards(recipe.data, recipe.mix)
    return Plan.of(recipe, shards)


def test_totals_are_those_of_the_plan(folder):
    plan = make_plan(folder)
    found = forecast(plan, 50, 3)
    steps = [plan.step(step) for step in range(50)]
    assert found.tokens == sum(int(step.record["tokens"].sum()) for step in steps)
    assert found.sampled_steps == 50 < EVERY_STEP
    for number, source in enumerate(found.sources):
        mine = [step.lane == number for step in steps]
        assert source.samples == sum(int(which.sum()) for which in mine)
        read = sum(int(step.record["bytes"][which].sum()) for step, which in zip(steps, mine, strict=True))
        assert source.bytes == pytest.approx(read, abs=50)
        assert source.epochs == pytest.approx(source.tokens / plan.shards[number].manifest.tokens)
    assert found.most_rows == max(step.rows.num_rows for step in steps)
    assert sum(source.share for source in found.sources) == pytest.approx(1)


CHANGING = {"then": [{"from_step": 30, "text": 0}, {"from_step": 33, "text": 1, "generation": 9}]}


def test_every_phase_is_looked_at(folder, monkeypatch):
    monkeypatch.setattr(forecast_module, "EVERY_STEP", 10)
    monkeypatch.setattr(forecast_module, "SAMPLED_STEPS", 4)
    plan, planned = make_plan(folder, mix=CHANGING), list[int]()
    found = forecast(plan, 50, 2, say=planned.append)
    assert [(phase.first_step, phase.steps, phase.sampled_steps) for phase in found.phases] == [
        (0, 30, 4),
        (30, 3, 3),
        (33, 17, 4),
    ]
    assert found.sampled_steps == 11 and planned == list(range(1, 12))
    assert found.phases[1].shares["text"] == 0 < found.phases[2].shares["text"]
    whole = forecast(plan, 50, 2, every_step=True)
    assert whole.sampled_steps == 50
    steps = [plan.step(step) for step in range(50)]
    for phase in whole.phases:
        mine = steps[phase.first_step : phase.first_step + phase.steps]
        assert phase.most_rows == max(step.rows.num_rows for step in mine)
        assert phase.steps_beyond_rows == np.mean([step.rows.num_rows > plan.batch.rows for step in mine])
        text = sum(stream_tokens(step, "text") for step in mine) / sum(step.record["tokens"].sum() for step in mine)
        assert phase.shares["text"] == pytest.approx(text)
    assert whole.rows == pytest.approx(np.mean([step.rows.num_rows for step in steps]))


def test_a_long_run_says_how_much_was_planned(folder):
    done = janus(folder, "train.steps=2000", "mix.then=[{from_step: 1500, text: 0}]")
    assert done.returncode == 0, done.stderr
    assert "based on 256 of the steps (--all plans every step):" in done.stdout
    shares = (
        r"from step     1,500  understanding \d+\.\d%, generation \d+\.\d%\n +fill \d+\.\d%, straggler ratio 1\.\d+, "
    )
    assert re.search(shares + r"4 rows at most: all 128 planned steps fit\n", done.stdout), done.stdout
    assert re.search(
        r"\nbatch.rows=4: about \d\.\d% of the steps need more rows; smaller steps of batch.fill=0.\d+ fit", done.stdout
    )
    phases = json.loads(janus(folder, "train.steps=2000", "mix.then=[{from_step: 1500, text: 0}]", "--json").stdout)
    assert [phase["every_step_fits"] for phase in phases["phases"]] == [False, None] and not phases["every_step_fits"]
    assert phases["phases"][1]["shares"]["text"] == 0
    done = janus(folder, "train.steps=2000", "--all")
    assert "based on all steps:" in done.stdout


def test_quotas_show_that_every_step_fits(folder, monkeypatch):
    """Without planning every one; and where that is said, every one does."""
    sections = {
        "batch": {"packing": "split_text", "row_tokens": 128, "fill": None},
        "mix": {"then": [{"from_step": 200, "text": 0}, {"from_step": 250, "text": 3}]},
    }
    every = forecast(make_plan(folder, **sections), 500, 2)
    monkeypatch.setattr(forecast_module, "EVERY_STEP", 10)
    found = forecast(make_plan(folder, **sections), 500, 2)
    assert (found.sampled_steps, every.sampled_steps) == (128 + 50 + 128, 500)
    assert found.phases[0].every_step_fits and found.phases[2].every_step_fits
    assert every.phases[0].most_rows <= 4 and every.phases[2].most_rows <= 4
    text = "\n".join(lines(found, prepared.recipe(folder, folder / "runs", **sections)))
    assert text.count("4 rows at most: every step fits, by its quotas\n") == 2


def test_progress_is_said_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(plan_cli, "PRINT_INTERVAL_S", 0.0)
    said = plan_cli.PlanningProgress(4_000)
    said(1_000)
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"1,000 of 4,000 steps planned, \S+ left\n", err)


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
        "based on all steps:",
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
    assert done.stderr.startswith("/nowhere/understanding/manifest.json does not exist")
    assert "Traceback" not in done.stderr
    done = janus(folder, "batch.row_tokens=21")
    assert done.returncode == 3
    refused = r"sample generation-\d{5} of \S+shard-00000\.tar takes 22 tokens, more than batch\.row_tokens=21"
    assert re.search(refused, done.stderr), done.stderr
