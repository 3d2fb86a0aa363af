"""Sizes of Janus and of its VQ tokenizer. Invariant: sizes are numbers of a recipe, never of the code."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from janus_dist.config.base import Config, Fault, refuse


class TextConfig(Config):
    """The language model (Llama)."""

    vocab: PositiveInt
    """Rows of the embedding and of the text head; at least the tokenizer's size."""
    hidden: PositiveInt
    """Width."""
    layers: PositiveInt
    """Layers."""
    heads: PositiveInt
    """Attention heads, each with its own keys and values."""
    mlp: PositiveInt
    """Width of the gated MLP."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary positions."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of RMSNorm."""
    max_positions: PositiveInt = 16_384
    """Longest row; the model is not asked beyond it."""


class VisionConfig(Config):
    """The understanding encoder (SigLIP)."""

    patch: PositiveInt
    """Side of a patch in pixels; each gives one image token."""
    hidden: PositiveInt
    """Width."""
    layers: PositiveInt
    """Layers."""
    heads: PositiveInt
    """Attention heads."""
    mlp: PositiveInt
    """Width of the MLP."""


VQ_NORM_GROUPS = 32
"""Groups of each GroupNorm of the VQ tokenizer (LlamaGen, and transformers' JanusVQVAE)."""


class VqConfig(Config):
    """The VQ tokenizer (LlamaGen VQ-16 architecture)."""

    codes: PositiveInt = Field(default=16_384, le=65_536)
    """Codes, each an id that the image head predicts."""
    code_dim: PositiveInt = 8
    """Values of a code."""
    base_channels: PositiveInt = Field(default=128, multiple_of=VQ_NORM_GROUPS)
    """Channels at full resolution, normalised in 32 groups."""
    channel_multipliers: tuple[PositiveInt, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1)
    """One per resolution; the image is halved between each two."""
    res_blocks: PositiveInt = 2
    """Residual blocks at each resolution."""
    latent_channels: PositiveInt = 256
    """Channels before a latent becomes a code."""

    @property
    def downsample(self) -> int:
        """Pixels per id along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)


class ModelConfig(Config):
    """Janus: language model, understanding encoder, VQ tokenizer and the adaptors and image head between them."""

    image_size: PositiveInt
    """Side of the square images that both encoders take, in pixels."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of random weights (transformers' default, made for widths of thousands)."""
    reads_by: Literal["siglip", "vq"] = "siglip"
    """What encodes images to understand: SigLIP, as in Janus, or the VQ tokenizer too, a single encoder for comparison
    (Janus, table 5, A); a model that does is no Janus and is not exported."""
    text: TextConfig
    vision: VisionConfig
    vq: VqConfig

    @property
    def image_tokens(self) -> int:
        """Tokens that one image takes in the understanding stream."""
        return (self.image_size // self.vision.patch) ** 2

    @property
    def image_ids(self) -> int:
        """VQ ids of one image in the generation stream."""
        return (self.image_size // self.vq.downsample) ** 2

    @model_validator(mode="after")
    def _fits(self) -> "ModelConfig":
        faults: list[Fault] = []
        for path, name, side in (
            ("vision.patch", "vision.patch", self.vision.patch),
            ("vq.channel_multipliers", "vq downsampling", self.vq.downsample),
        ):
            if self.image_size % side:
                message = f"image_size={self.image_size} is not a multiple of {name} = {side}"
                faults.append(Fault(("image_size", path), message))
        if self.reads_by == "vq" and self.image_tokens != self.image_ids:
            message = (
                f"reads_by=vq needs as many VQ ids of an image as image tokens: {self.image_ids} and "
                f"{self.image_tokens}; set model.vision.patch={self.vq.downsample}"
            )
            faults.append(Fault(("reads_by", "vision.patch", "vq.channel_multipliers"), message))
        for name, part in (("text", self.text), ("vision", self.vision)):
            if part.hidden % part.heads:
                message = f"{name}.hidden={part.hidden} is not a multiple of {name}.heads = {part.heads}"
                faults.append(Fault((f"{name}.hidden", f"{name}.heads"), message))
        head = self.text.hidden // self.text.heads
        if head % 2:
            message = f"text.hidden / text.heads = {head} is odd; rotary positions need it even"
            faults.append(Fault(("text.hidden", "text.heads"), message))
        refuse(faults)
        return self
