"""The VQ tokenizer of images: pixels to code ids and back, and the loss that trains it.

The network is transformers' `JanusVQVAE` (LlamaGen's VQ-16 architecture). Its own `encode` compares raw latents with
raw codes, while the official model normalises both to unit length before the nearest code is taken (`vq_model.py` of
deepseek-ai/Janus, `l2_norm=True`), so encoding is done here. Invariant: `encode` and `decode` agree with the official
model.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

COMMITMENT_WEIGHT = 0.25  # vq_model.py, ModelArgs.commit_loss_beta


def latents(vq: JanusVQVAE, pixels: Tensor) -> Tensor:
    """Return unit-length latents [image, row, column, code_dim] of pixels [image, 3, height, width] in [-1, 1]."""
    return F.normalize(vq.quant_conv(vq.encoder(pixels)).float(), dim=1).permute(0, 2, 3, 1)


def nearest_codes(unit_latents: Tensor, codebook: Tensor) -> Tensor:
    """Return the ids [image, row, column] int64 of the nearest codes; on the unit sphere that is the largest dot
    product."""
    return (unit_latents @ F.normalize(codebook.float(), dim=-1).T).argmax(dim=-1)


@torch.no_grad()
def encode(vq: JanusVQVAE, pixels: Tensor) -> Tensor:
    """Return the ids [image, ids_per_image] int64 in row-major order, of pixels [image, 3, height,
    width] in [-1, 1]."""
    return nearest_codes(latents(vq, pixels), vq.quantize.embedding.weight).flatten(1)


@torch.no_grad()
def decode(vq: JanusVQVAE, ids: Tensor) -> Tensor:
    """Return the pixels [image, 3, height, width] float32, clipped to [-1, 1], of ids [image, ids_per_image]."""
    return vq.decode(ids).float().clamp(-1, 1)  # pyright: ignore[reportArgumentType]  (any int64 tensor)


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images [..., 3, height, width] as float32 in [-1, 1], the scale that both image encoders take."""
    return images.float() / 127.5 - 1


def to_uint8(pixels: Tensor) -> Tensor:
    """Return the pixels in [-1, 1] as uint8, as the official demo rounds them: clip((x + 1) / 2 * 255)."""
    return ((pixels.float() + 1) * 127.5).clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class VqOutput:
    """What one training forward gives: pixels [image, 3, h, w], scalar losses, ids and unit latents."""

    pixels: Tensor
    quantisation_loss: Tensor
    ids: Tensor
    unit_latents: Tensor


def training_forward(vq: JanusVQVAE, pixels: Tensor, quantise: bool = True) -> VqOutput:
    """Reconstruct `pixels` [image, 3, h, w] in [-1, 1] through the codes, with a straight-through gradient.

    With `quantise=False` the unit latents go to the decoder as they are: the first steps of a training from scratch,
    after which codes can be taken from real latents.
    """
    unit = latents(vq, pixels)
    codebook = vq.quantize.embedding.weight
    ids = nearest_codes(unit.detach(), codebook)
    codes = F.normalize(F.embedding(ids, codebook).float(), dim=-1)
    loss = F.mse_loss(codes, unit.detach()) + COMMITMENT_WEIGHT * F.mse_loss(unit, codes.detach())
    passed = unit + (codes - unit).detach() if quantise else unit
    out = vq.decoder(vq.post_quant_conv(passed.permute(0, 3, 1, 2)))
    return VqOutput(out, loss if quantise else 0 * loss, ids, unit)


def build(config: JanusVQVAEConfig) -> JanusVQVAE:
    """Return a VQ tokenizer with random weights and unit-length random codes (the official initialisation)."""
    vq = JanusVQVAE(config)
    with torch.no_grad():
        codes = vq.quantize.embedding.weight
        codes.uniform_(-1.0 / len(codes), 1.0 / len(codes))
        codes.copy_(F.normalize(codes, dim=-1))
    return vq
