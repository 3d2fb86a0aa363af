"""What a document costs a rank, measured: times of micro-steps of different make, and the coefficients that explain
them.

Invariant: coefficients are not negative and in units of a token's cost, so that they can stand in any recipe.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from janus_dist.batch import Batch
from janus_dist.config.data import COSTLY, Costly
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.streams import STREAMS
from janus_dist.data.collate import Document, DocumentFormat, collate
from janus_dist.data.sample import GenerationSample, TextSample, UnderstandingSample
from janus_dist.estimate.flops import Counts
from janus_dist.model import janus
from janus_dist.model.parts import set_trainable, train_mode

WORDS = 24
"""Text tokens beside an image in the documents that are timed."""
FIRST_ID = 8
"""Ids from here on stand for words; none of them is taken for special here."""


@dataclass(frozen=True)
class MeasuredCost:
    """Coefficients, and how well they explain what was timed."""

    cost: dict[Costly, float]
    token_us: float
    """Microseconds of one token: what `cost.token = 1` stands for."""
    worst_error: float
    """Largest share by which a timed micro-step differs from what the coefficients say."""
    micro_steps: int


def measure(recipe: StageRecipe, rounds: int = 5) -> MeasuredCost:
    """Time forward and backward of micro-steps of this recipe's model on this machine's device, without ZeRO.

    `engine.dtype` must be decided (train/precision.py).
    """
    device = torch.device("cuda" if recipe.cluster.gpu else "cpu")
    if not recipe.cluster.gpu:
        torch.set_num_threads(recipe.cluster.cpus_per_worker)
    model = janus.build(recipe.model, recipe.run.seed)
    set_trainable(model, recipe.train.trainable)
    janus.checkpoint_activations(model, recipe.engine.activation_checkpointing)
    model = model.to(device=device, dtype=getattr(torch, recipe.engine.dtype))  # pyright: ignore[reportCallIssue]
    train_mode(model)
    batches, factors = [batch.to(device) for batch in makes(recipe)], torch.ones(len(STREAMS), device=device)

    def run(batch: Batch) -> None:
        model(batch, factors)[0].backward()
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    seconds = interleaved([lambda batch=batch: run(batch) for batch in batches], rounds)
    return fit(np.array([counts(batch) for batch in batches], dtype=np.float64), seconds)


def makes(recipe: StageRecipe) -> list[Batch]:
    """Return micro-steps that differ in lengths, streams, images and labels."""
    tokens = recipe.batch.micro_rows * recipe.batch.row_tokens
    model = recipe.model
    form = DocumentFormat(0, 1, 2, 3, model.image_tokens, model.image_size, answers_only=True)
    row = recipe.batch.row_tokens

    def of(number_of_tokens: int, make: Callable[[], Document]) -> list[Document]:
        found = [make()]
        return found + [make() for _ in range(max(0, number_of_tokens // found[0].tokens - 1))]

    def text(length: int) -> Callable[[], Document]:
        return lambda: Document(TextSample(_ids(recipe, length)), length)

    def understanding(answer: int) -> Callable[[], Document]:
        return lambda: _understanding(recipe, answer)

    def generation() -> Document:
        prompt = np.append(_ids(recipe, WORDS - 1), np.uint32(2))
        vq_ids = np.arange(model.image_ids, dtype=np.uint16) % model.vq.codes
        return Document(GenerationSample(prompt, vq_ids), WORDS + model.image_ids)

    kinds = [text(32), text(row // 8), text(row), understanding(2), understanding(WORDS), generation]
    made = [of(tokens, kind) for kind in kinds]
    made += [of(tokens // 2, kind) for kind in kinds]
    made += [of(tokens // 2, kinds[3]) + of(tokens // 2, other) for other in (kinds[0], kinds[2], generation)]
    return [collate(documents, form) for documents in made]


def counts(batch: Batch) -> list[float]:
    """Return the counts of a micro-step in the order of COSTLY, and 1 for its fixed cost."""
    return [*map(float, astuple(Counts.of(batch))), 1.0]


def interleaved(runs: Sequence[Callable[[], None]], rounds: int) -> NDArray[np.float64]:
    """Return [run] median seconds; every round runs all, so that a slow moment affects all equally."""
    for run in runs:
        run()  # the first call also compiles, allocates and warms caches
    times = np.empty((rounds, len(runs)))
    for taken in times:
        for place, run in enumerate(runs):
            began = time.perf_counter()
            run()
            taken[place] = time.perf_counter() - began
    return np.median(times, axis=0)


def fit(held: NDArray[np.float64], seconds: NDArray[np.float64]) -> MeasuredCost:
    """Fit non-negative costs by least squares of relative errors; `held`: [micro-steps, counts] float64."""
    scaled = held / seconds[:, None]
    left = list(range(held.shape[1]))
    while True:
        found = np.linalg.lstsq(scaled[:, left], np.ones(len(seconds)), rcond=None)[0]
        if found.min() >= 0:
            break
        del left[int(found.argmin())]  # a thing that seems to cost less than nothing costs nothing
    coefficients = np.zeros(held.shape[1])
    coefficients[left] = found
    token = coefficients[0] if coefficients[0] > 0 else 1.0
    relative: dict[Costly, float] = {
        name: float(f"{value / token:.3g}") for name, value in zip(COSTLY, coefficients, strict=False)
    }
    return MeasuredCost(
        relative,
        1e6 * float(coefficients[0]),
        float(np.abs(held @ coefficients / seconds - 1).max()),
        len(seconds),
    )


def _ids(recipe: StageRecipe, number: int) -> NDArray[np.uint32]:
    return (FIRST_ID + np.arange(number) % (recipe.model.text.vocab - FIRST_ID)).astype(np.uint32)


def _understanding(recipe: StageRecipe, answer: int) -> Document:
    side = recipe.model.image_size
    ids = np.concatenate([[2, 1, 3], _ids(recipe, WORDS)]).astype(np.uint32)
    sample = UnderstandingSample(ids, np.array([[len(ids) - answer, len(ids)]], dtype=np.int64), [b""])
    pixels = np.zeros((1, side, side, 3), dtype=np.uint8)
    return Document(sample, len(ids) - 1 + recipe.model.image_tokens, images=pixels)
