"""What `janus plan` says of time, checkpoints and bytes, against sums done by hand."""

import json

import numpy as np
import pytest

from janus_dist.cli.plan import budget_lines
from janus_dist.config.recipe import StageRecipe
from janus_dist.data.plan import Plan, open_shards
from janus_dist.errors import ConfigError
from janus_dist.estimate.budget import COPY_BYTES_S, budget
from janus_dist.estimate.flops import Counts, model_flops
from janus_dist.estimate.forecast import forecast
from janus_dist.model import janus
from janus_dist.model.parts import part_of
from janus_dist.train.speed import counts
from tests import prepared

STEPS = 20


def make(folder, root, **sections) -> tuple[StageRecipe, Plan]:
    sections.setdefault("train", {}).update(steps=STEPS)
    recipe = prepared.recipe(folder, root, **sections)
    return recipe, Plan.of(recipe, open_shards(recipe.data, recipe.mix))


def mean_flops(recipe: StageRecipe, plan: Plan) -> float:
    steps = [counts(plan.step(step)) for step in range(STEPS)]
    mean = {name: round(np.mean([getattr(one, name) for one in steps])) for name in vars(steps[0])}
    return model_flops(recipe.model, recipe.train.trainable, Counts(**mean))


def test_time_from_an_assumed_mfu(folder, tmp_path):
    recipe, plan = make(folder, tmp_path, cluster={"gpu": True, "workers": 16})
    found = budget(recipe, forecast(plan, STEPS, 16), 0.4, "A100")
    flops = mean_flops(recipe, plan)
    assert found.tflop_per_step == pytest.approx(flops / 1e12)
    assert found.step_s == pytest.approx(flops / (0.4 * 312e12) / 16)
    assert found.run_s == pytest.approx(STEPS * found.step_s)
    assert found.rank_hours == pytest.approx(found.run_s * 16 / 3_600)
    assert found.speed_from == "assumed: MFU 0.40 of A100's 312 TFLOP/s"
    assert found.nodes == 2
    bytes_read = sum(int(plan.step(step).record["bytes"].sum()) for step in range(STEPS))
    assert found.node_read_bytes == pytest.approx(bytes_read / 2, abs=10)
    assert found.node_read_bytes_s == pytest.approx(found.node_read_bytes / found.run_s)
    plain = budget(recipe, forecast(plan, STEPS, 16), None, None)
    assert plain.speed_from == "assumed: MFU 0.35 of H100's 989 TFLOP/s"


def test_time_from_the_runs_own_steps(folder, tmp_path):
    recipe, plan = make(folder, tmp_path)
    found = budget(recipe, forecast(plan, STEPS, 2), None, None)
    assert (found.step_s, found.run_s, found.rank_hours, found.node_read_bytes_s) == (None, None, None, None)
    assert found.speed_from.startswith("no speed is known")
    recipe.run.dir.mkdir(parents=True)
    lines = [json.dumps({"step": step, "perf/tflops_per_rank": rate}) for step, rate in enumerate((0.9, 0.01, 0.02))]
    (recipe.run.dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = budget(recipe, forecast(plan, STEPS, 4), None, None)
    assert found.step_s == pytest.approx(mean_flops(recipe, plan) / 0.02e12 / 4)
    assert "median of the last 3 steps" in found.speed_from


def test_checkpoints(folder, tmp_path):
    train = {"save_every_steps": 3, "keep_checkpoints": 2, "keep_every_steps": 10, "trainable": ["image_head"]}
    recipe, plan = make(folder, tmp_path, train=train)
    found = budget(recipe, forecast(plan, STEPS, 3), None, None)
    model = janus.build(recipe.model, 0)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    learned = [size for name, size in sizes.items() if part_of(name) == "image_head"]
    frozen = [size for name, size in sizes.items() if part_of(name) != "image_head"]
    assert found.checkpoint_bytes == 12 * sum(learned) + 4 * sum(frozen)  # this recipe trains in float32
    mine = 12 * sum(-(-size // 3) for size in learned) + 4 * sum(-(-size // 3) for size in frozen)
    assert found.stall_s == pytest.approx(mine / COPY_BYTES_S[False])
    assert found.checkpoints_kept == 2 + 2
    said = "\n".join(budget_lines(vars(found), 3))
    assert "4 kept at the end" in said and "of 1 node" in said and "  time" not in said


def test_an_unknown_device_is_refused(folder, tmp_path):
    recipe, plan = make(folder, tmp_path, cluster={"gpu": True})
    with pytest.raises(ConfigError, match="--device TPU: its peak is not known"):
        budget(recipe, forecast(plan, STEPS, 2), None, "TPU")


def test_a_recipe_gives_all_that_its_plan_is_made_of(folder):
    sections = {"run": {"seed": 11}, "train": {"answers_only": True}, "batch": {"row_tokens": 40}}
    recipe = prepared.recipe(folder, folder, **sections)
    shards = open_shards(recipe.data, recipe.mix)
    expected = Plan(shards, recipe.mix, recipe.batch, seed=11, answers_only=True)
    assert Plan.of(recipe, shards).digest == expected.digest
