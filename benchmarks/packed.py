"""Packed batches of synthetic documents, straight into tensors: for machines that have torch and no data packages.

Lengths are those of benchmarks/samples.py: log-normal text beside an image of an understanding document (median 80),
before one of a generation document (median 45), and alone (median 600, cut where its row ends). Invariant: the same
seed gives the same batch, and rows are full but for a few tokens, or less than a document with an image where the
mixture has no text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from janus_dist.batch import NO_LABEL, Batch
from janus_dist.config.model import ModelConfig
from janus_dist.config.streams import STREAMS, Stream

LENGTHS: dict[Stream, tuple[float, float]] = {
    "understanding": (80, 0.6),
    "text": (600, 1.1),
    "generation": (45, 0.6),
}
"""Median and sigma of the text tokens of a document."""
LEAST_WORDS, MARKS = 4, 4
"""Text tokens that a document has at least, and the special tokens beside those of an image."""


@dataclass
class _Line:
    """Document lengths, and positions on the token line of what stands there."""

    lengths: list[int] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)
    vq: list[Tensor] = field(default_factory=list)
    text: dict[Stream, list[Tensor]] = field(default_factory=lambda: {stream: [] for stream in STREAMS})
    """Positions whose next token is a label."""

    def add(self, stream: Stream, words: int, model: ModelConfig) -> None:
        start = sum(self.lengths)
        match stream:
            case "text":
                length = words
                self.text[stream].append(torch.arange(start, start + length - 1))
            case "understanding":  # begin, begin_of_image, image, end_of_image, words, end
                first = start + 2
                length = MARKS + model.image_tokens + words
                self.pixels.append(torch.arange(first, first + model.image_tokens))
                self.text[stream].append(torch.arange(first + model.image_tokens, start + length - 1))
            case "generation":  # begin, words, begin_of_image, ids
                first = start + 2 + words
                length = 2 + words + model.image_ids
                self.vq.append(torch.arange(first, first + model.image_ids))
        self.lengths.append(length)


def make_batch(model: ModelConfig, shares: Mapping[Stream, float], rows: int, row_tokens: int, seed: int) -> Batch:
    """A micro-step of `rows` rows whose tokens have these shares, about; all text is supervised."""
    generator = torch.Generator().manual_seed(seed)
    line = _Line()
    taken: dict[Stream, int] = dict.fromkeys(STREAMS, 0)
    present: list[Stream] = [stream for stream in STREAMS if shares[stream]]
    for _ in range(rows):
        room = row_tokens
        while room > 0:
            stream = min(present, key=lambda name: taken[name] / shares[name])
            words = _words(stream, row_tokens, generator)
            if stream != "text" and _image(stream, model) + words > room:
                if "text" not in present:
                    break
                stream, words = "text", room
            line.add(stream, min(words, room), model)
            taken[stream] += line.lengths[-1]
            room -= line.lengths[-1]
            if room < LEAST_WORDS:
                break
    return _tensors(line, model, generator)


def _image(stream: Stream, model: ModelConfig) -> int:
    """Tokens of a document beside its text."""
    return MARKS + {"understanding": model.image_tokens, "generation": model.image_ids, "text": 0}[stream]


def _words(stream: Stream, row_tokens: int, generator: torch.Generator) -> int:
    median, sigma = LENGTHS[stream]
    drawn = median * torch.randn((), generator=generator).mul(sigma).exp().item()
    return int(min(max(LEAST_WORDS, round(drawn)), row_tokens if stream == "text" else row_tokens // 4))


def _tensors(line: _Line, model: ModelConfig, generator: torch.Generator) -> Batch:
    def drawn(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    def joined(positions: list[Tensor]) -> Tensor:
        return torch.cat([torch.empty(0, dtype=torch.int64), *positions])

    tokens, side = sum(line.lengths), model.image_size
    pixel_positions, vq_positions = joined(line.pixels), joined(line.vq)
    ids = drawn(model.text.vocab, tokens)
    ids[pixel_positions] = ids[vq_positions] = 0
    streams = [torch.full((len(joined(line.text[s])),), number) for number, s in enumerate(STREAMS)]
    text_rows, text_streams = joined([joined(line.text[s]) for s in STREAMS]), joined(streams)
    vq_ids = drawn(model.vq.codes, max(1, len(vq_positions)))
    dummy, none = torch.zeros(1, dtype=torch.int64), torch.full((1,), NO_LABEL)
    return Batch(
        input_ids=ids,
        position_ids=torch.cat([torch.arange(length) for length in line.lengths]),
        document_lengths=tuple(line.lengths),
        pixels=drawn(256, max(1, len(line.pixels)), 3, side, side).to(torch.uint8),
        pixel_positions=pixel_positions,
        vq_ids=vq_ids,
        vq_positions=vq_positions,
        text_rows=text_rows if len(text_rows) else dummy,
        text_labels=ids[text_rows + 1] if len(text_rows) else none,
        text_streams=text_streams if len(text_rows) else dummy,
        image_rows=vq_positions - 1 if len(vq_positions) else dummy,
        image_labels=vq_ids if len(vq_positions) else none,
    )
