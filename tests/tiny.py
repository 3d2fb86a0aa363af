"""A very small Janus and batches for it, made of seeded random numbers."""

from collections.abc import Sequence

import numpy as np
import torch

from janus_dist.batch import Batch
from janus_dist.config.model import ModelConfig, TextConfig, VisionConfig, VqConfig
from janus_dist.data.collate import Document, DocumentFormat, collate, decode_images
from janus_dist.data.sample import GenerationSample, Sample, TextSample, UnderstandingSample
from janus_dist.data.shard import counts
from tests.images import png

MODEL = ModelConfig(
    image_size=16,
    text=TextConfig(vocab=64, hidden=32, layers=2, heads=2, mlp=48),
    vision=VisionConfig(patch=8, hidden=16, layers=1, heads=2, mlp=32),
    vq=VqConfig(
        codes=32, code_dim=8, base_channels=32, channel_multipliers=(1, 1, 2), res_blocks=1, latent_channels=32
    ),
)
PAD, IMAGE, BOI, EOI, BOS, EOS = 3, 4, 5, 6, 1, 2
FIRST_WORD = 8


def document_format(answers_only: bool = False) -> DocumentFormat:
    return DocumentFormat(PAD, IMAGE, BOI, EOI, MODEL.image_tokens, MODEL.image_size, answers_only)


def words(rng: np.random.Generator, number: int) -> list[int]:
    return rng.integers(FIRST_WORD, MODEL.text.vocab, number).tolist()


def text_sample(rng: np.random.Generator, number: int = 9) -> TextSample:
    return TextSample(np.array([BOS, *words(rng, number), EOS], dtype=np.uint32))


def understanding_sample(rng: np.random.Generator, question: int = 5, answer: int = 3) -> UnderstandingSample:
    ids = [BOS, BOI, IMAGE, EOI, *words(rng, question), *words(rng, answer), EOS]
    answers = np.array([[4 + question, len(ids)]], dtype=np.int64)
    pixels = rng.integers(0, 256, (MODEL.image_size, MODEL.image_size, 3), dtype=np.uint8)
    return UnderstandingSample(np.array(ids, dtype=np.uint32), answers, [png(pixels)])


def generation_sample(rng: np.random.Generator, prompt: int = 4) -> GenerationSample:
    ids = [BOS, *words(rng, prompt), BOI]
    vq_ids = rng.integers(0, MODEL.vq.codes, MODEL.image_ids, dtype=np.uint16)
    return GenerationSample(np.array(ids, dtype=np.uint32), vq_ids)


def samples(seed: int) -> list[Sample]:
    """Two samples of each stream."""
    rng = np.random.default_rng(seed)
    return [make(rng) for make in (text_sample, understanding_sample, generation_sample) for _ in range(2)]


def batch(seed: int, answers_only: bool = False) -> Batch:
    """A batch of two samples of each stream."""
    return batch_of(samples(seed), document_format(answers_only))


def batch_of(samples: Sequence[Sample], form: DocumentFormat) -> Batch:
    """The batch of whole samples."""
    return collate([document_of(sample) for sample in samples], form)


def document_of(sample: Sample, drop_prompt: bool = False) -> Document:
    """A whole sample as it goes into a row."""
    record = counts(sample, MODEL, (BOI, IMAGE, EOI))
    images = np.empty((record[3], MODEL.image_size, MODEL.image_size, 3), dtype=np.uint8)
    if isinstance(sample, UnderstandingSample):
        decode_images(sample.images, images)
    return Document(sample, record[0], drop_prompt=drop_prompt, images=images)


def empty_batch() -> Batch:
    """What a rank gets that has no row: dummies only."""
    return collate([], document_format())


def label_counts(batch: Batch) -> torch.Tensor:
    """Labels of understanding, text and generation in a batch."""
    counts = torch.bincount(batch.text_streams[batch.text_labels >= 0], minlength=3)
    counts[2] += (batch.image_labels >= 0).sum()
    return counts
