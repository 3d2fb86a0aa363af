"""Stored samples: the content of one document of each stream in a shard, and its encoding as bytes.

The module holds both the writer and the reader. Invariants: `decode(stream, encode(sample)) == sample`; nothing is
unpickled; inconsistent bytes raise DataError. Token ids are uint32 (Janus's vocabulary exceeds 16 bits), VQ ids uint16,
all little-endian.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from janus_dist.config.streams import Stream
from janus_dist.errors import DataError

ID = np.dtype("<u4")
"""Stored type of a token id."""
VQ_ID = np.dtype("<u2")
"""Stored type of a VQ id."""
TAR_BLOCK = 512
"""Bytes of a tar header, and unit of the length of members."""
JPEG = b"\xff\xd8\xff"
"""First bytes of every JPEG."""


@dataclass(frozen=True)
class TextSample:
    """A document of text, from begin- to end-of-sentence, or a piece of it."""

    ids: NDArray[np.uint32]
    """Token ids: [token] uint32."""


@dataclass(frozen=True)
class UnderstandingSample:
    """A conversation about images; one placeholder id represents each image."""

    ids: NDArray[np.uint32]
    """Token ids with unexpanded placeholders: [id] uint32."""
    answers: NDArray[np.int64]
    """First and one-past-last position in `ids` of each answer: [answer, 2] int64."""
    images: list[bytes]
    """Encoded square crops of the model's image size, JPEG or PNG."""
    context: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    """Positions, as in `answers`, of answers that are read but never learned in any stage: [answer, 2] int64."""


@dataclass(frozen=True)
class GenerationSample:
    """A prompt, ending with begin-of-image, and the VQ ids of its image; an id after begin-of-image follows them."""

    prompt_ids: NDArray[np.uint32]
    """Token ids: [id] uint32."""
    vq_ids: NDArray[np.uint16]
    """Codebook indices of the image: [vq id] uint16."""


Sample = TextSample | UnderstandingSample | GenerationSample


def learned(sample: Sample, special: tuple[int, int, int], answers_only: bool) -> NDArray[np.bool_]:
    """Return which of a sample's stored ids are labels of the text head: [id] bool.

    `special` holds the ids of begin_of_image, placeholder and end_of_image, which are labels only inside an answer when
    only answers are supervised. The first id is never a label: no token before it can predict it.
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
            for special_id in special:  # np.isin takes ten times as long
                labelled &= sample.ids != special_id
    if isinstance(sample, UnderstandingSample):
        for first, last in sample.context.tolist():
            labelled[first:last] = False
    labelled[:1] = False
    return labelled


def encode(sample: TextSample | GenerationSample) -> bytes:
    """Return the payload of a sample that is stored in a block (text, generation)."""
    if isinstance(sample, TextSample):
        return sample.ids.astype(ID).tobytes()
    prompt = sample.prompt_ids.astype(ID).tobytes()
    return struct.pack("<I", len(sample.prompt_ids)) + prompt + sample.vq_ids.astype(VQ_ID).tobytes()


def members(key: str, sample: UnderstandingSample) -> list[tuple[str, bytes]]:
    """Return the tar members (name, content) of a conversation, which webdataset groups by key.

    The key must not contain a dot, at which webdataset ends a key, and has at most 80 bytes, since `decode` reads names
    of up to 100.
    """
    images = [
        (f"{key}{f'.{index}' if index else ''}.{'jpg' if image.startswith(JPEG) else 'png'}", image)
        for index, image in enumerate(sample.images)
    ]
    context = [(f"{key}.context", sample.context.astype(ID).tobytes())] if len(sample.context) else []
    return [
        (f"{key}.tokens", sample.ids.astype(ID).tobytes()),
        (f"{key}.answers", sample.answers.astype(ID).tobytes()),
        *context,
        *images,
    ]


def decode(stream: Stream, payload: bytes) -> Sample:
    """Return the sample in a payload (text, generation) or tar slice (understanding).

    Raises DataError when it is damaged.
    """
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
    """Return the conversation in a tar slice; raise ValueError when a member is missing or damaged."""
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
    """Yield (name, content) of the members of a tar slice in the USTAR format; tarfile takes fifteen times as long.

    Raises ValueError when a member is incomplete.
    """
    start = 0
    while start + TAR_BLOCK <= len(payload) and payload[start]:
        header = payload[start : start + TAR_BLOCK]
        size = int(header[124:136].rstrip(b"\0 "), 8)
        first = start + TAR_BLOCK
        if header[257:262] != b"ustar" or first + size > len(payload):
            raise ValueError(f"the tar member at byte {start} is incomplete")
        yield header[:100].rstrip(b"\0").decode(), payload[first : first + size]
        start = first + -(-size // TAR_BLOCK) * TAR_BLOCK
