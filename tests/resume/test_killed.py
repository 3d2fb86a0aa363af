"""kill -9 in the middle of a step, then on with other numbers of ranks: the same global batches, row by row."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from janus_dist.batch import Batch
from janus_dist.data import packing
from janus_dist.data.loader import Loader, RankStep
from janus_dist.engine import commits
from janus_dist.train.trainer import Trainer
from tests import prepared
from tests.ranks import run_ranks
from tests.resume.test_trainer import losses

STEPS, SAVE_EVERY = 9, 2
SECTIONS: dict[str, dict[str, Any]] = {"train": {"steps": STEPS, "save_every_steps": SAVE_EVERY}}


def row_digests(rank_step: RankStep, loader: Loader, image_tokens: int) -> dict[int, str]:
    """Of each row that this rank was handed: everything that the model gets of it."""
    plan = rank_step.plan
    found: dict[int, str] = {}
    dealt = packing.deal(plan.row_costs, loader.world, loader.plan.batch.micro_rows)
    for batch, ranks in zip(rank_step.batches, dealt, strict=True):
        start = 0
        for row in ranks[loader.rank]:
            stop = start + int(plan.rows.tokens[list(plan.rows.row(row))].sum())
            found[row] = digest_of(batch, start, stop, image_tokens)
            start = stop
        assert not ranks[loader.rank] or start == batch.num_tokens
    return found


def digest_of(batch: Batch, start: int, stop: int, image_tokens: int) -> str:
    state = hashlib.sha256()

    def within(positions) -> np.ndarray:
        return ((positions >= start) & (positions < stop)).numpy()

    text, image, vq = (within(places) for places in (batch.text_rows, batch.image_rows, batch.vq_positions))
    pixel = within(batch.pixel_positions)
    parts = [
        batch.input_ids[start:stop],
        batch.position_ids[start:stop],
        batch.pixel_positions[pixel] - start,
        batch.vq_positions[vq] - start,
    ]
    for rows, labels, mine in (
        (batch.text_rows, batch.text_labels, text),
        (batch.image_rows, batch.image_labels, image),
    ):
        real = mine & (labels != -100).numpy()
        parts += [rows[real] - start, labels[real]]
    if pixel.any():
        first, last = np.flatnonzero(pixel)[[0, -1]] // image_tokens
        parts.append(batch.pixels[first : last + 1])
    if vq.any():
        parts.append(batch.vq_ids[vq])
    for part in parts:
        state.update(np.ascontiguousarray(part.numpy()).tobytes())
    return state.hexdigest()


def fit(folder: Path, root: Path, workers: int, pause_s: float) -> None:
    """Train to the end; each rank writes what it was handed, before it trains on it.

    It pauses where a kill loses most: when a step has its gradients and the weights are not changed yet.
    """
    recipe = prepared.recipe(folder, root, workers, **SECTIONS)
    trainer = Trainer.build(recipe, lambda line: None)
    real, loader = trainer.loader.steps, trainer.loader

    def steps(first: int, stop: int) -> Iterator[RankStep]:
        for rank_step in real(first, stop):
            line = {"step": rank_step.plan.step, "rows": row_digests(rank_step, loader, recipe.model.image_tokens)}
            with (root / f"handed-{loader.rank}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            yield rank_step

    def update(lr: float) -> float:
        (root / f"gradients-{loader.rank}").write_text(str(trainer.step))
        time.sleep(pause_s)
        return real_update(lr)

    real_update, trainer.engine.step = trainer.engine.step, update
    loader.steps = steps
    trainer.fit()


def handed(root: Path, first: int) -> dict[int, list[str]]:
    """The rows of each step from `first` on, in the order of the global batch, whoever had them."""
    found: dict[int, dict[int, str]] = {}
    for path in root.glob("handed-*.jsonl"):
        for line in path.read_text().splitlines():
            told = json.loads(line)
            rows = found.setdefault(told["step"], {})
            new = {int(row): digest for row, digest in told["rows"].items()}
            assert not set(rows) & set(new), "a row was handed to two ranks"
            rows |= new
    assert all(sorted(rows) == list(range(len(rows))) for rows in found.values())
    return {step: [rows[row] for row in range(len(rows))] for step, rows in found.items() if step >= first}


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
        ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        for pid in ranks:
            signal_quietly(pid)
        process.kill()
        process.join()


def in_a_step_behind_a_checkpoint(root: Path) -> bool:
    """Whether both ranks have the gradients of the same step, with a step trained since the newest checkpoint."""
    newest = commits.latest(root / "run")
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
    expected = handed(whole, 0)
    assert list(expected) == list(range(STEPS)) and len({*map(tuple, expected.values())}) == STEPS

    killed_in_a_step(tmp_path, broken)
    newest = commits.latest(broken / "run")
    assert newest is not None
    first = commits.read(newest).step
    assert 0 < first < max(losses(broken)) < STEPS, "a step that was trained since is lost"
    for workers in (1, 3):
        root = tmp_path / f"on-{workers}"
        root.mkdir()
        shutil.copytree(broken / "run", root / "run")
        run_ranks(fit, workers, root / "meet", tmp_path, root, workers, 0.0)
        assert handed(root, 0) == {step: rows for step, rows in expected.items() if step >= first}
        found, reference = losses(root), losses(whole)
        assert list(found) == list(reference), "each step is recorded once"
        for step in reference:
            assert found[step] == pytest.approx(reference[step], rel=2e-3)
