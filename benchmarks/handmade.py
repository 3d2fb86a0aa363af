"""transformers' Janus trained the way one would by hand: the contender of `benchmarks/train_step.py`.

One stream a batch, in turn, so often that tokens have the recipe's mixture; documents of a batch padded to its longest;
full logits at every position; transformers' own forward and loss for text and understanding, and for generation, where
it has none, embeddings of prompt and VQ ids through the language model and the image head. Chosen to be fair: the same
samples, sizes, dtype, ZeRO-3 settings and AdamW; attention by SDPA, transformers' default; batches of about as many
useful tokens as one of our micro-steps; made beforehand, so that loading costs nothing; in the order of a shuffled data
set, not sorted by length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration

from janus_dist.batch import NO_LABEL
from janus_dist.config.streams import STREAMS, Stream
from janus_dist.config.train import EngineConfig, OptimConfig
from janus_dist.data.collate import decode_images
from janus_dist.data.sample import GenerationSample, Sample, UnderstandingSample
from janus_dist.engine.world import World
from janus_dist.engine.zero import deepspeed_config
from janus_dist.model.vq import to_float

PAD = 0


@dataclass(frozen=True)
class Padded:
    """A batch of one stream; positions before or behind a document are masked."""

    input_ids: Tensor
    """[document, position] int64; image placeholders expanded."""
    mask: Tensor
    labels: Tensor
    """[document, position] int64: the id at a position, NO_LABEL where it is not learned."""
    pixels: Tensor | None
    vq_ids: Tensor | None
    """[document, ids] int64, behind the prompt."""
    useful_tokens: int


class Handmade(JanusForConditionalGeneration):
    """transformers' Janus with a loss for generation."""

    def __init__(self, config: JanusConfig):
        super().__init__(config)
        del self.model.vqmodel

    def forward(self, batch: Padded) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Mean loss of the labels of a batch."""
        if batch.vq_ids is None:
            arguments: dict[str, Any] = {"attention_mask": batch.mask, "labels": batch.labels, "use_cache": False}
            pixels = None if batch.pixels is None else to_float(batch.pixels).to(self.dtype)
            loss = super().forward(batch.input_ids, pixel_values=pixels, **arguments).loss  # pyright: ignore[reportArgumentType]
            assert loss is not None, "transformers gives a loss where there are labels"
            return loss
        drawn = self.prepare_embeddings_for_image_generation(batch.vq_ids)
        inputs = torch.cat([self.model.language_model.embed_tokens(batch.input_ids), drawn], dim=1)
        hidden = self.model.language_model(
            inputs_embeds=inputs, attention_mask=batch.mask, use_cache=False
        ).last_hidden_state
        logits = self.model.generation_head(hidden)
        ids = batch.vq_ids.shape[1]
        return F.cross_entropy(logits[:, -ids - 1 : -1].float().flatten(0, 1), batch.vq_ids.flatten())


class HandmadeTraining:
    """Batches in turn under ZeRO-3."""

    def __init__(self, config: JanusConfig, engine: EngineConfig, optim: OptimConfig, world: World, seed: int = 0):
        torch.manual_seed(seed)
        self.model = Handmade(config)
        parameters = [{"params": list(self.model.parameters()), "weight_decay": optim.weight_decay}]
        adamw = torch.optim.AdamW(parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
        self.engine, *_ = deepspeed.initialize(
            model=self.model, optimizer=adamw, config=deepspeed_config(engine, optim, world.size)
        )
        self.model.train()

    def step(self, batches: Sequence[Padded]) -> list[float]:
        """Train on some batches, whose gradients are averaged; their mean losses."""
        losses = []
        for number, batch in enumerate(batches, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(batches))
            loss = self.engine(batch)
            self.engine.backward(loss / len(batches))
            losses.append(loss.item())
        self.engine.step()
        return losses


def in_turn(shares: dict[Stream, float], number: int) -> Iterator[Stream]:
    """Streams of `number` batches, each as often as its share says, spread evenly."""
    due = dict.fromkeys(STREAMS, 0.0)
    for _ in range(number):
        for stream in STREAMS:
            due[stream] += shares[stream]
        chosen = max(STREAMS, key=lambda stream: due[stream])
        due[chosen] -= 1
        yield chosen


def padded(samples: Sequence[Sample], image_id: int, image_tokens: int, image_size: int) -> Padded:
    """A batch of samples of one stream. Prompts of images are padded before them, everything else behind."""
    if isinstance(samples[0], GenerationSample):
        return _generation([sample for sample in samples if isinstance(sample, GenerationSample)])
    lines, labels, images = [], [], []
    for sample in samples:
        assert not isinstance(sample, GenerationSample)
        ids = sample.ids.astype(np.int64)
        learned = np.ones(len(ids), dtype=bool)
        if isinstance(sample, UnderstandingSample):
            pixels = np.empty((len(sample.images), image_size, image_size, 3), dtype=np.uint8)
            decode_images(sample.images, pixels)
            images.append(pixels)
            place = np.flatnonzero(ids == image_id)
            learned[np.concatenate([place - 1, place, place + 1])] = False
        repeats = np.where(ids == image_id, image_tokens, 1)
        lines.append(torch.from_numpy(np.repeat(ids, repeats)))
        labels.append(torch.from_numpy(np.repeat(np.where(learned, ids, NO_LABEL), repeats)))
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(line) for line in lines], batch_first=True)
    return Padded(
        pad(lines, batch_first=True, padding_value=PAD),
        mask,
        pad(labels, batch_first=True, padding_value=NO_LABEL),
        torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2) if images else None,
        None,
        int(mask.sum()),
    )


def _generation(samples: Sequence[GenerationSample]) -> Padded:
    prompts = [torch.from_numpy(sample.prompt_ids.astype(np.int64)) for sample in samples]
    vq_ids = torch.from_numpy(np.stack([sample.vq_ids for sample in samples]).astype(np.int64))
    longest = max(map(len, prompts))
    ids = torch.stack([F.pad(prompt, (longest - len(prompt), 0), value=PAD) for prompt in prompts])
    mask = torch.stack([F.pad(torch.ones_like(prompt), (longest - len(prompt), 0)) for prompt in prompts])
    mask = torch.cat([mask, torch.ones_like(vq_ids)], dim=1)
    return Padded(ids, mask, torch.full_like(ids, NO_LABEL), None, vq_ids, int(mask.sum()))
