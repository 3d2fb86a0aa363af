"""Checkpoints over ZeRO-3: any world reads what any world wrote, frozen parts and moments included."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from janus_dist.config.train import ClusterConfig, EngineConfig, OptimConfig
from janus_dist.engine import checkpoint, commits, partitions
from janus_dist.engine.stored import load_weights
from janus_dist.engine.world import join
from janus_dist.engine.zero import ZeroEngine
from janus_dist.errors import CheckpointError
from janus_dist.model import janus
from janus_dist.model.parts import set_trainable
from tests import tiny
from tests.ranks import run_ranks

Dtype = Literal["bfloat16", "float32"]
IDENTITY = {"plan_digest": "p", "plan": {}, "cursors": {}, "model": {}, "tokens": 7}
TRAINABLE = ("understanding_adaptor", "language_model", "image_head")


def make_engine(seed: int = 0, dtype: Dtype = "float32", trainable=TRAINABLE) -> ZeroEngine:
    world = join(ClusterConfig(workers=1), timeout_s=60)
    model = janus.build(tiny.MODEL, seed)
    set_trainable(model, trainable)
    engine = EngineConfig(dtype=dtype, persist_elements=64)
    return ZeroEngine(model, engine, OptimConfig(lr=1e-2, weight_decay=0.1), world)


def mean_loss(labels: torch.Tensor, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    loss = losses.sum() / labels
    return loss, loss.detach()


def train_steps(engine: ZeroEngine, first: int, stop: int) -> list[float]:
    """Train on the same global batch of four micro-batches whatever the world; the losses of each step."""
    losses = []
    for step in range(first, stop):
        batches = [tiny.batch(100 * step + number) for number in range(4)]
        labels = torch.stack([tiny.label_counts(batch) for batch in batches]).sum()
        mine = batches[engine.world.rank :: engine.world.size]
        rounds = -(-4 // engine.world.size)
        total = torch.zeros(())
        for number in range(rounds):
            batch = mine[number] if number < len(mine) else tiny.empty_batch()

            total += engine.micro_step(partial(mean_loss, labels), batch, last=number == rounds - 1)
        engine.step(lr=1e-2)
        losses.append(engine.world.sum(total).item())
    return losses


def train_and_save(run_dir: Path, dtype: Dtype = "float32") -> list[float]:
    engine = make_engine(dtype=dtype)
    losses = train_steps(engine, 0, 2)
    checkpoint.save(engine, run_dir, 2, IDENTITY)
    return losses + train_steps(engine, 2, 4)


def resume(run_dir: Path, dtype: Dtype = "float32") -> tuple[list[float], int]:
    engine = make_engine(seed=1, dtype=dtype)  # other random weights, so that what is not restored shows
    path = commits.latest(run_dir)
    assert path is not None
    commit = checkpoint.restore(engine, path)
    return train_steps(engine, commit.step, 4), commit.optimizer_steps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resume_on_the_same_world_is_bit_for_bit_equal(tmp_path, dtype):
    unbroken = run_ranks(train_and_save, 2, tmp_path / "a", tmp_path / "run", dtype)[0]
    resumed, optimizer_steps = run_ranks(resume, 2, tmp_path / "b", tmp_path / "run", dtype)[0]
    assert resumed == unbroken[2:]
    assert optimizer_steps == 2


@pytest.mark.parametrize("world", [1, 3])
def test_resume_on_another_world(tmp_path, world):
    unbroken = run_ranks(train_and_save, 2, tmp_path / "a", tmp_path / "run")[0]
    resumed, _ = run_ranks(resume, world, tmp_path / "b", tmp_path / "run")[0]
    assert resumed == pytest.approx(unbroken[2:], rel=2e-5)


def save_and_dump(run_dir: Path) -> dict[str, torch.Tensor]:
    engine = make_engine()
    train_steps(engine, 0, 1)
    checkpoint.save(engine, run_dir, 1, IDENTITY)
    return full_weights(engine)


def full_weights(engine: ZeroEngine) -> dict[str, Any]:
    """Every parameter in full precision by DeepSpeed's public accessor, independent of our partition code."""
    from deepspeed.utils import safe_get_full_fp32_param

    found = {}
    for name, parameter in engine.module.named_parameters():
        parameter: Any
        if parameter.requires_grad:
            found[name] = safe_get_full_fp32_param(parameter).detach().clone()
        else:
            found[name] = parameter.ds_tensor.detach().clone() if engine.world.size == 1 else None
    return found


def test_load_weights_gives_what_deepspeed_says(tmp_path):
    expected = run_ranks(save_and_dump, 1, tmp_path / "a", tmp_path / "run")[0]
    found = load_weights(tmp_path / "run")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name].flatten(), weight.flatten()[: found[name].numel()]), name


def weights_into_other_parts(run_dir: Path) -> tuple[dict[str, torch.Tensor], int]:
    engine = make_engine(seed=1, trainable=("vision_tower", "language_model", "text_head"))
    path = commits.latest(run_dir)
    assert path is not None
    checkpoint.restore_weights(engine, path)
    return full_weights(engine), partitions.optimizer_steps(engine)


def test_a_stage_starts_from_weights_only_by_name(tmp_path):
    """Other parts learn in the next stage: all weights arrive, the optimizer starts anew."""
    before = run_ranks(save_and_dump, 1, tmp_path / "a", tmp_path / "run")[0]
    after, optimizer_steps = run_ranks(weights_into_other_parts, 1, tmp_path / "b", tmp_path / "run")[0]
    assert optimizer_steps == 0
    for name, weight in before.items():
        number = after[name].numel()
        assert torch.equal(after[name].flatten(), weight.flatten()[:number]), name


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    run_ranks(save_and_dump, 2, folder / "a", folder / "run")
    return folder / "run"


def copy_of(saved: Path, folder: Path) -> Path:
    shutil.copytree(saved, folder)
    return folder


def test_a_folder_without_marker_does_not_count(saved, tmp_path):
    run = copy_of(saved, tmp_path / "run")
    (commits.folder(run, 1) / commits.MARKER).unlink()
    assert commits.latest(run) is None
    with pytest.raises(CheckpointError, match="no committed checkpoint"):
        load_weights(run)


def test_a_cut_file_does_not_count(saved, tmp_path):
    run = copy_of(saved, tmp_path / "run")
    file = commits.folder(run, 1) / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    assert commits.latest(run) is None


def test_a_flipped_byte_is_found_when_loading(saved, tmp_path):
    run = copy_of(saved, tmp_path / "run")
    file = commits.folder(run, 1) / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        load_weights(run)
    assert "fall back" in str(caught.value)


def test_another_version_is_refused(saved, tmp_path):
    run = copy_of(saved, tmp_path / "run")
    marker = commits.folder(run, 1) / commits.MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"version": 99}))
    with pytest.raises(CheckpointError, match="format version 99"):
        commits.latest(run)


def save_three(run_dir: Path) -> None:
    engine = make_engine()
    for step in (1, 2, 3):
        checkpoint.save(engine, run_dir, step, IDENTITY)


def test_prune_keeps_the_newest_whole_ones(tmp_path):
    run_ranks(save_three, 1, tmp_path / "a", tmp_path / "run")
    (commits.folder(tmp_path / "run", 1) / commits.MARKER).unlink()
    commits.prune(tmp_path / "run", keep=2)
    assert [path.name for path in commits.committed(tmp_path / "run")] == ["step-00000002", "step-00000003"]
    assert not commits.folder(tmp_path / "run", 1).exists()
    commits.prune(tmp_path / "run", keep=1)
    assert [path.name for path in commits.committed(tmp_path / "run")] == ["step-00000003"]
