"""What older versions wrote is read as it is: shards, recipe, run folder and checkpoint (tests/kept/README.md)."""

import json
import shutil
from pathlib import Path

import pytest

from janus_dist.checkpoint import commits
from janus_dist.config.load import load, load_any
from janus_dist.config.recipe import StageRecipe
from janus_dist.data.manifest import Manifest
from janus_dist.storage.json_lines import read_records
from janus_dist.train.build import build_trainer
from tests.ranks import run_ranks

KEPT = Path(__file__).parents[1] / "kept"
LOSS_TOLERANCE = 1e-3
"""Relative; CPUs add float32 in different orders, and ten steps of training carry the difference on."""


@pytest.fixture(params=sorted(path.name for path in KEPT.iterdir() if path.is_dir()))
def old(request, tmp_path) -> Path:
    """A copy of one folder that an older version wrote."""
    return Path(shutil.copytree(KEPT / request.param, tmp_path / "old"))


def recipe_of(old: Path) -> StageRecipe:
    """The old recipe file as it is read now, with the folders that it names below `old`."""
    recipe = load(StageRecipe, [old / "recipe.yaml"], ()).recipe
    return recipe.with_paths(lambda path: str(old / path))


def resume(old: Path) -> list[str]:
    """Train to the recipe's last step; the lines for the console."""
    lines: list[str] = []
    build_trainer(recipe_of(old), lines.append).fit()
    return lines


def test_an_old_run_resumes_with_the_same_losses(old):
    expected = json.loads((old / "losses.json").read_text())
    run = recipe_of(old).run
    before = commits.latest_committed(run.saved_in)
    assert before is not None, "no whole checkpoint"
    lines = run_ranks(resume, 1, old / "meeting", old)[0]
    assert any(line.startswith(f"resuming {run.name} at step 10 from {before}") for line in lines), lines
    recorded = {str(line["step"]): line for line in read_records(run.dir / "metrics.jsonl")}
    assert list(recorded) == [str(step) for step in range(1, 21)]
    for step, losses in expected.items():
        for name, value in losses.items():
            assert recorded[step][name] == pytest.approx(value, rel=LOSS_TOLERANCE), (step, name)


def test_old_shard_sets_are_read_and_counted(old):
    for folder in (old / "data").iterdir():
        manifest = Manifest.load(str(folder))
        assert manifest.samples == 24, folder


def test_the_settings_in_an_old_run_folder_are_read(old):
    loaded = load_any([str(old / "runs" / "stage2" / "config.json")], ()).recipe
    assert isinstance(loaded, StageRecipe)
    now = recipe_of(old)
    assert (loaded.model, loaded.mix, loaded.batch, loaded.train) == (now.model, now.mix, now.batch, now.train)
    assert loaded.engine.dtype == "float32"
