"""Answers and drawings of a trained Janus: text ids about images, and VQ ids with classifier-free guidance.

Prompts of one length go through the model together, so that there is no padding and no mask to get wrong. Invariant: a
batch gives what each prompt alone would give; what is drawn at random for one depends on its own seed only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from janus_dist.model import vq as vq_model
from janus_dist.model.janus import Janus


@dataclass(frozen=True)
class TokenChoice:
    """How an id is chosen from logits."""

    temperature: float = 0.0
    """0 takes the likeliest id."""
    top_k: int = 0
    """Of so many likeliest ids; 0: of all."""


LIKELIEST = TokenChoice()


@torch.inference_mode()
def image_features(model: Janus, images: Tensor, batch: int) -> Tensor:
    """Return [image, image_tokens, hidden] features for the language model of images [image, 3, side, side] uint8."""
    core = model.model
    pixels = (vq_model.to_float(chunk.to(model.device)).to(model.dtype) for chunk in images.split(batch))
    return torch.cat([core.aligner(core.vision_model(pixel_values=chunk).last_hidden_state) for chunk in pixels])


@torch.inference_mode()
def answer(
    model: Janus,
    prompts: Sequence[Sequence[int]],
    features: Tensor,
    images_of: Sequence[Sequence[int]],
    image: int,
    eos: int,
    max_new_tokens: int,
    batch: int,
    choice: TokenChoice = LIKELIEST,
    seeds: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the answers (ids before `eos`) to prompts that hold a placeholder `image` for each of their images, or
    none.

    `features` [image, image_tokens, hidden] are those of all images; `images_of[i]` are the images of prompt i in their
    order. `seeds` are those of the prompts, needed where something is drawn at random.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    chances = _chances(seeds or [0] * len(prompts), max_new_tokens)
    for members in _alike([(len(prompt), len(of)) for prompt, of in zip(prompts, images_of, strict=True)], batch):
        inputs = torch.cat([_embedded(model, prompts[m], features[list(images_of[m])], image) for m in members])
        unfinished = torch.ones(len(members), dtype=torch.bool)
        cache = DynamicCache(config=model.model.language_model.config)
        for number in range(max_new_tokens):
            hidden = _language_model(model, inputs, cache)
            chosen = choose(model.lm_head(hidden[:, -1]), choice, chances[members, number])
            unfinished &= chosen.cpu() != eos
            for place in unfinished.nonzero().flatten().tolist():
                answers[members[place]].append(int(chosen[place]))
            if not unfinished.any():
                break
            inputs = model.model.language_model.embed_tokens(chosen)[:, None]
    return answers


@torch.inference_mode()
def draw(
    model: Janus,
    prompts: Sequence[Sequence[int]],
    num_ids: int,
    pad: int,
    guidance: float,
    choice: TokenChoice,
    seeds: Sequence[int],
    batch: int,
) -> Tensor:
    """Return the VQ ids [prompt, ids] int64 of one image per prompt (ids that end with begin_of_image), chosen id by
    id.

    As deepseek-ai/Janus, generation_inference.py: beside each prompt runs one whose ids 1..-2 are `pad`, and the logits
    are l_u + guidance * (l_c - l_u). Each image has its seed.
    """
    drawn = torch.zeros(len(prompts), num_ids, dtype=torch.int64)
    chances = _chances(seeds, num_ids)
    core = model.model
    for members in _alike([len(prompt) for prompt in prompts], batch):
        conditional = torch.tensor([list(prompts[m]) for m in members], device=model.device)
        unconditional = conditional.clone()
        unconditional[:, 1:-1] = pad
        inputs = core.language_model.embed_tokens(torch.cat([conditional, unconditional]))
        cache = DynamicCache(config=core.language_model.config)
        for number in range(num_ids):
            hidden = _language_model(model, inputs, cache)
            with_prompt, without = core.generation_head(hidden[:, -1]).float().chunk(2)
            chosen = choose(without + guidance * (with_prompt - without), choice, chances[members, number])
            drawn[members, number] = chosen.cpu()
            inputs = core.generation_aligner(core.generation_embeddings(torch.cat([chosen, chosen])))[:, None]
    return drawn


def choose(logits: Tensor, choice: TokenChoice, chances: Tensor) -> Tensor:
    """Return the ids [row] int64 from logits [row, class], by a chance [row] from 0 to 1, below 1, where one is drawn
    at random.

    The id is the one in whose share of the probabilities, laid one behind the other, the chance falls: the same for the
    same chance on every device, but for rounding.
    """
    if choice.temperature == 0:
        return logits.argmax(dim=-1)
    scaled = logits.float() / choice.temperature
    if 0 < choice.top_k < scaled.shape[-1]:
        least = scaled.topk(choice.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    ends = scaled.double().softmax(dim=-1).cumsum(dim=-1)
    chances = chances.to(ends.device)[:, None] * ends[:, -1:]
    return torch.searchsorted(ends, chances, right=True)[:, 0].clamp(max=ends.shape[-1] - 1)


def _chances(seeds: Sequence[int], number: int) -> Tensor:
    """Return [seed, number] float64: what is drawn at random for each."""
    rows = [torch.rand(number, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, number, dtype=torch.float64)


def _alike(kinds: Sequence[Any], batch: int) -> Iterator[list[int]]:
    """Yield positions of one kind (a length), up to `batch` at a time."""
    by_kind: dict[Any, list[int]] = {}
    for number, kind in enumerate(kinds):
        by_kind.setdefault(kind, []).append(number)
    for members in by_kind.values():
        yield from (members[start : start + batch] for start in range(0, len(members), batch))


def _embedded(model: Janus, prompt: Sequence[int], features: Tensor, image: int) -> Tensor:
    """Return the input embeddings [1, position, hidden] of a prompt, each placeholder replaced by the features of an
    image."""
    ids = torch.tensor(list(prompt), device=model.device)
    embedded = model.model.language_model.embed_tokens(ids)
    places = (ids == image).nonzero().flatten().tolist()
    pieces, start = [], 0
    for place, seen in zip(places, features, strict=True):
        pieces += [embedded[start:place], seen.to(embedded.dtype)]
        start = place + 1
    return torch.cat([*pieces, embedded[start:]])[None]


def _language_model(model: Janus, inputs: Tensor, cache: Any) -> Tensor:
    return model.model.language_model(inputs_embeds=inputs, past_key_values=cache, use_cache=True).last_hidden_state
