"""Settings of the evaluation (`jobs/evaluate.py`) and of the VQ tokenizer's training (`jobs/train_vq.py`)."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from janus_dist.config.base import Config
from janus_dist.config.paths import LocalPath

BenchmarkName = Literal["geneval", "pope", "mme", "gqa", "mmbench", "seed", "mmvet"]


class EvaluateConfig(Config):
    """Evaluation by held-out questions and generated images."""

    benchmarks: dict[BenchmarkName, LocalPath] = Field(default={})
    """Folders of published benchmarks by their names (docs/evaluation.md). When empty, the held-out split of easy-vqa
    is used, or that of scenes if the recipe has scenes as an input; neither needs a folder."""
    max_questions: NonNegativeInt = 0
    """Largest number of held-out questions asked of each benchmark, from the first on; 0 asks all."""
    images_per_prompt: PositiveInt = 4
    """Images generated for each prompt, each with its own seed."""
    guidance: PositiveFloat = 5.0
    """Scale of classifier-free guidance (deepseek-ai/Janus, generation_inference.py); 1 switches it off."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature of VQ ids; 0 always takes the most likely id."""
    top_k: NonNegativeInt = 0
    """Number of most likely VQ ids to sample from; 0 samples from all."""
    batch: PositiveInt = 64
    """Questions or images in one batch."""


class VqTrainConfig(Config):
    """Training of the VQ tokenizer."""

    steps: PositiveInt = 2_000
    """Optimizer steps of the VQ tokenizer."""
