"""Root of a recipe: all settings of a job, and the rules between sections.

A recipe is YAML files merged left to right, then `key.path=value` (see load.py).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, PositiveInt, model_validator

from janus_dist.config.base import Config, SettingFault, refuse
from janus_dist.config.data import BatchConfig, DataConfig
from janus_dist.config.evaluate import EvaluateConfig, VqTrainConfig
from janus_dist.config.mix import MixConfig, mix_faults
from janus_dist.config.model import ModelConfig
from janus_dist.config.paths import LocalPath, PathOrUrl, PathRule, PlainName, each_text, is_url
from janus_dist.config.pipeline import PipelineConfig
from janus_dist.config.train import ClusterConfig, EngineConfig, MonitorConfig, OptimConfig, TrainConfig

C = TypeVar("C", bound=Config)


class RunConfig(Config):
    """Identity of a run and its starting point."""

    root: Annotated[
        str, PathRule(is_store_allowed=False, instead="only run.checkpoints may be in a store, a run's folder may not")
    ]
    """Folder that holds runs, on a disk that all nodes share; the folder of this run is `ROOT/NAME`."""
    name: PlainName
    """Name of the run and of its folder, `ROOT/NAME`."""
    seed: int = 0
    """Seeds weight initialisation, sample order, guidance dropout and the images generated in evaluation."""
    rebase: bool = False
    """Allows a resume with another mixture, batch or data than the checkpoint was trained with; each source continues
    at its position. Without it such a resume is refused."""
    resume: PathOrUrl = "auto"
    """Checkpoint to resume from. `auto`: the newest whole checkpoint of this run. `never`: none; refuses to start if
    there is one. Otherwise the folder of a checkpoint to resume from once; newer ones of this run are set aside
    (docs/resume.md)."""
    checkpoints: PathOrUrl | None = None
    """Folder or `s3://` URL for the checkpoints of all runs of this root, each run's in `CHECKPOINTS/NAME`; null: each
    run keeps them in its own folder."""
    start_from: str | None = None
    """Name of a run in the same root; this run starts from its last committed weights."""
    start_weights: dict[Literal["janus", "language_model", "vision_tower"], LocalPath] = Field(default={})
    """Folders of published weights to start from, in the layout of DeepSeek or transformers: `janus`, or a
    `language_model` (Llama) and a `vision_tower` (SigLIP). Weights in none of them are initialised randomly
    (docs/weights.md)."""
    start_recipes: tuple[LocalPath, ...] = ()
    """Recipe files, relative to the file with this setting, that train `start_from` if that run does not exist or has
    not reached its last step. That run also takes `run.root`, `run.seed`, `model`, `data`, `pipeline`, `cluster`,
    `engine` and `monitor` from the files and overrides that follow."""

    @property
    def dir(self) -> Path:
        """Return the folder of the run."""
        return Path(self.root) / self.name

    @property
    def saved_in(self) -> str:
        """Return the folder or URL that holds this run's checkpoints."""
        return self.saved_in_of(self.name)

    def saved_in_of(self, name: str) -> str:
        """Return the folder or URL that holds the checkpoints of a run of this root."""
        if self.checkpoints is not None:
            return f"{self.checkpoints.rstrip('/')}/{name}"
        return str(Path(self.root) / name / "checkpoints")

    @model_validator(mode="after")
    def _one_start(self) -> "RunConfig":
        faults: list[SettingFault] = []
        weights = sorted(self.start_weights)
        if self.start_from == self.name:
            faults.append(
                SettingFault(
                    ("start_from", "name"),
                    f"start_from={self.start_from} is the run itself; name another run, or set run.start_from=null to "
                    "start from scratch",
                )
            )
        if self.start_from is not None and weights:
            faults.append(
                SettingFault(
                    ("start_from", "start_weights"),
                    f"start_from={self.start_from} and start_weights ({', '.join(weights)}) exclude each other; "
                    "set run.start_from=null or run.start_weights=null",
                )
            )
        if "janus" in weights and len(weights) > 1:
            others = " ".join(f"run.start_weights.{name}=null" for name in weights if name != "janus")
            faults.append(
                SettingFault(
                    ("start_weights",),
                    f"start_weights: janus has the weights of every part and cannot be combined with "
                    f"{', '.join(weights[1:])}; set {others}",
                )
            )
        refuse(faults)
        return self


class BaseRecipe(Config):
    """Settings that all jobs share: run, model, data, pipelines, VQ training and evaluation."""

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
        """Return the recipe with absolute paths, for processes that run in another folder; URLs are unchanged."""
        return self.with_paths(lambda path: str(Path(path).absolute()))

    def with_paths(self, change: Callable[[str], str]) -> Self:
        """Return the recipe with every path replaced by `change(path)`; URLs are unchanged."""
        data = _with_paths(self.data, change, "root", "tokenizer", "vq_weights", "validation_root", "sources")
        read = _with_paths(self.data.read, change, "cache_dir")
        inputs = {
            name: _with_paths(source, change, "path", "images", "class_names")
            for name, source in self.pipeline.inputs.items()
        }
        resume = ("resume",) if self.run.resume not in ("auto", "never") else ()
        return self.model_copy(
            update={
                "run": _with_paths(self.run, change, "root", "checkpoints", "start_weights", *resume),
                "data": data.model_copy(update={"read": read}),
                "pipeline": self.pipeline.model_copy(update={"inputs": inputs}),
                "monitor": _with_paths(self.monitor, change, "prompts"),
                "evaluate": _with_paths(self.evaluate, change, "benchmarks"),
            }
        )


class StageRecipe(BaseRecipe):
    """Recipe of a training stage."""

    stage: PositiveInt
    """Number of the stage. 1: adaptors and image head; 2: unified pre-training; 3: supervised fine-tuning (Janus,
    section 3.2)."""
    mix: MixConfig
    batch: BatchConfig
    optim: OptimConfig
    train: TrainConfig

    @model_validator(mode="after")
    def _fits(self) -> "StageRecipe":
        faults: list[SettingFault] = []
        if self.mix.unit == "samples" and self.batch.samples is None:
            faults.append(
                SettingFault(
                    ("batch.samples", "mix.unit"),
                    "batch.samples is required with mix.unit=samples; it is the number of samples in a step",
                )
            )
        if self.mix.unit == "tokens" and self.batch.samples is not None:
            faults.append(
                SettingFault(
                    ("batch.samples", "mix.unit"),
                    f"batch.samples={self.batch.samples} has no effect with mix.unit=tokens; leave it out",
                )
            )
        faults += mix_faults(self.mix, list(self.data.lanes), self.batch.samples)
        longest = max(self.model.image_tokens, self.model.image_ids)
        if self.batch.row_tokens <= longest:
            faults.append(
                SettingFault(
                    ("batch.row_tokens", "model.image_size", "model.vision.patch", "model.vq.channel_multipliers"),
                    f"batch.row_tokens={self.batch.row_tokens} cannot hold an image of {longest} tokens and its text; "
                    f"set it to {longest + 64} or more",
                )
            )
        positions = self.model.text.max_positions
        if self.batch.row_tokens > positions:
            faults.append(
                SettingFault(
                    ("batch.row_tokens", "model.text.max_positions"),
                    f"batch.row_tokens={self.batch.row_tokens} is more than model.text.max_positions={positions}",
                )
            )
        if self.cluster.workers % self.engine.hpz_ranks:
            faults.append(
                SettingFault(
                    ("cluster.workers", "engine.hpz_ranks"),
                    f"cluster.workers={self.cluster.workers} is not a multiple of "
                    f"engine.hpz_ranks={self.engine.hpz_ranks}",
                )
            )
        if self.optim.warmup_steps >= self.train.steps:
            faults.append(
                SettingFault(
                    ("optim.warmup_steps", "train.steps"),
                    f"optim.warmup_steps={self.optim.warmup_steps} must be less than train.steps={self.train.steps}",
                )
            )
        refuse(faults)
        return self


def _with_paths(section: C, change: Callable[[str], str], *names: str) -> C:
    """Return the section with `change` applied to each path in the named settings; URLs are unchanged."""

    def change_path(path: str) -> str:
        return path if is_url(path) else change(path)

    return section.model_copy(update={name: each_text(getattr(section, name), change_path) for name in names})
