"""kill -9 in the middle of a step, then on with other numbers of ranks: the same global batches, row by row."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from janus_dist.checkpoint import commits
from janus_dist.train.build import build_trainer
from tests import handed, prepared
from tests.checkpoints import saved_in
from tests.ranks import run_ranks
from tests.resume.test_trainer import losses

STEPS, SAVE_EVERY = 9, 2
SECTIONS: dict[str, dict[str, Any]] = {"train": {"steps": STEPS, "save_every_steps": SAVE_EVERY}}


def fit(folder: Path, root: Path, workers: int, pause_s: float) -> None:
    """Train to the end; each rank writes what it was handed, before it trains on it.

    It pauses where a kill loses most: when a step has its gradients and the weights are not changed yet.
    """
    recipe = prepared.recipe(folder, root, workers, **SECTIONS)
    (root / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    trainer = build_trainer(recipe, lambda line: None)
    handed.record(trainer, root)

    def update(lr: float, skip: bool = False) -> float:
        (root / f"gradients-{trainer.run.world.rank}").write_text(str(trainer.run.progress.step))
        time.sleep(pause_s)
        return real_update(lr, skip)

    real_update, trainer.run.engine.step = trainer.run.engine.step, update
    trainer.fit()


def killed_in_a_step(folder: Path, root: Path) -> None:
    """Two ranks, both killed between gradients and update of a step that is behind the newest checkpoint."""
    process = multiprocessing.get_context("spawn").Process(
        target=run_ranks, args=(fit, 2, root / "meet", folder, root, 2, 0.3)
    )
    process.start()
    try:
        end_s = time.monotonic() + 100
        while not in_a_step_behind_a_checkpoint(root):
            assert process.is_alive() and time.monotonic() < end_s
            time.sleep(0.01)
    finally:
        for path in root.glob("pid-*"):  # they are children of the server that forks them
            signal_quietly(int(path.read_text()))
        process.kill()
        process.join()


def in_a_step_behind_a_checkpoint(root: Path) -> bool:
    """Return whether both ranks have gradients of the same step, which is later than the newest checkpoint."""
    newest = commits.latest_committed(saved_in(root / "run"))
    if newest is None:
        return False
    steps = {(root / f"gradients-{rank}").read_text() for rank in range(2)}
    return len(steps) == 1 and "" not in steps and int(steps.pop()) > commits.read(newest).step


def signal_quietly(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_killed_ranks_go_on_as_other_numbers_of_ranks(tmp_path):
    prepared.prepare(tmp_path)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for root in (whole, broken):
        root.mkdir()
    run_ranks(fit, 2, whole / "meet", tmp_path, whole, 2, 0.0)
    expected = handed.read(whole)
    assert list(expected) == list(range(STEPS)) and len({*map(tuple, expected.values())}) == STEPS

    killed_in_a_step(tmp_path, broken)
    newest = commits.latest_committed(saved_in(broken / "run"))
    assert newest is not None
    first = commits.read(newest).step
    assert 0 < first < max(losses(broken)) < STEPS, "a step that was trained since is lost"
    for workers in (1, 3):
        root = tmp_path / f"on-{workers}"
        root.mkdir()
        shutil.copytree(broken / "run", root / "run")
        run_ranks(fit, workers, root / "meet", tmp_path, root, workers, 0.0)
        assert handed.read(root) == {step: rows for step, rows in expected.items() if step >= first}
        found, reference = losses(root), losses(whole)
        assert list(found) == list(reference), "each step is recorded once"
        for step in reference:
            assert found[step] == pytest.approx(reference[step], rel=2e-3)
