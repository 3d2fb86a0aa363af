"""Tests of `engine.dtype=auto`: resolved from the nodes for a new run, from the checkpoint for a resumed run."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError

from janus_dist.config.recipe import StageRecipe
from janus_dist.config.train import EngineConfig
from janus_dist.engine.world import World
from janus_dist.errors import CheckpointError, ClusterError
from janus_dist.evaluation.sampler import dtype_for
from janus_dist.launch import capacity
from janus_dist.model import native
from janus_dist.train import precision
from janus_dist.train.compatible import refuse_other
from tests import checkpoints, prepared

ALONE = World(0, 1, torch.device("cpu"))


def recipe_with(tmp_path, dtype: str, **cluster: Any) -> StageRecipe:
    return prepared.recipe(tmp_path, tmp_path, engine={"dtype": dtype}, cluster=cluster)


def never() -> bool:
    raise AssertionError("nodes are asked although they do not decide")


def trained_in(tmp_path, dtype: str) -> str:
    """Return a checkpoint of a run that was trained in `dtype`."""
    recipe = recipe_with(tmp_path, dtype)
    return checkpoints.mark(recipe.run.saved_in, 3, recipe=recipe.model_dump(mode="json"))


def test_auto_is_the_default():
    assert EngineConfig().dtype == "auto"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_a_recipe_says_is_taken_and_nobody_is_asked(tmp_path, dtype):
    recipe = recipe_with(tmp_path, dtype)
    assert precision.resolve(recipe, never) == (recipe, None)


@pytest.mark.parametrize(
    ("is_native", "gpu", "said"),
    [
        (True, False, "computing in bfloat16: native on every node (engine.dtype=auto)"),
        (False, False, "computing in float32: a node has a CPU that would emulate bfloat16 (engine.dtype=auto)"),
        (False, True, "computing in float32: a node has a GPU older than compute capability 8.0 (engine.dtype=auto)"),
    ],
)
def test_a_new_run_computes_in_what_every_node_has(tmp_path, is_native, gpu, said):
    resolved, line = precision.resolve(recipe_with(tmp_path, "auto", gpu=gpu), lambda: is_native)
    assert line == said and resolved.engine.dtype == ("bfloat16" if is_native else "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_run_goes_on_in_the_dtype_of_its_checkpoint(tmp_path, dtype):
    path = trained_in(tmp_path, dtype)
    resolved, line = precision.resolve(recipe_with(tmp_path, "auto"), never)
    assert resolved.engine.dtype == dtype
    assert line == f"computing in {dtype}: the dtype of its checkpoint {path} (engine.dtype=auto)"
    refuse_other(recipe_with(tmp_path, "auto"))
    refuse_other(resolved)


def test_only_another_explicit_dtype_is_refused(tmp_path):
    trained_in(tmp_path, "bfloat16")
    with pytest.raises(CheckpointError, match=r"trained in bfloat16, the recipe says engine\.dtype=float32") as error:
        refuse_other(recipe_with(tmp_path, "float32"))
    assert "set engine.dtype=auto to resume in bfloat16" in str(error.value.hint)
    refuse_other(recipe_with(tmp_path, "auto"))  # the hint, followed


@pytest.mark.parametrize("is_native", [True, False])
def test_ranks_without_a_job_decide_together(tmp_path, monkeypatch, is_native):
    monkeypatch.setattr(native, "is_native", lambda gpu: is_native)
    resolved = precision.resolve_on_ranks(recipe_with(tmp_path, "auto"), ALONE)
    assert resolved.engine.dtype == ("bfloat16" if is_native else "float32")


@pytest.mark.parametrize(("dtype", "slow"), [("bfloat16", True), ("float32", False)])
def test_emulated_bfloat16_is_said_with_how_slow_it_is(tmp_path, monkeypatch, dtype, slow):
    monkeypatch.setattr(native, "is_native", lambda gpu: False)
    monkeypatch.setattr(native, "emulation_slowdown", lambda: 7.9)
    lines = precision.slow_lines(recipe_with(tmp_path, dtype))
    assert ["takes 7.9 times as long as in float32" in line for line in lines] == [True] * slow
    monkeypatch.setattr(native, "is_native", lambda gpu: True)
    assert precision.slow_lines(recipe_with(tmp_path, dtype)) == []


def test_an_older_gpu_is_refused_with_the_rule(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    gpu = torch.device("cuda")
    with pytest.raises(
        ClusterError, match=r"needs GPUs of compute capability 8\.0 or more .*, but Tesla V100 has 7\.0"
    ):
        precision.check_device(recipe_with(tmp_path, "bfloat16", gpu=True), gpu)
    precision.check_device(recipe_with(tmp_path, "float32", gpu=True), gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    precision.check_device(recipe_with(tmp_path, "bfloat16", gpu=True), gpu)


def test_every_node_that_can_hold_a_rank_is_asked(monkeypatch):
    """Ask neither nodes without the resource nor lost nodes."""
    a, b, gone, none = (digit * 56 for digit in "1234")  # as Ray names nodes
    nodes = {a: {"CPU": 2.0}, b: {"CPU": 2.0, "GPU": 1.0}, gone: {"CPU": 2.0}, none: {"memory": 1.0}}
    natives = {a: True, b: False}
    alive = [{"NodeID": name, "Alive": True, "Resources": there} for name, there in nodes.items()]
    asked: list[str] = []

    def options(scheduling_strategy):
        asked.append(scheduling_strategy.node_id)
        return SimpleNamespace(remote=lambda gpu: scheduling_strategy.node_id)

    def get(name):
        if name == gone:
            raise RayActorError
        return natives[name]

    monkeypatch.setattr(capacity.ray, "nodes", lambda: alive)
    monkeypatch.setattr(capacity, "_is_native", SimpleNamespace(options=options))
    monkeypatch.setattr(capacity.ray, "wait", lambda tasks, num_returns, timeout: (tasks, []))
    monkeypatch.setattr(capacity.ray, "get", get)
    assert not capacity.all_native(gpu=False) and asked == [a, b, gone]
    natives[b] = True
    assert capacity.all_native(gpu=False)
    asked.clear()
    assert capacity.all_native(gpu=True) and asked == [b]


@pytest.mark.parametrize(
    ("engine", "choice", "is_native", "dtype"),
    [
        ("auto", "auto", True, "bfloat16"), ("auto", "auto", False, "float32"),
        ("bfloat16", "auto", False, "float32"), ("bfloat16", "auto", True, "bfloat16"),
        ("float32", "auto", True, "float32"), ("float32", "bfloat16", False, "bfloat16"),
        ("bfloat16", "float32", True, "float32"),
    ],
)  # fmt: skip
def test_sampling_takes_what_fits_the_run_and_the_machine(tmp_path, monkeypatch, engine, choice, is_native, dtype):
    monkeypatch.setattr(native, "is_native", lambda gpu: is_native)
    assert dtype_for(recipe_with(tmp_path, engine), "cpu", choice) == dtype
