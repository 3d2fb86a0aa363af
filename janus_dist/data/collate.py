"""Collation of samples into a Batch: documents concatenated, placeholders expanded, each label paired with the position
that predicts it.

Invariants: no label crosses a document boundary; the first VQ id is predicted at begin_of_image, and image labels and
VQ ids have the same number; a dropped prompt keeps its length (pad tokens between the first and the last id, attended
to as usual).
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
    """Settings of collation: special ids, image sizes, and whether only answers are supervised."""

    pad: int
    image: int
    begin_of_image: int
    end_of_image: int
    image_tokens: int
    image_size: int
    answers_only: bool

    @classmethod
    def of(cls, recipe: StageRecipe, tokenizer: Tokenizer) -> "DocumentFormat":
        """Return the format that a recipe and its tokenizer define."""
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
    """A sample, or a piece of a text, to be placed in a row."""

    sample: Sample | None
    """The sample; None when it is damaged: pad tokens without labels replace it."""
    tokens: int
    """Number of tokens in the row."""
    first: int = 0
    """Index of the piece's first token in the sample."""
    drop_prompt: bool = False
    """Whether pad tokens replace the prompt of a generation sample."""
    images: NDArray[np.uint8] | None = None
    """Decoded images of an understanding sample: [image, side, side, 3] uint8 RGB."""


@dataclass
class _Line:
    """The concatenated documents of a batch under construction. Positions and rows index the batch's tokens.

    Each list holds one array per document: `input_ids` [token] int64, `images` [image, side, side, 3] uint8 RGB,
    `pixel_positions` [image token] int64, `vq_ids` and `vq_positions` [vq id] int64, `text_rows`, `text_labels` and
    `text_streams` [text label] int64, `image_rows` and `image_labels` [vq id] int64.
    """

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
        """Append one document, `ids`: [token] int64, and return the position where it starts."""
        start = self.length
        self.input_ids.append(ids)
        self.lengths.append(len(ids))
        self.length += len(ids)
        return start

    def add_text_labels(self, rows: NDArray[np.int64], labels: NDArray[np.int64], stream: Stream) -> None:
        """Append labels of the text head: `rows` [label] int64 predict `labels` [label] int64."""
        self.text_rows.append(rows)
        self.text_labels.append(labels)
        self.text_streams.append(np.full(len(rows), STREAMS.index(stream)))


def collate(documents: Sequence[Document], form: DocumentFormat) -> Batch:
    """Return the batch of documents, in order; without documents, a batch of dummy values."""
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
    """Append a piece of a text; every id but the first is a label."""
    ids = sample.ids[piece.first : piece.first + piece.tokens].astype(np.int64)
    start = line.add(ids)
    line.add_text_labels(np.arange(start, start + len(ids) - 1), ids[1:], "text")


def _add_understanding(
    line: _Line, sample: UnderstandingSample, images: NDArray[np.uint8] | None, form: DocumentFormat
) -> None:
    """Append a conversation, each placeholder expanded to its image tokens; `images`: [image, side, side, 3] uint8."""
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
    labelled = np.flatnonzero(learned(sample, special, form.answers_only))
    line.add_text_labels(start + ends[labelled - 1] - 1, stored[labelled], "understanding")


def _add_generation(line: _Line, sample: GenerationSample, form: DocumentFormat, drop_prompt: bool) -> None:
    """Append a prompt and the VQ ids of its image, each predicted by the position before it."""
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
    """Decode JPEG or PNG images into `out`: [image, side, side, 3] uint8 RGB.

    Raises DataError when an image does not decode or has another size.
    """
    try:
        for image, pixels in zip(encoded, out, strict=True):
            if image.startswith(JPEG):
                # the same pixels as Pillow in two thirds of the time; a smaller image fills only part of the buffer
                _check_shape(simplejpeg.decode_jpeg(image, "RGB", buffer=pixels).shape, pixels.shape)
            else:
                _decode_by_pillow(image, pixels)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three
        raise DataError(f"an image does not decode: {error}") from error


def _decode_by_pillow(encoded: bytes, out: NDArray[np.uint8]) -> None:
    """Decode an image into `out`: [side, side, 3] uint8 RGB."""
    with Image.open(io.BytesIO(encoded)) as image:
        pixels = np.asarray(image.convert("RGB"))
    _check_shape(pixels.shape, out.shape)
    out[:] = pixels


def _check_shape(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise ValueError unless an image has the expected [height, width, 3]."""
    if shape != expected:
        raise ValueError(f"it has {shape[1]}x{shape[0]} pixels, the model expects {expected[1]}x{expected[0]}")


def _joined_images(parts: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return all images as one array: [image, side, side, 3] uint8.

    No copy is made when they are adjacent in the memory that they were decoded into, as they are when none was damaged:
    a copy would take half as long as decoding.
    """
    buffer, starts = parts[0].base, [part.__array_interface__["data"][0] for part in parts]
    ends = [start + part.nbytes for start, part in zip(starts, parts, strict=True)]
    if buffer is None or starts[1:] != ends[:-1] or any(part.base is not buffer for part in parts):
        return np.concatenate(parts)
    first = (starts[0] - buffer.__array_interface__["data"][0]) // parts[0][0].nbytes
    return buffer[first : first + sum(map(len, parts))]


def _finish(line: _Line, form: DocumentFormat) -> Batch:
    """Return the batch of a complete line, with a dummy value in place of each empty array."""
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
    """Return all pieces as one tensor: [item] int64; [1] with `dummy` when the pieces are empty."""
    joined = np.concatenate(pieces).astype(np.int64, copy=False) if pieces else np.empty(0, dtype=np.int64)
    if len(joined) == 0 and dummy is not None:
        joined = np.array([dummy], dtype=np.int64)
    return torch.from_numpy(joined)
