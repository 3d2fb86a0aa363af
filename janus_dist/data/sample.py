"""Samples as they are stored: what a shard holds of one document of each stream, and its bytes.

Writer and reader are both here. Invariants: `decode(stream, encode(sample)) == sample`; nothing is unpickled; bytes
that do not add up raise DataError. Token ids are uint32 (Janus's vocabulary exceeds 16 bits), VQ ids uint16, all
little-endian.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from janus_dist.config.streams import Stream
from janus_dist.errors import DataError

ID = np.dtype("<u4")
VQ_ID = np.dtype("<u2")
TAR_BLOCK = 512
JPEG = b"\xff\xd8\xff"
"""What every JPEG begins with."""


@dataclass(frozen=True)
class TextSample:
    """A document of text, from begin- to end-of-sentence, or a piece of it."""

    ids: NDArray[np.uint32]


@dataclass(frozen=True)
class UnderstandingSample:
    """A conversation about images; one placeholder id stands for each image."""

    ids: NDArray[np.uint32]
    answers: NDArray[np.int64]
    """[answer, 2]: first and one-past-last position in `ids` of each answer."""
    images: list[bytes]
    """Encoded square crops of the model's image size, JPEG or PNG."""
    context: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    """[context answer, 2]: the same positions of answers that are read but never learned, also in stages 1 and 2."""


@dataclass(frozen=True)
class GenerationSample:
    """A prompt, ending with begin-of-image, and the VQ ids of its image; an id behind begin-of-image follows them."""

    prompt_ids: NDArray[np.uint32]
    vq_ids: NDArray[np.uint16]


Sample = TextSample | UnderstandingSample | GenerationSample


def learned(sample: Sample, special: tuple[int, int, int], answers_only: bool) -> NDArray[np.bool_]:
    """[id] which of a sample's stored ids are labels of the text head.

    `special` are the ids of begin_of_image, placeholder and end_of_image, which are never labels unless an answer
    holds them. The first id has nothing before it that could predict it.
    """
    match sample:
        case TextSample():
            labelled = np.ones(len(sample.ids), dtype=np.bool_)
        case GenerationSample():
            labelled = np.zeros(len(sample.prompt_ids), dtype=np.bool_)
            labelled[-1:] = sample.prompt_ids[-1:] != special[0]
            return labelled
        case UnderstandingSample() if answers_only:
            labelled = np.zeros(len(sample.ids), dtype=np.bool_)
            for first, last in sample.answers.tolist():
                labelled[first:last] = True
        case UnderstandingSample():
            labelled = np.ones(len(sample.ids), dtype=np.bool_)
            for one in special:  # np.isin takes ten times as long
                labelled &= sample.ids != one
    if isinstance(sample, UnderstandingSample):
        for first, last in sample.context.tolist():
            labelled[first:last] = False
    labelled[:1] = False
    return labelled


def encode(sample: TextSample | GenerationSample) -> bytes:
    """The payload of a sample that is stored in blocks (text, generation)."""
    if isinstance(sample, TextSample):
        return sample.ids.astype(ID).tobytes()
    prompt = sample.prompt_ids.astype(ID).tobytes()
    return struct.pack("<I", len(sample.prompt_ids)) + prompt + sample.vq_ids.astype(VQ_ID).tobytes()


def members(key: str, sample: UnderstandingSample) -> list[tuple[str, bytes]]:
    """Tar members of a conversation: names and contents, as plain webdataset groups them by key.

    The key has no dot, at which webdataset ends one, and at most 80 bytes, since `decode` knows headers of 100.
    """
    images = [
        (f"{key}{f'.{number}' if number else ''}.{'jpg' if image.startswith(JPEG) else 'png'}", image)
        for number, image in enumerate(sample.images)
    ]
    context = [(f"{key}.context", sample.context.astype(ID).tobytes())] if len(sample.context) else []
    return [
        (f"{key}.tokens", sample.ids.astype(ID).tobytes()),
        (f"{key}.answers", sample.answers.astype(ID).tobytes()),
        *context,
        *images,
    ]


def decode(stream: Stream, payload: bytes) -> Sample:
    """The sample in a payload (text, generation) or tar slice (understanding); DataError when it is damaged."""
    try:
        if not payload:
            raise ValueError("it has no bytes")
        if stream == "text":
            return TextSample(np.frombuffer(payload, ID))
        if stream == "generation":
            (num_prompt,) = struct.unpack_from("<I", payload)
            prompt = np.frombuffer(payload, ID, num_prompt, offset=4)
            return GenerationSample(prompt, np.frombuffer(payload, VQ_ID, offset=4 + prompt.nbytes))
        return _decode_members(payload)
    except (ValueError, struct.error, KeyError) as error:
        raise DataError(f"a sample of the {stream} stream does not decode: {error}") from error


def _decode_members(payload: bytes) -> UnderstandingSample:
    ids = answers = None
    context = np.empty((0, 2), np.int64)
    images = []
    for name, content in _tar_members(payload):
        match name.rsplit(".", 1)[-1]:
            case "tokens":
                ids = np.frombuffer(content, ID)
            case "answers":
                answers = np.frombuffer(content, ID).astype(np.int64).reshape(-1, 2)
            case "context":
                context = np.frombuffer(content, ID).astype(np.int64).reshape(-1, 2)
            case "png" | "jpg":
                images.append(content)
    if ids is None or answers is None:
        raise ValueError("the member .tokens or .answers is missing")
    return UnderstandingSample(ids, answers, images, context)


def _tar_members(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, content) of a slice of a tar in the USTAR format that we write; tarfile takes fifteen times as long."""
    start = 0
    while start + TAR_BLOCK <= len(payload) and payload[start]:
        header = payload[start : start + TAR_BLOCK]
        size = int(header[124:136].rstrip(b"\0 "), 8)
        first = start + TAR_BLOCK
        if header[257:262] != b"ustar" or first + size > len(payload):
            raise ValueError(f"no whole tar member at byte {start}")
        yield header[:100].rstrip(b"\0").decode(), payload[first : first + size]
        start = first + -(-size // TAR_BLOCK) * TAR_BLOCK
