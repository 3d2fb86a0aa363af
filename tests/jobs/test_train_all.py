"""Several runs that share a Ray cluster: each is the run that it would be alone; the first that fails ends all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from janus_dist.checkpoint import commits
from tests import prepared
from tests.limits import HANG_S
from tests.ranks import run_ranks
from tests.resume.test_trainer import fit, losses

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from janus_dist.cli.job import run_job
from janus_dist.config.recipe import StageRecipe
from janus_dist.launch.task_pool import train_all

recipes = [StageRecipe.model_validate_json(Path(path).read_text()) for path in sys.argv[1:]]
run_job(lambda: train_all(recipes, show=print))
"""

pytestmark = pytest.mark.long


def train_all(folder: Path, roots: list[Path], **sections) -> subprocess.CompletedProcess[str]:
    for root in roots:
        root.mkdir()
        recipe = prepared.recipe(folder, root, 1, **sections.get(root.name, {}))
        recipe.run.dir.mkdir()
        (root / "recipe.json").write_text(recipe.model_dump_json())
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment = kept | {"OMP_NUM_THREADS": "1", "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, *(str(root / "recipe.json") for root in roots)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_S)


def test_runs_beside_each_other_are_what_they_are_alone(tmp_path):
    prepared.prepare(tmp_path)
    roots = [tmp_path / name for name in ("a", "b", "c")]
    done = train_all(tmp_path, roots, b={"run": {"seed": 4}}, c={"optim": {"lr": 2e-2}})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("run: step 6/6  100.0%") == 3
    alone = tmp_path / "alone"
    run_ranks(fit, 1, alone / "meet", tmp_path, alone, 1, {})
    assert losses(roots[0]) == losses(alone) != losses(roots[1])
    assert losses(roots[0])[1] == losses(roots[2])[1] and losses(roots[0])[6] != losses(roots[2])[6]


def test_a_run_that_fails_ends_the_others_which_save(tmp_path):
    prepared.prepare(tmp_path)
    good, bad = tmp_path / "good", tmp_path / "bad"
    train = {"train": {"steps": 100_000, "save_every_steps": 50_000}}
    done = train_all(tmp_path, [good, bad], good=train, bad={"data": {"validation_root": str(tmp_path / "none")}})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "contains none of understanding/manifest.json" in done.stderr and "Traceback" not in done.stderr
    newest = commits.latest_committed(f"{good}/run/checkpoints")
    assert newest is None or 0 < commits.read(newest).step < 100_000
