"""What ranks were handed: a digest of every row that a model was given, written before it is trained on."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from janus_dist.batch import Batch
from janus_dist.data import packing
from janus_dist.data.loader import Loader, RankStep
from janus_dist.train.trainer import Trainer


def record(trainer: Trainer, root: Path) -> None:
    """From now on this rank writes the rows of each step into a file of its own in `root`."""
    real, loader = trainer.run.loader.steps, trainer.run.loader

    def steps(first: int, stop: int) -> Iterator[RankStep]:
        for rank_step in real(first, stop):
            found = row_digests(rank_step, loader, trainer.run.recipe.model.image_tokens)
            line = {"step": rank_step.plan.step, "rows": found}
            with (root / f"handed-{loader.rank}-{os.getpid()}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            yield rank_step

    loader.steps = steps


def read(root: Path, first: int = 0) -> dict[int, list[str]]:
    """The rows of each step from `first` on, in the order of the global batch, whoever had them, however often: a step
    that was trained again must have had the same rows."""
    found: dict[int, dict[int, str]] = {}
    for path in root.glob("handed-*.jsonl"):
        for text in path.read_text().splitlines(keepends=True):
            if not text.endswith("\n"):
                continue  # its writer was killed
            line = json.loads(text)
            rows = found.setdefault(line["step"], {})
            for row, digest in line["rows"].items():
                assert rows.setdefault(int(row), digest) == digest, f"step {line['step']} had another row {row} before"
    assert all(sorted(rows) == list(range(len(rows))) for rows in found.values())
    return {step: [rows[row] for row in range(len(rows))] for step, rows in sorted(found.items()) if step >= first}


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
