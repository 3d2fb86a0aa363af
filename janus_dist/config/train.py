"""Settings of one training run: optimizer, length, trained parts, checkpoints, engine, cluster and monitoring."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from janus_dist.config.base import Config
from janus_dist.config.paths import LocalPath

Part = Literal[
    "vision_tower",
    "understanding_adaptor",
    "language_model",
    "text_head",
    "generation_embedding",
    "generation_adaptor",
    "image_head",
]


Dtype = Literal["bfloat16", "float32"]
DtypeChoice = Literal["auto", Dtype]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class OptimConfig(Config):
    """AdamW and its schedule (Janus, Table 1)."""

    lr: PositiveFloat
    """Learning rate after warm-up."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate schedule after warm-up: constant, or a cosine that ends at `final_lr` at the last step."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises linearly from zero."""
    final_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the cosine schedule; the papers do not specify it."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of matrices; vectors (norms, biases) are not decayed."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay rates of AdamW's moments."""
    eps: PositiveFloat = 1e-8
    """Epsilon of AdamW."""
    grad_clip: PositiveFloat = 1.0
    """Largest norm of the gradient over all parameters; a gradient with a larger norm is scaled down to it."""


class TrainConfig(Config):
    """Length of the run, trained parts, validation and checkpoints."""

    steps: PositiveInt
    """Optimizer steps of the run, including those before a resume."""
    trainable: tuple[Part, ...] = Field(min_length=1)
    """Parts that are trained; all others are frozen. A training stage never trains the VQ tokenizer."""
    answers_only: bool = False
    """True: in the understanding stream the loss counts only answers (stage 3), not all text."""
    loss_mean: Literal["labels", "streams"] = "labels"
    """Mean that is the loss of a step. `labels`: over all labels. `streams`: over the means of the streams. The papers
    do not specify it."""
    spike_sigmas: PositiveFloat | None = 6.0
    """Loss spike threshold, in standard deviations above the mean loss of the last 128 steps; a step with a higher loss
    is skipped; null skips none. After ten skipped steps in a row the run rolls back to its last checkpoint and leaves
    out the data that came after it."""
    log_every_steps: PositiveInt = 10
    """Interval, in steps, of lines on the console."""
    validate_every_steps: PositiveInt = 1_000
    """Interval, in steps, of validation on `data.validation_root`, which also runs after the last step."""
    save_every_steps: PositiveInt = 1_000
    """Interval, in steps, of checkpoints; the last step is always saved."""
    keep_checkpoints: int = Field(default=2, ge=2)
    """Number of newest checkpoints that are kept."""
    keep_every_steps: PositiveInt | None = None
    """Interval, in steps, of further checkpoints that are kept; null: only the newest are kept."""


class EngineConfig(Config):
    """ZeRO-3 and numerics; DeepSpeed's own settings are derived from these."""

    dtype: DtypeChoice = "auto"
    """Data type of activations and of the weights that compute; master weights and moments are float32. `auto`: that
    of the checkpoint which the run resumes from; for a new run bfloat16 if every node computes in it natively (a GPU of
    compute capability 8.0 or more; a CPU with AVX512-BF16, AMX or arm64 BF16), otherwise float32."""
    reduce_dtype: Literal["bfloat16", "float32"] = "float32"
    """Data type in which gradients are reduced between ranks; bfloat16 halves the traffic and rounds the sums."""
    accumulate_dtype: Literal["bfloat16", "float32"] = "float32"
    """Data type in which gradients are summed over micro-steps."""
    hpz_ranks: PositiveInt = 1
    """Ranks in a group that holds a second copy of the `dtype` weights, so that the backward pass gathers within the
    group; the number of ranks of a node (ZeRO++, arXiv 2306.10209); 1: no second copy."""
    activation_checkpointing: NonNegativeInt = 0
    """Activation checkpointing: 0 keeps all activations; 1 recomputes each layer of the language model in the backward
    pass, n every n-th; both also recompute each layer of a vision tower that is trained."""
    bucket_elements: PositiveInt = 200_000_000
    """Elements of parameters that are prefetched, and of gradients that are reduced in one bucket; a layer of
    Janus-Pro-7B has 202 million."""
    persist_elements: NonNegativeInt = 100_000
    """Elements of the largest parameter that stays whole on every rank instead of being partitioned."""
    timeout_s: PositiveInt = 600
    """Longest wait in a collective before a rank fails, in seconds."""


class ClusterConfig(Config):
    """Number of ranks and the resources of each."""

    workers: PositiveInt
    """Number of ranks; each is a process with one GPU, or on CPUs only."""
    gpu: bool = False
    """True: each rank has a GPU."""
    cpus_per_worker: PositiveInt = 1
    """CPUs that Ray reserves for a rank; without a GPU also the number of its torch threads."""
    min_workers: PositiveInt | None = None
    """Smallest number of ranks with which a run continues after it lost a node; it uses as many as fit on the remaining
    nodes; null: all `workers` are needed."""
    restarts: NonNegativeInt = 3
    """Number of times that a run which lost a rank is restarted without having committed a checkpoint in between."""
    min_bandwidth_gb_s: NonNegativeFloat = 0.0
    """Smallest all-reduce bandwidth over all ranks, in GB per second; training does not start below it."""
    notice_file: LocalPath | None = None
    """File that appears on a node which is about to be taken away; the run then saves and stops."""


class MonitorConfig(Config):
    """Destinations of metrics and samples besides the console and metrics.jsonl."""

    wandb: Literal["disabled", "offline", "online"] = "offline"
    """Mode of wandb; its project is WANDB_PROJECT, or `janus-dist` if that is not set."""
    prompts: LocalPath | None = None
    """JSONL file of prompts and questions (docs/sampling.md) from which every checkpoint generates samples during the
    run, always with the same seeds; null: no samples."""
