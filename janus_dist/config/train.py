"""Optimizer, length, what learns, checkpoints, engine and monitoring of one training run."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from janus_dist.config.base import Config

Part = Literal[
    "vision_tower",
    "understanding_adaptor",
    "language_model",
    "text_head",
    "generation_embedding",
    "generation_adaptor",
    "image_head",
]


class OptimConfig(Config):
    """AdamW and its schedule (Janus, Table 1)."""

    lr: PositiveFloat
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    final_lr: NonNegativeFloat = 0.0
    """Where the cosine ends; the papers do not state it."""
    weight_decay: NonNegativeFloat = 0.0
    """On matrices only; vectors (norms, biases) are not decayed."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    grad_clip: PositiveFloat = 1.0


class TrainConfig(Config):
    """Length of the run and what learns in it."""

    steps: PositiveInt
    trainable: tuple[Part, ...] = Field(min_length=1)
    """The parts that learn; all others stay as they are. The VQ tokenizer never learns here."""
    answers_only: bool = False
    """Supervise only answers in the understanding stream (stage 3), rather than all of its text."""
    loss_mean: Literal["labels", "streams"] = "labels"
    """Mean over all labels of a step, or mean over streams of each stream's own mean; the papers do not state it."""
    log_every_steps: PositiveInt = 10
    save_every_steps: PositiveInt = 1_000
    keep_checkpoints: int = Field(default=2, ge=2)
    """Checkpoints kept in the run folder; the newest ones."""


class EngineConfig(Config):
    """ZeRO and numbers; DeepSpeed's own settings are made from these."""

    zero_stage: Literal[3] = 3
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    activation_checkpointing: bool = False
    """Recompute the language model's layers in the backward pass."""
    reduce_bucket_elements: PositiveInt = 200_000_000
    prefetch_elements: PositiveInt = 200_000_000
    persist_elements: NonNegativeInt = 100_000
    """Parameters up to this many elements stay whole on every rank."""
    timeout_s: PositiveInt = 600
    """Longest wait in a collective before a rank gives up."""


class ClusterConfig(Config):
    """How many ranks there are and what each gets."""

    workers: PositiveInt
    """Ranks; one GPU each, or one CPU process each."""
    gpu: bool = False
    cpus_per_worker: PositiveInt = 1
    """CPUs that Ray reserves for a rank; also its torch threads when there is no GPU."""


class MonitorConfig(Config):
    """Where figures go besides the console and metrics.jsonl."""

    wandb: Literal["disabled", "offline", "online"] = "offline"
    project: str = "janus-dist"
