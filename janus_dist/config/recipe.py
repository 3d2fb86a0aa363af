"""The root of a recipe: everything one job needs, and the rules between sections.

A recipe is YAML files merged left to right, then `key.path=value` (see load.py).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, PositiveInt, model_validator

from janus_dist.config.base import Config, Fault, refuse
from janus_dist.config.data import BatchConfig, DataConfig
from janus_dist.config.evaluate import EvaluateConfig, VqTrainConfig
from janus_dist.config.mix import MixConfig, mix_faults
from janus_dist.config.model import ModelConfig
from janus_dist.config.paths import LocalPath, PathOrUrl, PathRule, PlainName, each_text, is_url
from janus_dist.config.pipeline import PipelineConfig
from janus_dist.config.train import ClusterConfig, EngineConfig, MonitorConfig, OptimConfig, TrainConfig

C = TypeVar("C", bound=Config)


class RunConfig(Config):
    """Identity of a run and where it starts."""

    root: Annotated[
        str, PathRule(is_store_allowed=False, instead="run.checkpoints may be in a store, a run's folder not")
    ]
    """Folder that holds runs; this one is `ROOT/NAME`. On a disk that all nodes share."""
    name: PlainName
    """Name of the run; its folder is `ROOT/NAME`."""
    seed: int = 0
    """Seeds weight initialisation, sample order, guidance dropout and what is drawn in evaluation."""
    rebase: bool = False
    """Go on from a checkpoint with another mixture, batch or data than it was trained on: each source goes on where it
    was. Without this such a resume is refused."""
    resume: PathOrUrl = "auto"
    """`auto`: from this run's newest checkpoint that is whole. `never`: refuse when there is one. Else the folder of
    the checkpoint to go on from, once; newer ones of this run are set aside (docs/resume.md)."""
    checkpoints: PathOrUrl | None = None
    """Folder or `s3://` URL for the checkpoints of all runs of this root: a run's are in `CHECKPOINTS/NAME`. Else each
    run has them in its own folder."""
    start_from: str | None = None
    """Name of the run in the same root whose last committed weights this one starts from."""
    start_weights: dict[Literal["janus", "language_model", "vision_tower"], LocalPath] = Field(default={})
    """Folders of published weights to start from, in the layout of DeepSeek or transformers: `janus`, or a
    `language_model` (Llama) and a `vision_tower` (SigLIP). What nothing gives starts at random (docs/weights.md)."""
    start_recipes: tuple[LocalPath, ...] = ()
    """Recipe files that make `start_from` when it is not there yet, or not to the end that its own recipe names;
    relative to the file that says so. Of the files and overrides that follow it `run.root`, `run.seed`, `model`,
    `data`, `pipeline`, `cluster`, `engine` and `monitor` are its as well."""

    @property
    def dir(self) -> Path:
        return Path(self.root) / self.name

    @property
    def saved_in(self) -> str:
        """Folder or URL that holds this run's checkpoints."""
        return self.saved_in_of(self.name)

    def saved_in_of(self, name: str) -> str:
        """Folder or URL that holds the checkpoints of a run of this root."""
        if self.checkpoints is not None:
            return f"{self.checkpoints.rstrip('/')}/{name}"
        return str(Path(self.root) / name / "checkpoints")

    @model_validator(mode="after")
    def _one_start(self) -> "RunConfig":
        faults: list[Fault] = []
        given = sorted(self.start_weights)
        if self.start_from == self.name:
            faults.append(
                Fault(
                    ("start_from", "name"),
                    f"start_from={self.start_from} is the run itself; name another run, or set run.start_from=null to "
                    "start anew",
                )
            )
        if self.start_from is not None and given:
            faults.append(
                Fault(
                    ("start_from", "start_weights"),
                    f"start_from={self.start_from} and start_weights ({', '.join(given)}) exclude each other; "
                    "set run.start_from=null or run.start_weights=null",
                )
            )
        if "janus" in given and len(given) > 1:
            others = " ".join(f"run.start_weights.{name}=null" for name in given if name != "janus")
            faults.append(
                Fault(
                    ("start_weights",),
                    f"start_weights: janus gives every part, so {', '.join(given[1:])} has no place beside it; "
                    f"set {others}",
                )
            )
        refuse(faults)
        return self


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

    def with_absolute_paths(self) -> Self:
        """The same recipe for processes that run in another folder; URLs stay as they are."""
        return self.with_paths(lambda path: str(Path(path).absolute()))

    def with_paths(self, place: Callable[[str], str]) -> Self:
        """The same recipe with `place(path)` for every path in it; URLs stay as they are."""
        data = _placed(self.data, place, "root", "tokenizer", "vq_weights", "validation_root", "sources")
        read = _placed(self.data.read, place, "cache_dir")
        inputs = {
            name: _placed(source, place, "path", "images", "class_names")
            for name, source in self.pipeline.inputs.items()
        }
        resume = ("resume",) if self.run.resume not in ("auto", "never") else ()
        return self.model_copy(
            update={
                "run": _placed(self.run, place, "root", "checkpoints", "start_weights", *resume),
                "data": data.model_copy(update={"read": read}),
                "pipeline": self.pipeline.model_copy(update={"inputs": inputs}),
                "monitor": _placed(self.monitor, place, "prompts"),
                "evaluate": _placed(self.evaluate, place, "benchmarks"),
            }
        )


class StageRecipe(BaseRecipe):
    """A training stage."""

    stage: PositiveInt
    """1: adaptors and image head; 2: unified pre-training; 3: supervised fine-tuning (Janus, section 3.2)."""
    mix: MixConfig
    batch: BatchConfig
    optim: OptimConfig
    train: TrainConfig

    @model_validator(mode="after")
    def _fits(self) -> "StageRecipe":
        faults: list[Fault] = []
        if self.mix.unit == "samples" and self.batch.samples is None:
            faults.append(
                Fault(
                    ("batch.samples", "mix.unit"),
                    "batch.samples is required with mix.unit=samples: how many samples a step takes",
                )
            )
        if self.mix.unit == "tokens" and self.batch.samples is not None:
            faults.append(
                Fault(
                    ("batch.samples", "mix.unit"),
                    f"batch.samples={self.batch.samples} has no effect with mix.unit=tokens; leave it out",
                )
            )
        faults += mix_faults(self.mix, list(self.data.lanes), self.batch.samples)
        longest = max(self.model.image_tokens, self.model.image_ids)
        if self.batch.row_tokens <= longest:
            faults.append(
                Fault(
                    ("batch.row_tokens", "model.image_size", "model.vision.patch", "model.vq.channel_multipliers"),
                    f"batch.row_tokens={self.batch.row_tokens} cannot hold an image of {longest} tokens and its text; "
                    f"take at least {longest + 64}",
                )
            )
        positions = self.model.text.max_positions
        if self.batch.row_tokens > positions:
            faults.append(
                Fault(
                    ("batch.row_tokens", "model.text.max_positions"),
                    f"batch.row_tokens={self.batch.row_tokens} is more than model.text.max_positions={positions}",
                )
            )
        if self.cluster.workers % self.engine.hpz_ranks:
            faults.append(
                Fault(
                    ("cluster.workers", "engine.hpz_ranks"),
                    f"cluster.workers={self.cluster.workers} is no multiple of "
                    f"engine.hpz_ranks={self.engine.hpz_ranks}",
                )
            )
        if self.optim.warmup_steps >= self.train.steps:
            faults.append(
                Fault(
                    ("optim.warmup_steps", "train.steps"),
                    f"optim.warmup_steps={self.optim.warmup_steps} leaves nothing of train.steps={self.train.steps}",
                )
            )
        refuse(faults)
        return self


def _placed(section: C, place: Callable[[str], str], *names: str) -> C:
    """The section with `place` of each path that these settings hold."""

    def of_each(path: str) -> str:
        return path if is_url(path) else place(path)

    return section.model_copy(update={name: each_text(getattr(section, name), of_each) for name in names})
