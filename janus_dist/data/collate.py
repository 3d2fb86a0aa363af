"""Samples to Batch: documents one behind the other, placeholders expanded, labels beside the positions that predict
them.

Invariants: no label reaches across documents; the first VQ id is predicted at begin_of_image and there are exactly as
many image labels as ids; a dropped prompt keeps its length (pad tokens between the first and the last id, attended to
as usual).
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from janus_dist.batch import NO_LABEL, Batch
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.streams import STREAMS, Stream
from janus_dist.data.sample import JPEG, GenerationSample, Sample, TextSample, UnderstandingSample, learned
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError


@dataclass(frozen=True)
class DocumentFormat:
    """What collating has to know: special ids, image sizes, and what is supervised."""

    pad: int
    image: int
    begin_of_image: int
    end_of_image: int
    image_tokens: int
    image_size: int
    answers_only: bool

    @classmethod
    def of(cls, recipe: StageRecipe, tokenizer: Tokenizer) -> "DocumentFormat":
        return cls(
            pad=tokenizer.pad,
            image=tokenizer.image,
            begin_of_image=tokenizer.boi,
            end_of_image=tokenizer.eoi,
            image_tokens=recipe.model.image_tokens,
            image_size=recipe.model.image_size,
            answers_only=recipe.train.answers_only,
        )


@dataclass(frozen=True)
class Document:
    """A sample, or a piece of a text, as it goes into a row."""

    sample: Sample | None
    """None where the sample is damaged: pad tokens without labels stand in its place."""
    tokens: int
    """How many tokens it takes."""
    first: int = 0
    """The token of the sample that a piece starts with."""
    drop_prompt: bool = False
    """Replace the prompt of a generation sample by pad tokens."""
    images: NDArray[np.uint8] | None = None
    """Decoded images [image, side, side, 3] of an understanding sample."""


@dataclass
class _Line:
    """The token line under construction."""

    input_ids: list[NDArray[np.int64]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    pixel_positions: list[NDArray[np.int64]] = field(default_factory=list)
    vq_ids: list[NDArray[np.int64]] = field(default_factory=list)
    vq_positions: list[NDArray[np.int64]] = field(default_factory=list)
    text_rows: list[NDArray[np.int64]] = field(default_factory=list)
    text_labels: list[NDArray[np.int64]] = field(default_factory=list)
    text_streams: list[NDArray[np.int64]] = field(default_factory=list)
    image_rows: list[NDArray[np.int64]] = field(default_factory=list)
    image_labels: list[NDArray[np.int64]] = field(default_factory=list)
    length: int = 0

    def add(self, ids: NDArray[np.int64]) -> int:
        """Append one document and return the position where it starts."""
        start = self.length
        self.input_ids.append(ids)
        self.lengths.append(len(ids))
        self.length += len(ids)
        return start

    def add_text_labels(self, rows: NDArray[np.int64], labels: NDArray[np.int64], stream: Stream) -> None:
        self.text_rows.append(rows)
        self.text_labels.append(labels)
        self.text_streams.append(np.full(len(rows), STREAMS.index(stream)))


def collate(documents: Sequence[Document], form: DocumentFormat) -> Batch:
    """The batch of documents, in order; none gives a batch of dummies."""
    line = _Line()
    for document in documents:
        match document.sample:
            case TextSample() as sample:
                _add_text(line, sample, document)
            case UnderstandingSample() as sample:
                _add_understanding(line, sample, document.images, form)
            case GenerationSample() as sample:
                _add_generation(line, sample, form, document.drop_prompt)
            case None:
                line.add(np.full(document.tokens, form.pad, dtype=np.int64))
    if not documents:
        line.add(np.array([form.pad], dtype=np.int64))
    return _finish(line, form)


def _add_text(line: _Line, sample: TextSample, piece: Document) -> None:
    ids = sample.ids[piece.first : piece.first + piece.tokens].astype(np.int64)
    start = line.add(ids)
    line.add_text_labels(np.arange(start, start + len(ids) - 1), ids[1:], "text")


def _add_understanding(
    line: _Line, sample: UnderstandingSample, images: NDArray[np.uint8] | None, form: DocumentFormat
) -> None:
    stored = sample.ids.astype(np.int64)
    is_image = stored == form.image
    assert images is not None and is_image.sum() == len(images), "a stored document has one placeholder per image"
    repeats = np.where(is_image, form.image_tokens, 1)
    ends = np.cumsum(repeats)
    start = line.add(np.repeat(np.where(is_image, 0, stored), repeats))
    line.pixel_positions.append(start + np.flatnonzero(np.repeat(is_image, repeats)))
    if len(images):
        line.images.append(images)
    special = (form.begin_of_image, form.image, form.end_of_image)
    where = np.flatnonzero(learned(sample, special, form.answers_only))
    line.add_text_labels(start + ends[where - 1] - 1, stored[where], "understanding")


def _add_generation(line: _Line, sample: GenerationSample, form: DocumentFormat, drop_prompt: bool) -> None:
    stored, vq_ids = sample.prompt_ids.astype(np.int64), sample.vq_ids.astype(np.int64)
    num_prompt = len(stored) if stored[-1] == form.begin_of_image else len(stored) - 1
    ids = np.concatenate([stored[:num_prompt], np.zeros_like(vq_ids), stored[num_prompt:]])
    if drop_prompt:
        ids[1 : num_prompt - 1] = form.pad
    first = line.add(ids) + num_prompt
    positions = np.arange(first, first + len(vq_ids))
    if num_prompt < len(stored):
        line.add_text_labels(positions[-1:], stored[num_prompt:], "generation")
    line.vq_ids.append(vq_ids)
    line.vq_positions.append(positions)
    line.image_rows.append(positions - 1)
    line.image_labels.append(vq_ids)


def decode_images(encoded: Sequence[bytes], out: NDArray[np.uint8]) -> None:
    """Decode images into `out` [image, side, side, 3]; DataError when one does not decode or has another size."""
    try:
        for image, place in zip(encoded, out, strict=True):
            if image.startswith(JPEG):
                # Pillow's pixels in two thirds of the time; a smaller image takes the beginning of the buffer only
                _check_shape(simplejpeg.decode_jpeg(image, "RGB", buffer=place).shape, place.shape)
            else:
                _decode_by_pillow(image, place)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three
        raise DataError(f"an image does not decode: {error}") from error


def _decode_by_pillow(encoded: bytes, out: NDArray[np.uint8]) -> None:
    with Image.open(io.BytesIO(encoded)) as image:
        pixels = np.asarray(image.convert("RGB"))
    _check_shape(pixels.shape, out.shape)
    out[:] = pixels


def _check_shape(found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise ValueError(f"it is {found[1]}x{found[0]}, the model takes {expected[1]}x{expected[0]}")


def _joined_images(parts: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """All images as one array: without a copy when they stand beside each other in the memory that they were decoded
    into, as they do when none was damaged. The copy would take half as long as decoding."""
    buffer, starts = parts[0].base, [part.__array_interface__["data"][0] for part in parts]
    ends = [start + part.nbytes for start, part in zip(starts, parts, strict=True)]
    if buffer is None or starts[1:] != ends[:-1] or any(part.base is not buffer for part in parts):
        return np.concatenate(parts)
    first = (starts[0] - buffer.__array_interface__["data"][0]) // parts[0][0].nbytes
    return buffer[first : first + sum(map(len, parts))]


def _finish(line: _Line, form: DocumentFormat) -> Batch:
    side = form.image_size
    images = _joined_images(line.images) if line.images else np.zeros((1, side, side, 3), dtype=np.uint8)
    return Batch(
        input_ids=_join(line.input_ids),
        position_ids=_join([np.arange(length) for length in line.lengths]),
        document_lengths=tuple(line.lengths),
        pixels=torch.from_numpy(images).permute(0, 3, 1, 2),  # a view; copying costs half of decoding
        pixel_positions=_join(line.pixel_positions),
        vq_ids=_join(line.vq_ids, dummy=0),
        vq_positions=_join(line.vq_positions),
        text_rows=_join(line.text_rows, dummy=0),
        text_labels=_join(line.text_labels, dummy=NO_LABEL),
        text_streams=_join(line.text_streams, dummy=0),
        image_rows=_join(line.image_rows, dummy=0),
        image_labels=_join(line.image_labels, dummy=NO_LABEL),
    )


def _join(pieces: list[NDArray[np.int64]], dummy: int | None = None) -> torch.Tensor:
    """One int64 tensor of all pieces; `dummy` alone where there is none."""
    joined = np.concatenate(pieces).astype(np.int64, copy=False) if pieces else np.empty(0, dtype=np.int64)
    if len(joined) == 0 and dummy is not None:
        joined = np.array([dummy], dtype=np.int64)
    return torch.from_numpy(joined)
