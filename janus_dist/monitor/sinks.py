"""Where metrics go: metrics.jsonl always, wandb when asked for.

Invariant: metrics.jsonl holds every step once, in order, also after a run was killed and went on from an earlier step.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from janus_dist.monitor.metrics import NAMES


class Sink(Protocol):
    """Something that takes the metrics of each step."""

    def record(self, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """metrics.jsonl in the run folder."""

    def __init__(self, path: Path, steps_done: int):
        """Continue the file after `steps_done` steps; lines of later steps, trained again now, are dropped."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_lines(path) if line["step"] <= steps_done]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(path)
        self.file = path.open("a")

    def record(self, values: Mapping[str, float]) -> None:
        assert values.keys() <= NAMES, f"not declared in metrics.py: {values.keys() - NAMES}"
        self.file.write(json.dumps(dict(values)) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class WandbSink:
    """A Weights & Biases run; offline it only writes files under the run folder."""

    def __init__(
        self, mode: Literal["offline", "online"], project: str, name: str, folder: Path, settings: dict[str, Any]
    ):
        import wandb  # optional

        self.run = wandb.init(
            mode=mode,
            project=project,
            name=name,
            id=name.replace("/", "-"),
            resume="allow",
            dir=folder,
            config=settings,
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    def record(self, values: Mapping[str, float]) -> None:
        self.run.log({name: value for name, value in values.items() if name != "step"}, step=int(values["step"]))

    def close(self) -> None:
        self.run.finish()


def read_lines(path: Path) -> list[dict[str, float]]:
    """The steps recorded in a metrics.jsonl; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
