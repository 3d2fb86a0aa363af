"""Destinations of metrics: metrics.jsonl always, wandb when `monitor.wandb` enables it.

Invariants: metrics.jsonl holds every step once, in order, also after a killed run resumed from an earlier step and
after the disk was full for a while; a service that fails loses its own figures and never stops the run.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from janus_dist.config.recipe import StageRecipe
from janus_dist.monitor.metrics import NAMES
from janus_dist.storage import fs
from janus_dist.storage.json_lines import read_records
from janus_dist.storage.local import write_whole

LOOK_EVERY_STEPS = 50
"""Steps between two checks for new samples to send to wandb."""
WANDB_ID = "wandb_id"
"""Name of the file in the run's folder with its wandb id."""
SHOWN_CHARS = 300
"""Characters of an error that are shown."""


class Sink(Protocol):
    """Destination of the metrics of each step."""

    def record(self, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """metrics.jsonl in the run folder. Lines that the disk refuses wait in memory, half a kilobyte per step."""

    def __init__(self, path: Path, steps_done: int, tell: Callable[[str], None]):
        """Continue the file after `steps_done` steps; lines of later steps, which are trained again, are dropped.

        `tell` is called with a message when the disk refuses a write.
        """
        self.path, self.tell = path, tell
        kept = [line for line in read_records(path) if line["step"] <= steps_done]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = path.open("r+b", buffering=0)
        self.whole_bytes = self.file.seek(0, os.SEEK_END)
        self.waiting: list[bytes] = []

    def record(self, values: Mapping[str, float]) -> None:
        assert values.keys() <= NAMES, f"not declared in metrics.py: {values.keys() - NAMES}"
        self.waiting.append(json.dumps(dict(values)).encode() + b"\n")
        try:
            self._write()
        except OSError as error:
            if len(self.waiting) == 1:
                self.tell(f"{self.path} cannot be written: {error}; training continues, the lines are kept in memory")

    def close(self) -> None:
        with self.file:
            try:
                self._write()
            except OSError as error:
                self.tell(f"{self.path} lacks the last {len(self.waiting)} steps: {error}")

    def _write(self) -> None:
        """Write the waiting lines after the last whole line, over the half line that a failed write may have left."""
        rest = b"".join(self.waiting)
        self.file.seek(self.whole_bytes)
        self.file.truncate()
        while rest:
            rest = rest[self.file.write(rest) :]
        self.whole_bytes = self.file.tell()
        self.waiting.clear()


class FaultTolerantSink:
    """Sink that is dropped at its first failure, with a message; the run continues without it."""

    def __init__(self, name: str, make: Callable[[], Sink], tell: Callable[[str], None]):
        self.name, self.tell = name, tell
        self.sink: Sink | None = None
        with self._drop_on_error():
            self.sink = make()

    def record(self, values: Mapping[str, float]) -> None:
        if self.sink is not None:
            with self._drop_on_error():
                self.sink.record(values)

    def close(self) -> None:
        if self.sink is not None:
            with self._drop_on_error():
                self.sink.close()

    @contextmanager
    def _drop_on_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a service and its client may raise anything
            self.sink = None
            why = " ".join(f"{type(error).__name__}: {error}".split())[:SHOWN_CHARS]
            self.tell(f"{self.name} failed and gets no more metrics: {why}")


class WandbSink:
    """Weights & Biases run; in mode `offline` it only writes files in the run folder."""

    def __init__(self, mode: Literal["offline", "online"], name: str, folder: Path, settings: dict[str, Any]):
        import wandb  # optional

        self.wandb, self.folder = wandb, folder
        self.shown = set(sample_folders(folder))
        self.run = wandb.init(
            mode=mode,
            project=os.environ.get("WANDB_PROJECT", "janus-dist"),
            name=name,
            id=wandb_id(folder),
            resume="allow",
            dir=folder,
            config=settings,
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    def record(self, values: Mapping[str, float]) -> None:
        step = int(values["step"])
        samples = self.new_samples() if step % LOOK_EVERY_STEPS == 0 else {}
        self.run.log({name: value for name, value in values.items() if name != "step"} | samples, step=step)

    def new_samples(self) -> dict[str, Any]:
        """Return the newest grid and answers of `monitor.prompts`, or {} when wandb has them already."""
        new = [path for path in sample_folders(self.folder) if path not in self.shown]
        self.shown.update(new)
        if not new:
            return {}
        samples = json.loads((new[-1] / "samples.json").read_text())
        rows = [[samples["step"], entry["question"], entry["answer"]] for entry in samples["answers"]]
        logged: dict[str, Any] = {}
        if rows:
            logged["samples/answers"] = self.wandb.Table(columns=["step", "question", "answer"], data=rows)
        if samples["drawings"]:
            caption = f"step {samples['step']}"
            logged["samples/grid"] = self.wandb.Image(str(new[-1] / "grid.png"), caption=caption)
        return logged

    def close(self) -> None:
        if samples := self.new_samples():
            self.run.log(samples)
        self.run.finish()


def wandb_id(run_dir: Path) -> str:
    """Return the wandb id of a run, made at its first start: the name may also be that of another or a deleted run."""
    path = run_dir / WANDB_ID
    fs.create(path, secrets.token_hex(8).encode())
    return path.read_text()


def make_sinks(recipe: StageRecipe, steps_done: int, tell: Callable[[str], None]) -> list[Sink]:
    """Return the sinks of rank 0; `tell` is called with a message about each sink that fails."""
    run, monitor = recipe.run, recipe.monitor
    sinks: list[Sink] = [JsonlSink(run.dir / "metrics.jsonl", steps_done, tell)]
    if monitor.wandb != "disabled":
        settings = recipe.model_dump(mode="json")
        name, mode = f"{Path(run.root).name}-{run.name}", monitor.wandb
        sinks.append(FaultTolerantSink("wandb", lambda: WandbSink(mode, name, run.dir, settings), tell))
    return sinks


def sample_folders(run_dir: Path) -> list[Path]:
    """Return the folders that `monitor.prompts` and `janus sample` made in a run's folder, oldest step first."""
    return sorted(path.parent for path in run_dir.glob("samples/step-*/samples.json"))


def last_line(path: Path) -> dict[str, float]:
    """Return the metrics of the last step in a metrics.jsonl; empty when it has no steps."""
    return next(reversed(read_records(path)), {})
