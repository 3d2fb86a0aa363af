"""Values that are no numbers, in a real forward or backward of one rank: they cost their step and nothing else."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from janus_dist.engine import partitions
from janus_dist.engine.zero import ZeroEngine
from janus_dist.train.build import build_trainer
from janus_dist.train.trainer import Trainer
from tests import prepared
from tests.ranks import run_ranks
from tests.resume.test_trainer import losses

BAD, STEPS = 3, 7
"""Step, counted from 0, with the non-finite value, and number of steps."""


def state(engine: ZeroEngine) -> list[torch.Tensor]:
    """Return all tensors that an update changes."""
    flats = engine.optimizer.fp32_partitioned_groups_flat
    moments = [value for flat in flats for value in engine.optimizer.optimizer.state[flat].values()]
    steps = torch.tensor(partitions.optimizer_steps(engine))
    return [steps, *(value.detach().clone() for value in (*flats, *moments))]


def spoil(trainer: Trainer, how: str) -> None:
    """Once, in one micro-step of step BAD on the second rank: image features, or their gradient, are no numbers."""
    spoiled: list[int] = []

    def hook(module: Any, given: Any, features: torch.Tensor) -> torch.Tensor | None:
        if trainer.run.progress.step != BAD or trainer.run.world.rank != 1 or spoiled:
            return None
        spoiled.append(1)
        if how == "forward":
            return features + math.nan
        features.register_hook(lambda gradient: gradient * math.nan)
        return None

    model: Any = trainer.run.engine.module
    model.model.aligner.register_forward_hook(hook)


def fit(folder: Path, root: Path, how: str) -> tuple[list[int], list[str]]:
    """Train; the steps that left all state as it was, and what was said. `without`: the plan's step BAD is left out."""
    lines, unchanged = list[str](), list[int]()
    steps = STEPS - (how == "without")
    recipe = prepared.recipe(folder, root, 2, train={"steps": steps, "save_every_steps": 100}, batch={"micro_rows": 1})
    trainer = build_trainer(recipe, lines.append)
    if how == "without":
        given = trainer.run.loader.steps
        trainer.run.loader.steps = lambda first, stop: (one for one in given(first, stop + 1) if one.plan.step != BAD)
    else:
        spoil(trainer, how)
    update = trainer.run.engine.step

    def watched(lr: float, skip: bool = False) -> float:
        before = state(trainer.run.engine)
        norm = update(lr, skip)
        if all(torch.equal(one, other) for one, other in zip(before, state(trainer.run.engine), strict=True)):
            unchanged.append(trainer.run.progress.step)
        return norm

    trainer.run.engine.step = watched
    trainer.fit()
    return unchanged, lines


@pytest.fixture(scope="module")
def without(folder, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("without")
    run_ranks(fit, 2, root / "meet", folder, root, "without")
    return root


@pytest.mark.parametrize(("how", "said"), [("forward", "loss nan"), ("backward", "a gradient that is not finite")])
def test_what_is_no_number_costs_its_step_and_nothing_else(folder, without, tmp_path, how, said):
    """All others are, bit for bit, those of a run that left this one out."""
    (first, lines), (second, _) = run_ranks(fit, 2, tmp_path / "meet", folder, tmp_path, how)
    assert first == second == [BAD]
    assert [line for line in lines if "skipped" in line] == [f"step {BAD + 1} was skipped: {said}"]
    found, expected = losses(tmp_path), losses(without)
    others = [values for step, values in found.items() if step != BAD + 1]
    assert others == list(expected.values()) and len(others) == STEPS - 1
