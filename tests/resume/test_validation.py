"""Validation: losses of held-out samples that do not depend on the world, and training that does not notice."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

from janus_dist.config.streams import STREAMS
from janus_dist.model import janus
from janus_dist.storage.json_lines import read_records
from janus_dist.train.build import build_trainer
from janus_dist.train.hooks import Validator
from janus_dist.train.validation import STEPS
from tests import prepared
from tests.ranks import run_ranks
from tests.resume.test_trainer import losses, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepared.prepare(folder)
    prepared.prepare(folder / "held", samples=15, seed=1)
    return folder


def sections(folder: Path) -> dict[str, Any]:
    return {"data": {"validation_root": str(folder / "held" / "data")}, "train": {"validate_every_steps": 2}}


def validated(root: Path) -> dict[int, dict[str, float]]:
    lines = read_records(root / "run" / "metrics.jsonl")
    found = {int(line["step"]): {k: v for k, v in line.items() if k.startswith("validation/")} for line in lines}
    return {step: values for step, values in found.items() if values}


def test_training_is_the_same_with_it_and_it_is_the_same_on_any_world(folder, tmp_path):
    without, with_it, alone = (tmp_path / name for name in ("without", "with", "alone"))
    train(folder, without)
    said = train(folder, with_it, **sections(folder))
    assert losses(with_it) == losses(without)
    found = validated(with_it)
    assert list(found) == [2, 4, 6] and all(len(values) == len(STREAMS) for values in found.values())
    values = ", ".join(f"{name} {found[4][f'validation/{name}']:.4f}" for name in STREAMS)
    assert f"step 4, held out: {values}" in said
    train(folder, alone, workers=1, **sections(folder))
    for step, values in validated(alone).items():
        assert values == pytest.approx(found[step], rel=2e-3)


def at_start(folder: Path, root: Path) -> tuple[dict[str, float], dict[str, float], list[int]]:
    """Held-out losses of random weights; by the same model in one piece; invalidated traces over steps between."""
    recipe = prepared.recipe(folder, root, torch.distributed.get_world_size(), **sections(folder))
    trainer = build_trainer(recipe, lambda line: None)
    (validation,) = (hook.validation for hook in trainer.hooks if isinstance(hook, Validator))
    invalidated: list[int] = []
    invalidate = Coordinator._invalidate_trace
    Coordinator._invalidate_trace = lambda self: (invalidated.append(1), invalidate(self))[1]
    again = []
    for step in trainer.run.loader.steps(0, 3):
        for number, batch in enumerate(step.batches):
            trainer.run.engine.micro_step(batch, torch.full((3,), 1e-3), last=number == len(step.batches) - 1)
        trainer.run.engine.step(0.0)
        again.append(validation.losses(trainer.run.engine))  # behind a step, as in training, which records the trace
    assert again[0] == again[1] == again[2]
    whole = janus.build(recipe.model, recipe.run.seed)
    loader = validation.loader
    loader.rank, loader.world = 0, 1
    sums = torch.zeros(3)
    labels = dict.fromkeys(STREAMS, 0)
    with torch.no_grad():
        for step in loader.steps(0, STEPS):
            sums += sum(whole(batch, torch.ones(3))[1] for batch in step.batches)
            labels = {name: labels[name] + step.plan.labels[name] for name in STREAMS}
    expected = {name: value / labels[name] for name, value in zip(STREAMS, sums.tolist(), strict=True)}
    return again[0], expected, invalidated


@pytest.mark.parametrize("world", [1, 2])
def test_losses_are_those_of_the_model_in_one_piece(folder, tmp_path, world):
    for found, expected, invalidated in run_ranks(at_start, world, tmp_path, folder, tmp_path):
        assert found == pytest.approx(expected, rel=1e-4)
        assert invalidated == []


def test_what_is_trained_on_is_refused(folder, tmp_path):
    shutil.copytree(folder / "data" / "text", tmp_path / "copy" / "text")
    (line,) = train(folder, tmp_path, workers=1, data={"validation_root": str(tmp_path / "copy")})
    assert line.startswith("exit 2: ") and "contains the same samples as" in line and "source text" in line


def test_a_folder_without_shard_sets_is_refused(folder, tmp_path):
    (line,) = train(folder, tmp_path, workers=1, data={"validation_root": str(tmp_path / "none")})
    assert line.startswith("exit 2: ") and "contains none of understanding/manifest.json, text/manifest.json" in line


def test_streams_that_are_not_there_are_left_out(folder, tmp_path):
    shutil.copytree(folder / "held" / "data" / "text", tmp_path / "held" / "text")
    train(folder, tmp_path, workers=1, data={"validation_root": str(tmp_path / "held")})
    assert list(validated(tmp_path)[6]) == ["validation/text"]
