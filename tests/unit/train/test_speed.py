"""Model FLOPs a second of a step, from the plan alone."""

import numpy as np
import pytest
import torch

from janus_dist.data.collate import DocumentFormat
from janus_dist.data.loader import Loader
from janus_dist.data.plan import Plan, open_shards
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.engine.world import World
from janus_dist.estimate.flops import Counts, model_flops
from janus_dist.monitor.metrics import NAMES
from janus_dist.train import speed
from tests import prepared


def planned(folder, **train):
    # rows so short that texts are cut
    recipe = prepared.recipe(folder, folder, train=train, batch={"row_tokens": 36, "rows": 12, "packing": "split_text"})
    plan = Plan.of(recipe, open_shards(recipe.data, recipe.mix))
    return recipe, plan


@pytest.mark.parametrize("answers_only", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_the_plan_counts_what_ranks_get(folder, answers_only, world):
    recipe, plan = planned(folder, answers_only=answers_only)
    form = DocumentFormat.of(recipe, Tokenizer.load(recipe.data.tokenizer))
    ranks = [Loader(plan, form, rank, world, threads=0).load(3) for rank in range(world)]
    assert ranks[0].plan.num_cuts > 0
    held = [Counts.of(batch) for rank in ranks for batch in rank.batches if batch.num_tokens > 1]  # 1: a dummy
    found = speed.counts(plan.step(3))
    for name in ("tokens", "squared_lengths", "images", "text_labels", "image_labels"):
        assert getattr(found, name) == sum(getattr(one, name) for one in held) > 0


def test_memory_is_the_most_that_there_was(monkeypatch):
    before = speed.peak_gib(torch.device("cpu"))
    held = np.ones(int(before * 2**30) // 8 + 2**24)  # on top of what is resident now
    assert before + 0.1 < speed.peak_gib(torch.device("cpu")) < before + held.nbytes / 2**30 + 0.1
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30 * (device.index == 1))
    assert speed.peak_gib(torch.device("cuda", 1)) == 3.0


def test_metrics_on_a_cpu_have_no_utilisation(folder):
    recipe, plan = planned(folder)
    step = plan.step(0)
    found = speed.speed(recipe, World(0, 4, torch.device("cpu")), step, step_s=0.5)
    flops = model_flops(recipe.model, recipe.train.trainable, speed.counts(step))
    assert found == {"perf/tflops_per_rank": pytest.approx(flops / 4 / 0.5 / 1e12)} and found.keys() <= NAMES


@pytest.mark.parametrize(("name", "dtype", "peak"), [("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
                                                     ("NVIDIA H100 80GB HBM3", "float32", None),
                                                     ("Tesla T4", "bfloat16", None)])  # fmt: skip
def test_utilisation_is_a_share_of_a_known_peak_in_bfloat16(folder, monkeypatch, name, dtype, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    recipe, plan = planned(folder)
    recipe = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"dtype": dtype})})
    found = speed.speed(recipe, World(0, 1, torch.device("cuda", 0)), plan.step(0), step_s=np.pi)
    assert found.get("perf/mfu") == (peak and pytest.approx(found["perf/tflops_per_rank"] * 1e12 / peak))
