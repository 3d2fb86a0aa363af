"""What `jobs/evaluate.py` asks and draws, and how `jobs/train_vq.py` trains."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from janus_dist.config.base import Config


class EvaluateConfig(Config):
    """Held-out questions and drawings."""

    benchmark: Literal["easy-vqa"] = "easy-vqa"
    max_questions: NonNegativeInt = 0
    """Ask only the first so many held-out questions; 0 asks all."""
    images_per_prompt: PositiveInt = 4
    guidance: PositiveFloat = 5.0
    """Scale of classifier-free guidance (deepseek-ai/Janus, generation_inference.py); 1 switches it off."""
    temperature: NonNegativeFloat = 1.0
    batch: PositiveInt = 64
    """Questions or images at once."""


class VqTrainConfig(Config):
    """Training of the VQ tokenizer."""

    steps: PositiveInt = 2_000
    batch: PositiveInt = 32
    lr: PositiveFloat = 1e-3
    warm_start_steps: NonNegativeInt = 100
    """Steps without quantisation; after them the codes are taken from real latents."""
    reseed_every_steps: PositiveInt = 50
    """How often codes that nothing used are moved onto real latents."""
    reseed_until: float = Field(default=0.8, ge=0.0, le=1.0)
    """Share of the steps after which codes are left alone."""
    holdout_share: float = Field(default=0.02, gt=0.0, lt=1.0)
    """Share of the images kept for the reported error."""
