"""The root of a recipe: everything one job needs, and the rules between sections.

A recipe is YAML files merged left to right, then `key.path=value` (see load.py).
"""

from pathlib import Path
from typing import Any

from pydantic import PositiveInt, model_validator

from janus_dist.config.base import Config, refuse
from janus_dist.config.data import BatchConfig, DataConfig
from janus_dist.config.evaluate import EvaluateConfig, VqTrainConfig
from janus_dist.config.mix import MixConfig, mix_faults
from janus_dist.config.model import ModelConfig
from janus_dist.config.pipeline import PipelineConfig
from janus_dist.config.train import ClusterConfig, EngineConfig, MonitorConfig, OptimConfig, TrainConfig


class RunConfig(Config):
    """Identity of a run and where it starts."""

    root: str
    """Folder that holds runs; this one is `ROOT/NAME`."""
    name: str
    seed: int = 0
    rebase: bool = False
    """Go on from a checkpoint with another mixture, batch or data than it was trained on: each source goes on where it
    was. Without this such a resume is refused."""
    start_from: str | None = None
    """Name of the run in the same root whose last committed weights this one starts from; random when absent."""
    start_recipes: tuple[str, ...] = ()
    """Recipe files that make `start_from` when it is not there yet, relative to this recipe's own folder."""

    @property
    def dir(self) -> Path:
        return Path(self.root) / self.name


class BaseRecipe(Config):
    """What all jobs share: model, data, and how the pipelines, the VQ training and the evaluation go about it."""

    run: RunConfig
    model: ModelConfig
    data: DataConfig
    pipeline: PipelineConfig = PipelineConfig()
    cluster: ClusterConfig
    engine: EngineConfig = EngineConfig()
    monitor: MonitorConfig = MonitorConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    vq_train: VqTrainConfig = VqTrainConfig()


class StageRecipe(BaseRecipe):
    """A training stage."""

    stage: PositiveInt
    mix: MixConfig
    batch: BatchConfig
    optim: OptimConfig
    train: TrainConfig

    def with_absolute_paths(self) -> "StageRecipe":
        """The same recipe for processes that run in another folder; URLs stay as they are."""
        data: dict[str, Any] = {
            name: _absolute(getattr(self.data, name)) for name in ("root", "tokenizer", "vq_weights")
        }
        if self.data.read.cache_dir is not None:
            data["read"] = self.data.read.model_copy(update={"cache_dir": _absolute(self.data.read.cache_dir)})
        data["sources"] = {
            stream: {name: _absolute(folder) for name, folder in found.items()}
            for stream, found in self.data.sources.items()
        }
        return self.model_copy(
            update={
                "run": self.run.model_copy(update={"root": _absolute(self.run.root)}),
                "data": self.data.model_copy(update=data),
            }
        )

    @model_validator(mode="after")
    def _fits(self) -> "StageRecipe":
        faults: list[str] = []
        if self.mix.unit == "samples" and self.batch.samples is None:
            faults.append("batch.samples is required with mix.unit=samples: how many samples a step takes")
        if self.mix.unit == "tokens" and self.batch.samples is not None:
            faults.append(f"batch.samples={self.batch.samples} has no effect with mix.unit=tokens; leave it out")
        faults += mix_faults(self.mix, list(self.data.lanes), self.batch.samples)
        longest = max(self.model.image_tokens, self.model.image_ids)
        if self.batch.row_tokens <= longest:
            faults.append(
                f"batch.row_tokens={self.batch.row_tokens} cannot hold an image of {longest} tokens and its text; "
                f"take at least {longest + 64}"
            )
        positions = self.model.text.max_positions
        if self.batch.row_tokens > positions:
            faults.append(f"batch.row_tokens={self.batch.row_tokens} is more than model.text.max_positions={positions}")
        if self.optim.warmup_steps >= self.train.steps:
            faults.append(
                f"optim.warmup_steps={self.optim.warmup_steps} leaves nothing of train.steps={self.train.steps}"
            )
        refuse(faults)
        return self


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).absolute())
