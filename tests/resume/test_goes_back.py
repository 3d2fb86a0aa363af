"""`run.resume=PATH` goes back to a checkpoint, of this run or another, once."""

import shutil
from pathlib import Path

import pytest

from janus_dist.checkpoint import commits
from tests.checkpoints import folder_of, saved_in
from tests.resume.test_faults import train
from tests.resume.test_trainer import losses


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """Eight steps, of which 6 and 8 have checkpoints, and a copy of the one of step 4."""
    root = tmp_path_factory.mktemp("whole")
    train(folder, root, 1, train={"steps": 4, "save_every_steps": 2})
    shutil.copytree(folder_of(root / "run", 4), root / "good")
    train(folder, root, 1)
    return root


def steps(root: Path) -> list[int]:
    return [commits.step_of(path) for path in commits.committed(saved_in(root / "run"))]


def test_the_same_command_goes_back_once(folder, whole, tmp_path):
    """It is stopped in between, as when ranks are started again: what was saved since is not lost."""
    shutil.copytree(whole / "run", tmp_path / "run")
    path = folder_of(tmp_path / "run", 6)
    run = {"run": {"resume": f"{path}/"}, "train": {"steps": 9, "save_every_steps": 1, "keep_checkpoints": 9}}
    lines = train(folder, tmp_path, 1, fault={"signal_at": 7, "rank": 0}, **run)
    assert f"set aside {folder_of(tmp_path / 'run', 8)}: the run resumes from run.resume={path}" in lines
    assert lines[-1].startswith("exit 75: ") and "and saved step 8 of 9" in lines[-1]
    lines = train(folder, tmp_path, 1, **run)
    assert lines[0].startswith(
        f"the run has already gone back to run.resume={path} and now resumes from {folder_of(tmp_path / 'run', 8)}; "
    )
    assert any("resuming run at step 8 from" in line for line in lines)
    assert steps(tmp_path)[0] == 6
    found, expected = losses(tmp_path), losses(whole)
    assert list(found) == list(range(1, 10)) and {step: found[step] for step in expected} == expected
    for newer in steps(tmp_path)[1:]:
        shutil.rmtree(folder_of(tmp_path / "run", newer))
    assert any("resuming run at step 6 from" in line for line in train(folder, tmp_path, 1, **run)), "as it was told to"


def test_a_copy_under_any_name_serves(folder, whole, tmp_path):
    """Resume from a copy of step 4: the run's later checkpoints are set aside, its last step is saved in it."""
    shutil.copytree(whole / "run", tmp_path / "run")
    shutil.copytree(whole / "good", tmp_path / "good")
    lines = train(folder, tmp_path, 1, run={"resume": str(tmp_path / "good")}, train={"steps": 5})
    assert [line.partition(":")[0] for line in lines if line.startswith("set aside")] == [
        f"set aside {folder_of(tmp_path / 'run', step)}" for step in (6, 8)
    ]
    assert any(f"resuming run at step 4 from {tmp_path / 'good'}" in line for line in lines)
    assert steps(tmp_path) == [5]
    assert losses(tmp_path)[5] == losses(whole)[5]
