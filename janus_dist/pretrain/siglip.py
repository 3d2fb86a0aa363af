"""Training of a vision tower on captions, for image sizes that no published SigLIP has.

The sigmoid loss of SigLIP (arXiv 2303.15343, algorithm 1) on transformers' own SiglipModel; images of one caption are
each other's match, since a small data set says the same of many. Invariant: the result depends on images, captions,
sizes and seed alone.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SiglipConfig, SiglipModel

from janus_dist.config.model import ModelConfig
from janus_dist.model import native
from janus_dist.model import vq as vq_model

STEPS, BATCH, LR, WARMUP_STEPS = 2_000, 64, 1e-3, 50
SCALE, BIAS = math.log(10), -10.0
"""Initial scale and bias of the logits, as in the paper."""
HOLDOUT_SHARE = 0.02
"""Share of the images kept for the reported accuracy."""
LOG_EVERY_STEPS = 100


def siglip_config(config: ModelConfig, caption_ids: int) -> SiglipConfig:
    """Return the recipe's vision tower with a one-layer text tower of its width, for captions of `caption_ids` ids."""
    vision = config.vision
    sizes = {
        "hidden_size": vision.hidden, "num_attention_heads": vision.heads, "intermediate_size": vision.mlp,
        "hidden_act": "gelu",
    }  # fmt: skip
    return SiglipConfig(
        text_config=sizes
        | {
            "vocab_size": config.text.vocab,
            "num_hidden_layers": 1,
            "max_position_embeddings": caption_ids,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config=sizes
        | {"num_hidden_layers": vision.layers, "image_size": config.image_size, "patch_size": vision.patch},
    )


def train_siglip(
    model: SiglipModel, images: Tensor, captions: Tensor, steps: int, seed: int, log: Callable[[str], None]
) -> float:
    """Train `model` in place on `images` [image, 3, side, side] uint8 and their `captions` [image, id] int64; the share
    of held-out images whose own caption fits them best of all captions."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    num_held_out = max(1, round(len(images) * HOLDOUT_SHARE))
    held_out, training = order[:num_held_out], order[num_held_out:]
    distinct, kind = torch.unique(captions, dim=0, return_inverse=True)
    with torch.no_grad():
        model.logit_scale.fill_(SCALE)
        model.logit_bias.fill_(BIAS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = training[torch.randint(len(training), (BATCH,), generator=generator)]
        with native.autocast(images.device.type):
            found = model(input_ids=captions[chosen], pixel_values=vq_model.to_float(images[chosen]))
        match = kind[chosen][:, None] == kind[chosen][None, :]
        loss = -F.logsigmoid(torch.where(match, 1.0, -1.0) * found.logits_per_text.float()).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % LOG_EVERY_STEPS == 0:
            right = accuracy(model, images[held_out], distinct, kind[held_out])
            log(f"step {step + 1:5d}/{steps}  loss {loss.item():.4f}  accuracy {right:.3f}")
    return accuracy(model, images[held_out], distinct, kind[held_out])


@torch.no_grad()
def accuracy(model: SiglipModel, images: Tensor, captions: Tensor, kind: Tensor) -> float:
    """Return the share of `images` [image, 3, side, side] uint8 to which, of `captions` [caption, id], that of their
    `kind` [image] is the nearest."""
    found = model(input_ids=captions, pixel_values=vq_model.to_float(images))
    return float((found.logits_per_image.argmax(1) == kind).float().mean())


def padded(prompts: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Return captions [caption, id] int64, filled with `pad` to the length of the longest, as SigLIP reads them."""
    longest = max(map(len, prompts))
    return torch.tensor([[*prompt, *[pad] * (longest - len(prompt))] for prompt in prompts])
