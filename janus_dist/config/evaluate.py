"""What `jobs/evaluate.py` asks and draws, and how `jobs/train_vq.py` trains."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from janus_dist.config.base import Config
from janus_dist.config.paths import LocalPath

BenchmarkName = Literal["geneval", "pope", "mme", "gqa", "mmbench", "seed", "mmvet"]


class EvaluateConfig(Config):
    """Held-out questions and drawings."""

    benchmarks: dict[BenchmarkName, LocalPath] = Field(default={})
    """Folders of published benchmarks by their names (docs/evaluation.md). None: the
    held-out split of easy-vqa, or of scenes when the recipe has them as an input; neither needs a folder."""
    max_questions: NonNegativeInt = 0
    """Ask only the first so many held-out questions of each benchmark; 0 asks all."""
    images_per_prompt: PositiveInt = 4
    """Drawings of each prompt, with seeds of their own."""
    guidance: PositiveFloat = 5.0
    """Scale of classifier-free guidance (deepseek-ai/Janus, generation_inference.py); 1 switches it off."""
    temperature: NonNegativeFloat = 1.0
    """Of VQ ids; 0 takes the likeliest."""
    top_k: NonNegativeInt = 0
    """VQ ids are drawn from so many likeliest ones; 0: from all."""
    batch: PositiveInt = 64
    """Questions or images at once."""


class VqTrainConfig(Config):
    """Training of the VQ tokenizer."""

    steps: PositiveInt = 2_000
    """Optimizer steps of the VQ tokenizer."""
