"""Tests of the trainer on gloo ranks: resuming does not change losses, the number of ranks only changes rounding, and
errors name their cause."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from janus_dist.checkpoint import commits
from janus_dist.config.mix import Lane
from janus_dist.config.train import ClusterConfig
from janus_dist.data.plan import Plan, PlanBase, open_shards
from janus_dist.engine.world import join
from janus_dist.errors import CheckpointError, JanusError
from janus_dist.storage.json_lines import read_records
from janus_dist.train import start
from janus_dist.train.build import build_trainer
from tests import prepared, published, tiny
from tests.checkpoints import folder_of, saved_in
from tests.ranks import run_ranks


def fit(folder: Path, root: Path, workers: int, sections: dict[str, Any]) -> list[str]:
    """Train to the end; the lines said, or the error as its exit code and text."""
    lines: list[str] = []
    try:
        build_trainer(prepared.recipe(folder, root, workers, **sections), lines.append).fit()
    except JanusError as error:
        return [f"exit {error.exit_code}: {error}"]
    return lines


def train(folder: Path, root: Path, workers: int = 2, **sections: dict[str, Any]) -> list[str]:
    return run_ranks(fit, workers, root / "meet", folder, root, workers, sections)[0]


def losses(root: Path) -> dict[int, tuple[float, ...]]:
    """Losses and gradient norm of each recorded step."""
    lines = read_records(root / "run" / "metrics.jsonl")
    return {
        int(line["step"]): tuple(v for k, v in sorted(line.items()) if k.startswith(("loss/", "optim/grad")))
        for line in lines
    }


def build_plan(folder: Path, root: Path, **sections: dict[str, Any]) -> Plan:
    recipe = prepared.recipe(folder, root, **sections)
    return Plan.of(recipe, open_shards(recipe.data, recipe.mix))


@pytest.fixture(scope="module")
def unbroken(folder, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("unbroken")
    lines = train(folder, root)
    assert lines[0].startswith("2 ranks on 1 node, ")
    assert lines[1] == "starting run from random weights"
    (last_step,) = (line for line in lines if line.startswith("step 6/6  100.0%"))
    assert "gen " in last_step and "eta 0s" in last_step
    assert lines[-1].startswith("saved ")
    return root


def test_every_step_is_recorded_once_and_learns(unbroken):
    found = losses(unbroken)
    assert list(found) == [1, 2, 3, 4, 5, 6]
    assert found[6][0] < found[1][0]
    newest = commits.latest_committed(saved_in(unbroken / "run"))
    assert newest is not None and commits.read(newest).step == 6
    assert all(line["perf/tflops_per_rank"] > 0 for line in read_records(unbroken / "run" / "metrics.jsonl"))


def test_a_run_that_was_killed_after_a_checkpoint_gives_the_same_losses(folder, unbroken, tmp_path):
    """Imitate kill -9: a checkpoint of step 3, metrics up to a cut line of step 5, an incomplete checkpoint."""
    shutil.copytree(unbroken / "run", tmp_path / "run")
    last = folder_of(tmp_path / "run", 6)
    (last / commits.MARKER).unlink()
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:5])[:-20])
    lines = train(folder, tmp_path)
    assert lines[1].startswith("resuming run at step 3 from ")
    assert losses(tmp_path) == losses(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "micro_rows"),
    [pytest.param(1, 1, marks=pytest.mark.long), pytest.param(1, 4, marks=pytest.mark.long), (3, 2)],
)
def test_the_world_and_accumulation_change_rounding_only(folder, unbroken, tmp_path, workers, micro_rows):
    train(folder, tmp_path, workers, batch={"micro_rows": micro_rows})
    for step, expected in losses(unbroken).items():
        assert losses(tmp_path)[step] == pytest.approx(expected, rel=2e-3)


def test_resuming_another_plan_is_refused_with_what_differs(folder, unbroken, tmp_path):
    shutil.copytree(unbroken / "run", tmp_path / "run")
    *_, line = train(folder, tmp_path, mix={"text": 4.0}, train={"steps": 9})
    assert line.startswith("exit 4: ") and "mix.text was 3.0, is 4.0" in line
    assert losses(tmp_path) == losses(unbroken)  # nothing was lost


def samples_of_text(plan: Plan, first: int, stop: int) -> list[tuple[int, int]]:
    """(epoch, sample) of the text stream in some steps."""
    text = plan.lanes.index(Lane("text", "text"))
    told = []
    for found in map(plan.step, range(first, stop)):
        mine = found.lane == text
        told += zip(found.epoch[mine].tolist(), found.sample[mine].tolist(), strict=True)
    return told


def test_a_run_is_rebased_when_asked(folder, unbroken, tmp_path):
    """Each source goes on with the sample behind the last one that it gave, and later resumes need no flag."""
    shutil.copytree(unbroken / "run", tmp_path / "run")
    lines = train(folder, tmp_path, run={"rebase": True}, mix={"text": 9.0}, train={"steps": 8, "save_every_steps": 1})
    assert lines[1] == ("re-based at step 6; sources that continue at their position: understanding, text, generation")
    assert list(losses(tmp_path)) == list(range(1, 9))
    commit = commits.read(commits.latest_committed(saved_in(tmp_path / "run")))
    old = build_plan(folder, tmp_path)
    new = build_plan(folder, tmp_path, mix={"text": 9.0}).rebased(PlanBase(**commit.plan["base"]))
    assert new.digest == commit.plan_digest
    told = samples_of_text(old, 0, 6) + samples_of_text(new, 6, 12)
    assert len(set(told)) == len(told)
    assert sorted(sample for epoch, sample in told if epoch == 0) == list(range(40)), "no sample is left out"
    lines = train(folder, tmp_path, mix={"text": 9.0}, train={"steps": 9, "save_every_steps": 1})
    assert "resuming run at step 8" in lines[1]
    assert lines[2] == "settings changed since the checkpoint: train.steps was 8, is 9"


def test_rebasing_keeps_the_seed(folder, unbroken, tmp_path):
    shutil.copytree(unbroken / "run", tmp_path / "run")
    *_, line = train(folder, tmp_path, run={"rebase": True, "seed": 4})
    assert line.startswith("exit 4: ") and "cannot be re-based: seed was 3, is 4" in line


def test_a_checkpoint_of_another_model_size_is_refused(folder, unbroken, tmp_path):
    shutil.copytree(unbroken / "run", tmp_path / "run")
    model = prepared.recipe(folder, tmp_path).model.model_dump()
    *_, line = train(folder, tmp_path, model=model | {"text": model["text"] | {"mlp": 96}})
    assert line.startswith("exit 4: ") and "model.text.mlp was 48, is 96" in line


def test_resuming_with_other_parts_learning_is_refused(folder, unbroken, tmp_path):
    shutil.copytree(unbroken / "run", tmp_path / "run")
    *_, line = train(folder, tmp_path, train={"trainable": ["language_model", "text_head"]})
    assert line.startswith("exit 4: ")
    assert "image_head, understanding_adaptor, vision_tower differ" in line


def test_a_stage_starts_from_the_weights_of_another_run(folder, unbroken, tmp_path):
    shutil.copytree(unbroken / "run", tmp_path / "before")
    lines = train(folder, tmp_path, run={"start_from": "before"}, train={"steps": 1})
    assert lines[1].startswith("starting run from the weights of ")
    assert losses(tmp_path)[1][0] < losses(unbroken)[2][0]


def test_a_start_that_is_not_there_is_an_error(folder, tmp_path):
    *_, line = train(folder, tmp_path, 1, run={"start_from": "before"})
    assert line.startswith("exit 4: run.start_from=before: no committed checkpoint under ")


def test_another_tokenizer_than_the_shards_is_an_error(folder, tmp_path):
    other = tmp_path / "tokenizer.json"
    other.write_text((folder / "tokenizer.json").read_text() + " ")
    data = prepared.recipe(folder, tmp_path).data.model_dump()
    *_, line = train(folder, tmp_path, 1, data=data | {"tokenizer": str(other)})
    assert line.startswith("exit 3: ") and "was made with a tokenizer whose sha256 is" in line


def test_an_absent_data_folder_is_an_error(folder, tmp_path):
    data = prepared.recipe(folder, tmp_path).data.model_dump()
    *_, line = train(folder, tmp_path, 1, data=data | {"root": str(tmp_path / "nowhere")})
    assert line.startswith("exit 3: ") and "jobs/prepare.py" in line


def test_a_damaged_sample_is_named(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    shard = tmp_path / "data" / "text" / "shard-00000.tar"
    content = bytearray(shard.read_bytes())
    content[600:1200] = b"\0" * 600
    shard.write_bytes(content)
    data = prepared.recipe(folder, tmp_path).data.model_dump()
    *_, line = train(folder, tmp_path, 1, data=data | {"root": str(tmp_path / "data"), "max_bad_share": 0.0})
    assert re.match(r"exit 3: \d of ", line) and "samples are damaged, more than data.max_bad_share=0 allows" in line
    assert "has checksum" in line and str(shard) in line


def test_a_few_damaged_samples_are_borne(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    shard = tmp_path / "data" / "understanding" / "shard-00000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    data = prepared.recipe(folder, tmp_path).data.model_dump()
    train(folder, tmp_path, 1, data=data | {"root": str(tmp_path / "data"), "max_bad_share": 0.5})
    assert read_records(tmp_path / "run" / "metrics.jsonl")[-1]["data/bad_samples"] >= 1


def test_a_loss_that_is_not_finite_ends_the_run(folder, tmp_path):
    *_, line = train(folder, tmp_path, 1, optim={"lr": 1e30, "grad_clip": 1e30}, train={"steps": 40})
    assert line.startswith("exit 5: 10 steps in a row were skipped, up to step 1")
    assert "before the first checkpoint" in line and "lower optim.lr (now 1e+30)" in line


def started_from(folders: list[str]) -> str:
    """Return the result of a start in which only some ranks find published weights in their folder."""
    world = join(ClusterConfig(workers=1), timeout_s=60)
    config = SimpleNamespace(
        start_from=None, start_weights={"janus": folders[world.rank]}, name="run", dir=Path("/nowhere")
    )
    stand_in: Any = SimpleNamespace(
        recipe=SimpleNamespace(run=config, model=tiny.MODEL), world=world, plan=SimpleNamespace(digest=""), engine=None,
        watchdog=SimpleNamespace(pause=lambda: None), say=print, note=lambda *_: None,
    )  # fmt: skip
    start.resume.chosen = lambda *_: None
    start.checkpoint_bytes = lambda *_: 0
    start.check_world = lambda *_: []
    start.slow_lines = lambda *_: []
    start.state.fill = lambda *_: None
    try:
        start.start(stand_in)
    except CheckpointError as error:
        return error.message
    return "started"


def test_weights_that_one_rank_lacks_end_all_ranks(tmp_path):
    here = str(published.write(tmp_path / "here", published.tensors(published.deepseek(tiny.MODEL))))
    assert run_ranks(started_from, 2, tmp_path / "a", [here, here]) == ["started"] * 2
    found = run_ranks(started_from, 2, tmp_path / "b", [here, "/nowhere"])
    assert found[0] == found[1] and found[0].startswith("run.start_weights.janus=/nowhere does not exist")
