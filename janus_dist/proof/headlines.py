"""The figures that the demo and the proof show first. Invariant: both take them the same way."""

from pathlib import Path
from typing import Any

from janus_dist.config.streams import STREAMS
from janus_dist.storage.json_lines import read_records

STAGES = ("stage1", "stage2", "stage3")
LAST_STEPS = 20
"""Steps over which a stage's final loss is averaged."""
HEADLINES = ("understanding_accuracy", "understanding_majority", "generation_accuracy", "generation_chance")
"""Keys of an evaluation that are shown first."""


def final_losses(path: Path) -> dict[str, Any]:
    """Return the mean loss of each stream, in nats, over the last steps in a run's metrics.jsonl."""
    lines = read_records(path)[-LAST_STEPS:]
    losses = {stream: [line[f"loss/{stream}"] for line in lines if f"loss/{stream}" in line] for stream in STREAMS}
    return {stream: round(sum(values) / len(values), 4) for stream, values in losses.items() if values}
