"""Optimizer, length, what learns, checkpoints, engine and monitoring of one training run."""

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
    """After warm-up: the same rate, or a cosine down to `final_lr` at the last step."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate rises linearly from zero."""
    final_lr: NonNegativeFloat = 0.0
    """Where the cosine ends; the papers do not state it."""
    weight_decay: NonNegativeFloat = 0.0
    """On matrices only; vectors (norms, biases) are not decayed."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of AdamW's moments."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    grad_clip: PositiveFloat = 1.0
    """Largest norm of the gradient over all parameters; a larger one is scaled down to it."""


class TrainConfig(Config):
    """Length of the run and what learns in it."""

    steps: PositiveInt
    """Optimizer steps of the run, those before a resume included."""
    trainable: tuple[Part, ...] = Field(min_length=1)
    """The parts that learn; all others stay as they are. The VQ tokenizer never learns here."""
    answers_only: bool = False
    """Supervise only answers in the understanding stream (stage 3), rather than all of its text."""
    loss_mean: Literal["labels", "streams"] = "labels"
    """Mean over all labels of a step, or mean over streams of each stream's own mean; the papers do not state it."""
    spike_sigmas: PositiveFloat | None = 6.0
    """A step whose loss lies so many standard deviations above the mean of the last 128 is skipped; null: none is.
    After ten in a row the run goes back to its last checkpoint and leaves out what came after it."""
    log_every_steps: PositiveInt = 10
    """How often a step is shown on the console."""
    validate_every_steps: PositiveInt = 1_000
    """With `data.validation_root` the losses of held-out samples are found so often, and after the last step."""
    save_every_steps: PositiveInt = 1_000
    """How often a checkpoint is saved, beside that of the last step."""
    keep_checkpoints: int = Field(default=2, ge=2)
    """The newest checkpoints, so many, are kept."""
    keep_every_steps: PositiveInt | None = None
    """Beside them those of every so many steps are."""


class EngineConfig(Config):
    """ZeRO-3 and numbers; DeepSpeed's own settings are made from these."""

    dtype: DtypeChoice = "auto"
    """Of weights at work and activations; master weights and moments are float32. `auto`: that of the checkpoint which
    the run goes on from; for a new run bfloat16 if every node computes in it natively (a GPU of compute capability 8.0
    or more; a CPU with AVX512-BF16, AMX or arm64 BF16), else float32."""
    reduce_dtype: Literal["bfloat16", "float32"] = "float32"
    """Of gradients on their way between ranks; bfloat16 halves the traffic and rounds what is summed."""
    accumulate_dtype: Literal["bfloat16", "float32"] = "float32"
    """Of gradients that are summed over micro-steps."""
    hpz_ranks: PositiveInt = 1
    """Ranks that hold `dtype` weights once more among themselves, so that the backward gathers within them: as many as
    a node has (ZeRO++, arXiv 2306.10209); 1: none do."""
    activation_checkpointing: NonNegativeInt = 0
    """0 keeps all activations; 1 computes each layer of the language model again in the backward, n every n-th, and
    both each layer of a vision tower that learns."""
    bucket_elements: PositiveInt = 200_000_000
    """Elements of parameters that are gathered ahead, and of gradients that are reduced at once; a layer of
    Janus-Pro-7B has 202 million."""
    persist_elements: NonNegativeInt = 100_000
    """Parameters up to this many elements stay whole on every rank."""
    timeout_s: PositiveInt = 600
    """Longest wait in a collective before a rank gives up."""


class ClusterConfig(Config):
    """How many ranks there are and what each gets."""

    workers: PositiveInt
    """Ranks; one GPU each, or one CPU process each."""
    gpu: bool = False
    """Whether each rank has a GPU."""
    cpus_per_worker: PositiveInt = 1
    """CPUs that Ray reserves for a rank; also its torch threads when there is no GPU."""
    min_workers: PositiveInt | None = None
    """After a node was lost a run goes on with as many ranks as there is room for, this many at least; all of
    `workers` when null."""
    restarts: NonNegativeInt = 3
    """Times that a run is started again after it lost a rank without having committed a checkpoint in between."""
    min_bandwidth_gb_s: NonNegativeFloat = 0.0
    """GB a second in which all ranks must be able to sum a tensor before training starts."""
    notice_file: LocalPath | None = None
    """A file that appears on a node which is about to be taken away; the run saves and stops."""


class MonitorConfig(Config):
    """Where figures go besides the console and metrics.jsonl."""

    wandb: Literal["disabled", "offline", "online"] = "offline"
    """The project is WANDB_PROJECT, `janus-dist` where that is not set."""
    prompts: LocalPath | None = None
    """A JSONL file of prompts to draw and of questions (docs/sampling.md) that every checkpoint is given while the run
    trains, always with the same seeds; none: no samples."""
