"""Checkpoints of 1 to 4 ranks in worlds of 1 to 4; hpZ and the dtypes of gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch

from janus_dist.checkpoint import commits
from janus_dist.checkpoint import state as checkpoint
from janus_dist.config.train import ClusterConfig, EngineConfig, OptimConfig
from janus_dist.engine import partitions, zero
from janus_dist.engine.world import join
from janus_dist.engine.zero import ZeroEngine
from janus_dist.model import janus
from janus_dist.model.parts import PREFIXES, set_trainable
from tests import tiny
from tests.checkpoints import save, saved_in
from tests.ranks import run_ranks
from tests.resume.test_checkpoint import TRAINABLE, make_engine, train_steps

WORLDS = (1, 2, 3, 4)
State = dict[str, torch.Tensor]


def everything(engine: ZeroEngine) -> State:
    """All that training has made, whole on the first rank: weights, moments, frozen parts, AdamW's count of steps."""
    found: State = {}
    partitions.begin(engine)
    for piece in partitions.pieces(engine):
        flats = {"weights": piece.flat} | (partitions.moments(engine, piece) if piece.trainable else {})
        for what, flat in flats.items():
            parts: Any = engine.world.gather(piece.view(flat).clone())
            found[f"{what}/{piece.name}"] = torch.cat(parts)[: piece.elements]
    partitions.end(engine, restored=False)
    return found | {"steps": torch.tensor(partitions.optimizer_steps(engine))}


def written(root: Path) -> tuple[State, list[float]]:
    engine = make_engine()
    train_steps(engine, 0, 2)
    save(engine, root / f"of-{engine.world.size}", 2)
    return everything(engine), train_steps(engine, 2, 3)


def read(root: Path, worlds: tuple[int, ...]) -> list[tuple[State, list[float]]]:
    found = []
    for world in worlds:
        engine = make_engine(seed=1)
        path = commits.latest_committed(saved_in(root / f"of-{world}"))
        assert path is not None
        checkpoint.restore(engine, path)
        found.append((everything(engine), train_steps(engine, 2, 3)))
    return found


@pytest.mark.slow
def test_any_world_goes_on_from_what_any_world_wrote(tmp_path):
    """16 pairs: every tensor equal bit for bit, and the next loss equal but for the order of sums."""
    wrote = [run_ranks(written, world, tmp_path / f"w{world}", tmp_path)[0] for world in WORLDS]
    learned = sum(name.startswith("exp_avg/") for name in wrote[0][0])
    frozen = sum(name.startswith("weights/") for name in wrote[0][0]) - learned
    assert learned and frozen and all(state["steps"] == 2 for state, _ in wrote)
    for world in WORLDS:
        for (state, losses), (found, next_losses) in zip(
            wrote, run_ranks(read, world, tmp_path / f"r{world}", tmp_path, WORLDS)[0], strict=True
        ):
            assert found.keys() == state.keys()
            assert all(torch.equal(found[name], value) for name, value in state.items())
            assert next_losses == pytest.approx(losses, rel=2e-5)


def test_parameters_are_all_that_a_model_has_to_keep():
    """No buffer is learned or drawn: what a checkpoint does not hold is a function of the recipe."""
    model = janus.build(tiny.MODEL, 0)
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()
    assert {name.rpartition(".")[2] for name, _ in model.named_buffers()} <= {
        "inv_freq", "original_inv_freq", "position_ids",
    }  # fmt: skip


def losses_with(settings: dict[str, Any], run_dir: Path | None = None) -> list[float]:
    world = join(ClusterConfig(workers=1), timeout_s=60)

    def fresh(seed: int) -> ZeroEngine:
        model = janus.on_meta(tiny.MODEL)
        set_trainable(model, TRAINABLE)
        engine = EngineConfig(persist_elements=64, **settings)
        return ZeroEngine(model, janus.made(model, seed, world.device), engine, OptimConfig(lr=1e-2), world)

    engine = fresh(0)
    found = train_steps(engine, 0, 2)
    if run_dir is not None:
        save(engine, run_dir, 2)
        engine = fresh(1)
        train_steps(engine, 0, 1)  # so that there are copies of other weights
        path = commits.latest_committed(saved_in(run_dir))
        assert path is not None
        checkpoint.restore(engine, path)
    return found + train_steps(engine, 2, 4)


@pytest.mark.long
def test_weights_kept_within_a_node_change_no_loss(tmp_path):
    """hpZ on two nodes of two ranks, also behind a restored checkpoint, whose weights the copies do not have."""
    plain = run_ranks(losses_with, 4, tmp_path / "a", {"dtype": "float32"})[0]
    hpz = {"dtype": "float32", "hpz_ranks": 2}
    kept = run_ranks(losses_with, 4, tmp_path / "b", hpz, tmp_path / "run", ranks_per_node=2)[0]
    assert kept == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("setting", ["reduce_dtype", "accumulate_dtype"])
def test_gradients_in_bfloat16_round_and_no_more(tmp_path, setting):
    exact = run_ranks(losses_with, 2, tmp_path / "a", {"dtype": "bfloat16"})[0]
    rounded = run_ranks(losses_with, 2, tmp_path / "b", {"dtype": "bfloat16", setting: "bfloat16"})[0]
    assert rounded[0] == exact[0] and rounded != exact, "the first loss has seen no gradient"
    assert rounded == pytest.approx(exact, rel=0.02)


def state_of_one(sent_as: str | None) -> tuple[str, State]:
    """Return DeepSpeed's communication dtype and the state after two steps of one rank, with `sent_as` if set."""
    made = zero.deepspeed_config
    if sent_as is not None:
        zero.deepspeed_config = lambda *of: made(*of) | {"communication_data_type": sent_as}
    world, model = join(ClusterConfig(workers=1), timeout_s=60), janus.on_meta(tiny.MODEL)
    set_trainable(model, TRAINABLE)
    settings = EngineConfig(dtype="bfloat16")
    engine = ZeroEngine(model, janus.made(model, 0, world.device), settings, OptimConfig(lr=1e-2), world)
    train_steps(engine, 0, 2)
    return str(engine.optimizer.communication_data_type), everything(engine)


def test_one_rank_sums_nothing_so_its_gradients_are_not_widened_on_the_way(tmp_path):
    sent_as, found = run_ranks(state_of_one, 1, tmp_path / "a", None)[0]
    widened, expected = run_ranks(state_of_one, 1, tmp_path / "b", "fp32")[0]
    assert (sent_as, widened) == ("torch.bfloat16", "torch.float32")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def all_parts(settings: dict[str, Any]) -> str:
    world = join(ClusterConfig(workers=1), timeout_s=60)
    model = janus.on_meta(tiny.MODEL)
    set_trainable(model, tuple(PREFIXES))
    engine = EngineConfig(dtype="bfloat16", persist_elements=64, **settings)
    made = ZeroEngine(model, janus.made(model, 0, world.device), engine, OptimConfig(lr=1e-2), world)
    return str(made.optimizer.grad_partitions_flat_buffer.dtype)


def test_the_dtype_of_sums_over_micro_steps_is_the_buffers(tmp_path):
    for dtype in ("float32", "bfloat16"):
        assert run_ranks(all_parts, 1, tmp_path, {"accumulate_dtype": dtype}) == [f"torch.{dtype}"]
