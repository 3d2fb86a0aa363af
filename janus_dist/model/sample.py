"""Answers and drawings of a trained Janus: greedy text, and VQ ids with classifier-free guidance.

Prompts of one length go through the model together, so that there is no padding and no mask to get wrong. Invariant: a
batch gives what each prompt alone would give.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from janus_dist.model import vq as vq_model
from janus_dist.model.janus import Janus


@torch.no_grad()
def image_features(model: Janus, images: Tensor, batch: int) -> Tensor:
    """What the language model sees of images [image, 3, side, side] uint8: [image, image_tokens, hidden]."""
    core = model.model
    pixels = (vq_model.to_float(chunk).to(model.dtype) for chunk in images.split(batch))
    return torch.cat([core.aligner(core.vision_model(pixel_values=chunk).last_hidden_state) for chunk in pixels])


@torch.no_grad()
def answer(
    model: Janus,
    prompts: Sequence[Sequence[int]],
    features: Tensor,
    image_of: Sequence[int],
    image: int,
    eos: int,
    max_new_tokens: int,
    batch: int,
) -> list[list[int]]:
    """Greedy answers (ids before `eos`) to prompts that hold one placeholder `image` each.

    `features` [image, image_tokens, hidden] are those of all images; `image_of[i]` says which one prompt i is about.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for members in _same_length(prompts, batch):
        ids = torch.tensor([prompts[number] for number in members])
        seen = features[[image_of[number] for number in members]]
        inputs = _with_images(model, ids, seen, image)
        unfinished = torch.ones(len(members), dtype=torch.bool)
        cache = DynamicCache(config=model.model.language_model.config)
        for _ in range(max_new_tokens):
            hidden = _language_model(model, inputs, cache)
            chosen = model.lm_head(hidden[:, -1]).argmax(dim=-1)
            unfinished &= chosen != eos
            for place in unfinished.nonzero().flatten().tolist():
                answers[members[place]].append(int(chosen[place]))
            if not unfinished.any():
                break
            inputs = model.model.language_model.embed_tokens(chosen)[:, None]
    return answers


@torch.no_grad()
def draw(
    model: Janus,
    prompts: Sequence[Sequence[int]],
    num_ids: int,
    pad: int,
    guidance: float,
    temperature: float,
    generator: torch.Generator,
    batch: int,
) -> Tensor:
    """VQ ids [prompt, ids] int64 of one image per prompt (ids that end with begin_of_image), sampled id by id.

    As deepseek-ai/Janus, generation_inference.py: beside each prompt runs one whose ids 1..-2 are `pad`, and the
    logits are l_u + guidance * (l_c - l_u). A temperature of 0 takes the likeliest id.
    """
    drawn = torch.zeros(len(prompts), num_ids, dtype=torch.int64)
    for members in _same_length(prompts, batch):
        drawn[members] = _draw_batch(
            model, [prompts[m] for m in members], num_ids, pad, guidance, temperature, generator
        )
    return drawn


def _draw_batch(
    model: Janus,
    prompts: list[Sequence[int]],
    num_ids: int,
    pad: int,
    guidance: float,
    temperature: float,
    generator: torch.Generator,
) -> Tensor:
    conditional = torch.tensor(prompts)
    unconditional = conditional.clone()
    unconditional[:, 1:-1] = pad
    core = model.model
    inputs = core.language_model.embed_tokens(torch.cat([conditional, unconditional]))
    cache = DynamicCache(config=model.model.language_model.config)
    ids = []
    for _ in range(num_ids):
        hidden = _language_model(model, inputs, cache)
        with_prompt, without = core.generation_head(hidden[:, -1]).float().chunk(2)
        logits = without + guidance * (with_prompt - without)
        if temperature > 0:
            chosen = torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator).flatten()
        else:
            chosen = logits.argmax(dim=-1)
        ids.append(chosen)
        inputs = core.generation_aligner(core.generation_embeddings(torch.cat([chosen, chosen])))[:, None]
    return torch.stack(ids, dim=1)


def _same_length(prompts: Sequence[Sequence[int]], batch: int) -> Iterator[list[int]]:
    """Positions of prompts of one length, up to `batch` at a time."""
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    for members in by_length.values():
        yield from (members[start : start + batch] for start in range(0, len(members), batch))


def _with_images(model: Janus, ids: Tensor, features: Tensor, image: int) -> Tensor:
    """Input embeddings [prompt, position, hidden] with the placeholder of each row replaced by its image's features."""
    embedded = model.model.language_model.embed_tokens(ids)
    places = (ids == image).nonzero()[:, 1].tolist()
    rows = [
        torch.cat([row[:place], seen.to(row.dtype), row[place + 1 :]])
        for row, place, seen in zip(embedded, places, features, strict=True)
    ]
    return torch.stack(rows)


def _language_model(model: Janus, inputs: Tensor, cache: Any) -> Tensor:
    return model.model.language_model(inputs_embeds=inputs, past_key_values=cache, use_cache=True).last_hidden_state
