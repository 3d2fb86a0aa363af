"""Checkpoints over ZeRO-3: any world reads what any world wrote, frozen parts and moments included."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from janus_dist.checkpoint import commits
from janus_dist.checkpoint import state as checkpoint
from janus_dist.checkpoint.commits import RetentionPolicy
from janus_dist.config.train import ClusterConfig, EngineConfig, OptimConfig
from janus_dist.engine import partitions
from janus_dist.engine.world import join
from janus_dist.engine.zero import ZeroEngine
from janus_dist.errors import CheckpointError
from janus_dist.model import janus
from janus_dist.model.parts import PREFIXES, part_of, set_trainable
from janus_dist.weights.start import open_weights
from tests import published, tiny
from tests.checkpoints import folder_of, load_weights, save, saved_in
from tests.ranks import run_ranks

Dtype = Literal["bfloat16", "float32"]
TRAINABLE = ("understanding_adaptor", "language_model", "image_head")


def make_engine(seed: int = 0, dtype: Dtype = "float32", trainable=TRAINABLE) -> ZeroEngine:
    world = join(ClusterConfig(workers=1), timeout_s=60)
    model = janus.on_meta(tiny.MODEL)
    set_trainable(model, trainable)
    engine = EngineConfig(dtype=dtype, persist_elements=64)
    made = janus.made(model, seed, world.device)
    return ZeroEngine(model, made, engine, OptimConfig(lr=1e-2, weight_decay=0.1), world)


def train_steps(engine: ZeroEngine, first: int, stop: int) -> list[float]:
    """Train on the same global batch of four micro-batches whatever the world; the losses of each step."""
    losses = []
    for step in range(first, stop):
        batches = [tiny.batch(100 * step + number) for number in range(4)]
        labels = torch.stack([tiny.label_counts(batch) for batch in batches]).sum()
        mine = batches[engine.world.rank :: engine.world.size]
        rounds = -(-4 // engine.world.size)
        factors, total = torch.full((3,), 1 / float(labels)), torch.zeros(3)
        for number in range(rounds):
            batch = mine[number] if number < len(mine) else tiny.empty_batch()
            total += engine.micro_step(batch, factors, last=number == rounds - 1)
        engine.step(lr=1e-2)
        losses.append(engine.world.sum(total * factors).sum().item())
    return losses


def weights_and_frequencies(seed: int) -> tuple[dict[str, torch.Tensor], torch.dtype]:
    engine = make_engine(seed, dtype="bfloat16", trainable=tuple(PREFIXES))
    model: Any = engine.module
    return full_weights(engine), model.model.language_model.rotary_emb.inv_freq.dtype


def test_partitions_hold_what_one_process_would_build(tmp_path):
    """Module by module and rank by rank; the rotary frequencies, a buffer, stay in float32."""
    expected = dict(janus.build(tiny.MODEL, 5).named_parameters())
    for found, dtype in run_ranks(weights_and_frequencies, 2, tmp_path, 5):
        assert dtype == torch.float32
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            assert torch.equal(found[name], weight.bfloat16().float()), name


def filled(start: dict[str, str]) -> dict[str, torch.Tensor]:
    engine = make_engine(5, trainable=tuple(PREFIXES))
    checkpoint.fill(engine, open_weights(tiny.MODEL, start))
    return full_weights(engine)


@pytest.mark.parametrize("world", [1, 3])
def test_published_weights_reach_the_partitions_of_every_rank(tmp_path, world):
    theirs = published.tensors(published.deepseek(tiny.MODEL), dtype=torch.float32)
    start = {"janus": str(published.write(tmp_path / "janus", theirs, shards=3))}
    for found in run_ranks(filled, world, tmp_path / "ranks", start):
        query = theirs["vision_model.vision_tower.blocks.0.attn.qkv.weight"].chunk(3)[0]
        assert torch.equal(found["model.vision_model.encoder.layers.0.self_attn.q_proj.weight"], query)
        assert torch.equal(found["lm_head.weight"], theirs["language_model.lm_head.weight"])
        for name, stored in open_weights(tiny.MODEL, start).items():
            assert torch.equal(found[name].flatten(), stored.read(0, stored.elements)), name


def test_what_published_weights_lack_keeps_its_random_values(tmp_path):
    """Load a language model with a smaller vocabulary: rows of special tokens and all other parts stay random."""
    llama = published.tensors(published.llama(tiny.MODEL, "model."), dtype=torch.float32)
    rows = tiny.MODEL.text.vocab - 3
    llama["model.embed_tokens.weight"] = llama["model.embed_tokens.weight"][:rows]
    start = {"language_model": str(published.write(tmp_path / "llama", llama))}
    (found, _) = run_ranks(filled, 2, tmp_path / "ranks", start)
    expected = dict(janus.build(tiny.MODEL, 5).named_parameters())
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(found[name][:rows], llama["model.embed_tokens.weight"]), (
            "the head is tied where it is absent"
        )
        assert torch.equal(found[name][rows:], expected[name][rows:])
    for name, weight in expected.items():
        assert torch.equal(found[name], weight) == (part_of(name) not in ("language_model", "text_head")), name


def mixes(steps: int) -> tuple[int, list[int]]:
    """Steps whose streams differ from rank to rank and step to step; invalidated traces and unmatched gradients."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    invalidated = []
    invalidate = Coordinator._invalidate_trace
    Coordinator._invalidate_trace = lambda self: (invalidated.append(1), invalidate(self))[1]
    engine = make_engine(trainable=tuple(PREFIXES))
    seen: dict[str, int] = {}
    for name, parameter in engine.module.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: seen.update({name: seen.get(name, 0) + 1}))
    everything = tiny.samples(0)
    for step in range(steps):
        chosen = [everything[2 * kind] for kind in range(3) if (step + engine.world.rank) >> kind & 1]
        for micro_step in range(2):
            found = chosen if micro_step == 0 else everything[step % 6 : step % 6 + 1]
            batch = tiny.batch_of(found, tiny.document_format())
            engine.micro_step(batch, torch.ones(3), last=micro_step == 1)
        engine.step(1e-3)
    return len(invalidated), [seen.get(name, 0) for name, _ in engine.module.named_parameters()]


def test_any_mix_of_streams_keeps_the_trace_and_gives_every_parameter_a_gradient(tmp_path):
    """Eight mixes, other ones on each rank, none among them: no hang, no invalidated trace, no absent gradient."""
    for invalidated, gradients in run_ranks(mixes, 2, tmp_path, 8):
        assert invalidated == 0
        assert set(gradients) == {16}


def skip_one(dtype: Dtype) -> tuple[list[float], list[float], bool, list[float]]:
    """Losses with a step skipped after two, and without; whether skipping left all state alone; its norm."""
    plain = make_engine(0, dtype)
    without = train_steps(plain, 0, 4)
    engine = make_engine(0, dtype)
    found = train_steps(engine, 0, 2)
    zero = engine.optimizer

    def state() -> list[torch.Tensor]:
        flats = zero.fp32_partitioned_groups_flat
        return [value.detach().clone() for flat in flats for value in (flat, *zero.optimizer.state[flat].values())]

    before, steps = state(), partitions.optimizer_steps(engine)
    engine.micro_step(tiny.batch(77), torch.ones(3), last=True)
    norm = engine.step(1e-2, skip=True)
    same = all(torch.equal(one, other) for one, other in zip(before, state(), strict=True))
    same = same and partitions.optimizer_steps(engine) == steps
    return found + train_steps(engine, 2, 4), without, same, [norm]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_skipped_step_costs_itself_and_nothing_else(tmp_path, dtype):
    for found, without, same, norms in run_ranks(skip_one, 2, tmp_path, dtype):
        assert found == without and same
        assert norms == [float("inf")]


def train_and_save(run_dir: Path, dtype: Dtype = "float32") -> list[float]:
    engine = make_engine(dtype=dtype)
    losses = train_steps(engine, 0, 2)
    save(engine, run_dir, 2)
    return losses + train_steps(engine, 2, 4)


def resume(run_dir: Path, dtype: Dtype = "float32") -> tuple[list[float], int]:
    engine = make_engine(seed=1, dtype=dtype)  # other random weights, so that what is not restored shows
    path = commits.latest_committed(saved_in(run_dir))
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
    save(engine, run_dir, 1)
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
    found = load_weights(saved_in(tmp_path / "run"))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name].flatten(), weight.flatten()[: found[name].numel()]), name


def weights_into_other_parts(run_dir: Path) -> tuple[dict[str, torch.Tensor], int]:
    engine = make_engine(seed=1, trainable=("vision_tower", "language_model", "text_head"))
    path = commits.latest_committed(saved_in(run_dir))
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
    (folder_of(run, 1) / commits.MARKER).unlink()
    assert commits.latest_committed(saved_in(run)) is None
    with pytest.raises(CheckpointError, match="no committed checkpoint"):
        load_weights(saved_in(run))


def test_a_cut_file_does_not_count(saved, tmp_path):
    run = copy_of(saved, tmp_path / "run")
    file = folder_of(run, 1) / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    assert commits.latest_committed(saved_in(run)) is None


def test_a_flipped_byte_is_found_when_loading(saved, tmp_path):
    run = copy_of(saved, tmp_path / "run")
    file = folder_of(run, 1) / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        load_weights(saved_in(run))
    assert "fall back" in str(caught.value)


def test_another_version_is_refused(saved, tmp_path):
    run = copy_of(saved, tmp_path / "run")
    marker = folder_of(run, 1) / commits.MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"version": 99}))
    with pytest.raises(CheckpointError, match="format version 99"):
        commits.latest_committed(saved_in(run))


def save_three(run_dir: Path) -> None:
    engine = make_engine()
    for step in (1, 2, 3):
        save(engine, run_dir, step)


def steps(run_dir: Path) -> list[int]:
    return [commits.step_of(path) for path in commits.committed(saved_in(run_dir))]


def test_prune_keeps_the_newest_whole_ones(tmp_path):
    run_ranks(save_three, 1, tmp_path / "a", tmp_path / "run")
    (folder_of(tmp_path / "run", 1) / commits.MARKER).unlink()
    commits.prune(saved_in(tmp_path / "run"), RetentionPolicy(last=2))
    assert [commits.name_of(path) for path in commits.committed(saved_in(tmp_path / "run"))] == [
        "step-00000002",
        "step-00000003",
    ]
    assert not folder_of(tmp_path / "run", 1).exists()
    commits.prune(saved_in(tmp_path / "run"), RetentionPolicy(last=1))
    assert steps(tmp_path / "run") == [3]


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def go_on_from_one_of_three(run_dir: Path, damaged: tuple[int, ...]) -> list[str]:
    """Checkpoints of steps 1 to 9 of which some are damaged; go on, save the next step, prune. What was said."""
    engine, said = make_engine(), list[str]()
    for step in (1, 5, 9):
        save(engine, run_dir, step)
    for step in damaged if engine.world.is_first else ():
        flip(folder_of(run_dir, step) / "__0_0.distcp")
    engine.world.barrier()
    path = checkpoint.latest_to_resume(engine, saved_in(run_dir), said.append)
    assert path == str(folder_of(run_dir, 1))
    save(engine, run_dir, 2)
    commits.prune(saved_in(run_dir), RetentionPolicy(last=2))
    return said


def test_what_was_passed_over_does_not_push_out_what_is_saved_after(tmp_path):
    run = tmp_path / "run"
    _, said = run_ranks(go_on_from_one_of_three, 2, tmp_path / "a", run, (5, 9))
    assert steps(run) == [1, 2]
    assert [line.partition(":")[0] for line in said] == [
        f"passed over {folder_of(run, 9)}", f"passed over {folder_of(run, 5)}",
        f"set aside {folder_of(run, 5)}", f"set aside {folder_of(run, 9)}",
    ]  # fmt: skip
    assert (folder_of(run, 9) / commits.ASIDE_MARKER).exists(), "its files are there to be looked at"
