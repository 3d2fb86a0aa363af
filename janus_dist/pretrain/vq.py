"""Training of the VQ tokenizer on plain images, for data that LlamaGen's published weights do not fit.

Reconstruction error plus the official codebook and commitment losses; no perceptual or adversarial loss, since both
need pretrained networks. Codes start on real latents and codes that nothing uses are moved onto real latents, because
random codes collapse to a handful (13 of 256 in a first try). Invariant: the result depends on images, settings and
seed alone.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from janus_dist.config.evaluate import VqTrainConfig
from janus_dist.model import native
from janus_dist.model import vq as vq_model

BATCH, LR = 32, 1e-3
LOG_EVERY_STEPS = 50
WARM_START_STEPS = 100
"""Steps without quantisation, at most half of all; after them the codes are taken from real latents."""
RESEED_EVERY_STEPS = 50
"""Steps between moves of unused codes onto real latents."""
RESEED_UNTIL = 0.8
"""Share of the steps after which codes are left alone."""
HOLDOUT_SHARE = 0.02
"""Share of the images kept for the reported error."""


@dataclass(frozen=True)
class VqQuality:
    """How well held-out images come back: peak signal-to-noise ratio in dB, codes in use, mean code entropy in bits."""

    psnr_db: float
    codes_used: int
    entropy_bits: float


def train_vq(vq: JanusVQVAE, images: Tensor, config: VqTrainConfig, seed: int, log: Callable[[str], None]) -> VqQuality:
    """Train `vq` in place on `images` [image, 3, side, side] uint8 and return its quality on the held-out share."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    num_held_out = max(1, round(len(images) * HOLDOUT_SHARE))
    held_out, training = images[order[:num_held_out]], images[order[num_held_out:]]
    optimizer = torch.optim.AdamW(vq.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, config))
    warm_start_steps = min(WARM_START_STEPS, config.steps // 2)
    used = torch.zeros(vq.quantize.num_embeddings, dtype=torch.bool)
    for step in range(config.steps):
        batch = training[torch.randint(len(training), (BATCH,), generator=generator)]
        output, loss = _step(vq, vq_model.to_float(batch), optimizer, quantise=step >= warm_start_steps)
        schedule.step()
        used[output.ids.flatten()] = True
        if step + 1 == warm_start_steps:
            _move_codes(vq, torch.ones_like(used), _latents(vq, training, generator), generator)
            used.zero_()
        elif (step + 1) % RESEED_EVERY_STEPS == 0 and warm_start_steps < step:
            if step < config.steps * RESEED_UNTIL:
                _move_codes(vq, ~used, output.unit_latents.detach().flatten(0, 2), generator)
            used.zero_()
        if (step + 1) % LOG_EVERY_STEPS == 0:
            quality = measure(vq, held_out[:64])
            log(f"step {step + 1:5d}/{config.steps}  loss {loss:.4f}  " + _show(quality))
    quality = measure(vq, held_out)
    log("held out: " + _show(quality))
    return quality


def measure(vq: JanusVQVAE, images: Tensor, batch: int = 64) -> VqQuality:
    """Return the quality of `vq` on `images` [image, 3, side, side] uint8."""
    squared, counts = 0.0, torch.zeros(vq.quantize.num_embeddings, dtype=torch.int64)
    for chunk in images.split(batch):
        pixels = vq_model.to_float(chunk)
        ids = vq_model.encode(vq, pixels)
        squared += F.mse_loss(vq_model.decode(vq, ids), pixels, reduction="sum").item()
        counts += torch.bincount(ids.flatten(), minlength=len(counts))
    mean_squared = squared / images.numel()
    share = counts[counts > 0] / counts.sum()
    return VqQuality(
        psnr_db=10 * math.log10(4 / mean_squared),  # the peak-to-peak range [-1, 1] squared is 4
        codes_used=int((counts > 0).sum()),
        entropy_bits=float(-(share * share.log2()).sum()),
    )


def _step(vq: JanusVQVAE, pixels: Tensor, optimizer: torch.optim.Optimizer, quantise: bool):
    with native.autocast(pixels.device.type):
        output = vq_model.training_forward(vq, pixels, quantise)
    error = output.pixels.float() - pixels
    loss = error.abs().mean() + error.square().mean() + output.quantisation_loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
    optimizer.step()
    return output, loss.item()


def _lr_factor(step: int, config: VqTrainConfig) -> float:
    warmup = min(1.0, (step + 1) / 50)
    return warmup * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


@torch.no_grad()
def _latents(vq: JanusVQVAE, images: Tensor, generator: torch.Generator, num_images: int = 256) -> Tensor:
    chosen = images[torch.randperm(len(images), generator=generator)[:num_images]]
    return torch.cat([vq_model.latents(vq, vq_model.to_float(c)).flatten(0, 2) for c in chosen.split(64)])


@torch.no_grad()
def _move_codes(vq: JanusVQVAE, which: Tensor, latents: Tensor, generator: torch.Generator) -> None:
    """Put the codes marked in `which` [codes] bool onto random rows of `latents` [latent, code_dim]."""
    num = int(which.sum())
    rows = torch.randint(len(latents), (num,), generator=generator)
    vq.quantize.embedding.weight[which] = latents[rows].to(vq.quantize.embedding.weight.dtype)


def _show(quality: VqQuality) -> str:
    return "  ".join(f"{name} {value:.2f}" for name, value in asdict(quality).items())
