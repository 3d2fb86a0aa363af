"""Resources of a run other than memory: time, GPU-hours, checkpoints, bytes read; each figure with its basis.

Invariant: an assumption is a named constant here or set by the user, and is shown with the result.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from janus_dist.config.recipe import StageRecipe
from janus_dist.errors import ConfigError
from janus_dist.estimate.flops import Counts, model_flops, peak_flops
from janus_dist.estimate.forecast import Forecast
from janus_dist.estimate.memory import DTYPE_BYTES, FLOAT32
from janus_dist.model.janus import parameter_shapes
from janus_dist.model.parts import part_of
from janus_dist.storage.json_lines import read_records

ASSUMED_MFU = 0.35
"""Predicted for Janus-Pro-1B on an H100 (docs/benchmarks.md), not measured."""
ASSUMED_DEVICE = "H100"
GPUS_A_NODE = 8
COPY_BYTES_S = {True: 20e9, False: 4e9}
"""Device to pinned host memory over PCIe 5, and from memory to memory by one core; assumed."""
LAST_STEPS = 50
"""Number of last steps of a run whose median gives its speed."""


@dataclass(frozen=True)
class Budget:
    """Resources of a run."""

    tflop_per_step: float
    """Model FLOPs of all ranks."""
    speed_from: str
    """Basis of the times, as text."""
    step_s: float | None
    run_s: float | None
    """Training alone, without start, saves and faults; None where no speed is known."""
    rank_hours: float | None
    checkpoint_bytes: int
    """Bytes of one checkpoint: trainable weights and moments in float32, frozen weights in their dtype."""
    checkpoints_kept: int
    stall_s: float
    """Seconds by which a save delays its step: the copy of a rank's share at an assumed speed."""
    nodes: int
    node_read_bytes: int
    """Bytes of shards that each node reads over the run."""
    node_read_bytes_s: float | None


def budget(recipe: StageRecipe, found: Forecast, mfu: float | None, device: str | None) -> Budget:
    """Return the resources of a forecast run. `mfu` and `device` are assumed where set; otherwise the measured speed of
    the run is used if it has steps. Raises ConfigError when the device is unknown."""
    flops = model_flops(recipe.model, recipe.train.trainable, Counts(**{k: round(v) for k, v in found.work.items()}))
    rank_flops_s, speed_from = _speed(recipe, mfu, device)
    step_s = flops / rank_flops_s / found.world if rank_flops_s else None
    run_s = step_s * found.steps if step_s is not None else None
    shapes = parameter_shapes(recipe.model)
    learned, frozen = (_elements(shapes, recipe, learns) for learns in (True, False))
    low, train = DTYPE_BYTES[recipe.engine.dtype], recipe.train
    mine = 3 * FLOAT32 * sum(-(-one // found.world) for one in learned) + low * sum(
        -(-one // found.world) for one in frozen
    )
    saves = math.ceil(found.steps / train.save_every_steps)
    every = found.steps // train.keep_every_steps if train.keep_every_steps else 0
    nodes = math.ceil(found.world / GPUS_A_NODE) if recipe.cluster.gpu else 1
    read = sum(source.bytes for source in found.sources) // nodes
    return Budget(
        tflop_per_step=flops / 1e12,
        speed_from=speed_from,
        step_s=step_s,
        run_s=run_s,
        rank_hours=run_s * found.world / 3_600 if run_s is not None else None,
        checkpoint_bytes=checkpoint_bytes(recipe),
        checkpoints_kept=min(saves, train.keep_checkpoints + every),
        stall_s=mine / COPY_BYTES_S[recipe.cluster.gpu],
        nodes=nodes,
        node_read_bytes=read,
        node_read_bytes_s=read / run_s if run_s else None,
    )


def checkpoint_bytes(recipe: StageRecipe) -> int:
    """Return the bytes of a checkpoint: trainable weights and both moments in float32, the rest in engine.dtype."""
    shapes = parameter_shapes(recipe.model)
    learned, frozen = (sum(_elements(shapes, recipe, learns)) for learns in (True, False))
    return 3 * FLOAT32 * learned + DTYPE_BYTES[recipe.engine.dtype] * frozen


def _speed(recipe: StageRecipe, mfu: float | None, device: str | None) -> tuple[float | None, str]:
    """Return FLOP/s of a rank (None if unknown) and its basis. Raises ConfigError when the device is unknown."""
    measured = [line["perf/tflops_per_rank"] for line in read_records(recipe.run.dir / "metrics.jsonl")[-LAST_STEPS:]]
    if measured and mfu is None and device is None:
        rate = sorted(measured)[len(measured) // 2]
        return rate * 1e12, f"measured: {rate:.3g} TFLOP/s a rank, median of the last {len(measured)} steps of this run"
    if not recipe.cluster.gpu:
        return None, "no speed is known: the run has no steps yet, and a core's peak says little"
    name = device or ASSUMED_DEVICE
    peak = peak_flops(name)
    if peak is None:
        raise ConfigError(f"--device {name}: its peak is not known", "take one like H100, H200, A100, B200 or L40S")
    mfu = mfu or ASSUMED_MFU
    return mfu * peak, f"assumed: MFU {mfu:.2f} of {name}'s {peak / 1e12:,.0f} TFLOP/s"


def _elements(shapes: dict[str, tuple[int, ...]], recipe: StageRecipe, learns: bool) -> Sequence[int]:
    trainable = set(recipe.train.trainable)
    return [math.prod(shape) for name, shape in shapes.items() if (part_of(name) in trainable) == learns]
