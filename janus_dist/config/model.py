"""Sizes of Janus and of its VQ tokenizer. Invariant: all sizes come from a recipe, none from the code."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from janus_dist.config.base import Config, SettingFault, refuse


class TextConfig(Config):
    """Language model (Llama)."""

    vocab: PositiveInt
    """Rows of the embedding and of the text head; at least the size of the tokenizer's vocabulary."""
    hidden: PositiveInt
    """Width of the hidden states."""
    layers: PositiveInt
    """Number of transformer layers."""
    heads: PositiveInt
    """Number of attention heads, each with its own keys and values."""
    mlp: PositiveInt
    """Width of the gated MLP."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary position embedding."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of RMSNorm."""
    max_positions: PositiveInt = 16_384
    """Largest number of positions, in tokens; no row may be longer."""


class VisionConfig(Config):
    """Understanding encoder (SigLIP)."""

    patch: PositiveInt
    """Side of a patch in pixels; each patch becomes one image token."""
    hidden: PositiveInt
    """Width of the hidden states."""
    layers: PositiveInt
    """Number of transformer layers."""
    heads: PositiveInt
    """Number of attention heads."""
    mlp: PositiveInt
    """Width of the MLP."""


VQ_NORM_GROUPS = 32
"""Groups of each GroupNorm of the VQ tokenizer (LlamaGen, and transformers' JanusVQVAE)."""


class VqConfig(Config):
    """VQ tokenizer (LlamaGen VQ-16 architecture)."""

    codes: PositiveInt = Field(default=16_384, le=65_536)
    """Number of codes in the codebook; the image head predicts their ids."""
    code_dim: PositiveInt = 8
    """Dimension of a code."""
    base_channels: PositiveInt = Field(default=128, multiple_of=VQ_NORM_GROUPS)
    """Channels at full resolution, normalised in 32 groups."""
    channel_multipliers: tuple[PositiveInt, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1)
    """Factors on `base_channels`, one per resolution; each resolution halves the side of the one before."""
    res_blocks: PositiveInt = 2
    """Residual blocks at each resolution."""
    latent_channels: PositiveInt = 256
    """Channels of a latent before it is projected to `code_dim`."""

    @property
    def downsample(self) -> int:
        """Return the number of pixels per id along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)


class ModelConfig(Config):
    """Janus: language model, understanding encoder, VQ tokenizer, and the adaptors and image head between them."""

    image_size: PositiveInt
    """Side of the square images that both encoders take, in pixels."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of randomly initialised weights (transformers' default, meant for widths of thousands)."""
    reads_by: Literal["siglip", "vq"] = "siglip"
    """Encoder of images to understand: SigLIP, as in Janus, or the VQ tokenizer as the single encoder of both
    directions, for comparison (Janus, table 5, A); a model with `vq` is not a Janus and cannot be exported."""
    text: TextConfig
    vision: VisionConfig
    vq: VqConfig

    @property
    def image_tokens(self) -> int:
        """Return the number of tokens that one image takes in the understanding stream."""
        return (self.image_size // self.vision.patch) ** 2

    @property
    def image_ids(self) -> int:
        """Return the number of VQ ids of one image in the generation stream."""
        return (self.image_size // self.vq.downsample) ** 2

    @model_validator(mode="after")
    def _fits(self) -> "ModelConfig":
        faults: list[SettingFault] = []
        for path, name, side in (
            ("vision.patch", "vision.patch", self.vision.patch),
            ("vq.channel_multipliers", "vq downsampling", self.vq.downsample),
        ):
            if self.image_size % side:
                message = f"image_size={self.image_size} is not a multiple of {name} = {side}"
                faults.append(SettingFault(("image_size", path), message))
        if self.reads_by == "vq" and self.image_tokens != self.image_ids:
            message = (
                f"reads_by=vq needs as many image tokens as VQ ids of an image, but an image has {self.image_tokens} "
                f"tokens and {self.image_ids} ids; set model.vision.patch={self.vq.downsample}"
            )
            faults.append(SettingFault(("reads_by", "vision.patch", "vq.channel_multipliers"), message))
        for name, part in (("text", self.text), ("vision", self.vision)):
            if part.hidden % part.heads:
                message = f"{name}.hidden={part.hidden} is not a multiple of {name}.heads = {part.heads}"
                faults.append(SettingFault((f"{name}.hidden", f"{name}.heads"), message))
        head = self.text.hidden // self.text.heads
        if head % 2:
            message = f"text.hidden / text.heads = {head} is odd; rotary position embedding needs an even number"
            faults.append(SettingFault(("text.hidden", "text.heads"), message))
        refuse(faults)
        return self
