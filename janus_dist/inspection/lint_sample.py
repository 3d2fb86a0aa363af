"""Checks of one stored sample: its bytes, its index record, its ids and its images.

Invariant: whatever the bytes are, the answer is a list of issues.
"""

import heapq
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from janus_dist.data.manifest import Manifest
from janus_dist.data.sample import GenerationSample, Sample, TextSample, UnderstandingSample, decode, learned
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError
from janus_dist.storage.repair import REMAKE_SHARD

AGAIN = REMAKE_SHARD
WRITTEN_SO = "it was written so: mend the source or the pipeline, then make the shard again"
OTHER_VERSION = f"index and shard are of different versions; {REMAKE_SHARD}"


@dataclass(frozen=True)
class Issue:
    """Something wrong, and what to do."""

    what: str
    do: str = WRITTEN_SO
    row: int | None = None
    """Of the sample in its shard."""


@dataclass(frozen=True)
class Rules:
    """What samples are checked against; what is None is not checked."""

    manifest: Manifest
    tokenizer: Tokenizer | None = None
    codes: int | None = None
    """Codes of the VQ tokenizer."""


def check_sample(payload: bytes, record: np.void, rules: Rules) -> list[Issue]:
    """Return the faults of a sample, from its bytes inward; nothing further is said where the bytes are damaged."""
    if zlib.crc32(payload) != int(record["crc32"]):
        said = f"{int(record['crc32']):08x}"
        return [Issue(f"damaged: its checksum is {zlib.crc32(payload):08x}, the index says {said}", AGAIN)]
    try:
        sample = decode(rules.manifest.stream, payload)
    except DataError as error:
        return [Issue(error.message)]
    issues = [Issue(what, OTHER_VERSION) for what in _check_record(sample, record, rules)]
    match sample:
        case TextSample():
            return issues + [Issue(what) for what in _check_text(sample, rules)]
        case UnderstandingSample():
            return issues + [Issue(what) for what in _check_understanding(sample, rules)]
        case GenerationSample():
            return issues + [Issue(what) for what in _check_generation(sample, rules)]


def _check_record(sample: Sample, record: np.void, rules: Rules) -> Iterator[str]:
    ids = sample.prompt_ids if isinstance(sample, GenerationSample) else sample.ids
    images = len(sample.images) if isinstance(sample, UnderstandingSample) else 0
    image_ids = len(sample.vq_ids) if isinstance(sample, GenerationSample) else 0
    counted = {
        "tokens": len(ids) + images * (rules.manifest.image_tokens - 1) + image_ids,
        "images": images,
        "image_ids": image_ids,
    }
    tokenizer = rules.tokenizer
    if tokenizer is not None:
        special = (tokenizer.boi, tokenizer.image, tokenizer.eoi)
        for name, answers_only in (("text_labels", False), ("answer_labels", True)):
            counted[name] = int(learned(sample, special, answers_only).sum())
    for name, number in counted.items():
        if number != int(record[name]):
            yield f"{name.replace('_', ' ')}: {number:,}, the index says {int(record[name]):,}"


def _check_text(sample: TextSample, rules: Rules) -> Iterator[str]:
    tokenizer, ids = rules.tokenizer, sample.ids
    if len(ids) < 2:
        yield f"ids: {len(ids)}; nothing in it is learned"
    elif tokenizer is not None:
        # A piece of a long document may lack its begin or its end; none has them elsewhere.
        yield from _check_known(ids, tokenizer)
        if (ids[1:] == tokenizer.bos).any():
            yield f"begin-of-sentence ({tokenizer.bos}) stands within it"
        if (ids[:-1] == tokenizer.eos).any():
            yield f"end-of-sentence ({tokenizer.eos}) stands within it"
        placeholders = int((ids == tokenizer.image).sum())
        if placeholders:
            yield f"image placeholders in a text: {placeholders}"


def _check_understanding(sample: UnderstandingSample, rules: Rules) -> Iterator[str]:
    tokenizer, ids = rules.tokenizer, sample.ids
    if tokenizer is not None:
        yield from _check_ids(ids, tokenizer)
        where = np.flatnonzero(ids == tokenizer.image)
        if len(where) != len(sample.images):
            yield f"image placeholders: {len(where)}, images: {len(sample.images)}"
        framed = np.concatenate([[-1], ids.astype(np.int64), [-1]])
        if ((framed[where] != tokenizer.boi) | (framed[where + 2] != tokenizer.eoi)).any():
            yield "an image placeholder does not stand between begin_of_image and end_of_image"
    previous = 0
    for first, last in heapq.merge(sample.answers.tolist(), sample.context.tolist()):
        if not previous <= first < last <= len(ids):
            yield f"the answer at ids {first} to {last} is not inside the document of {len(ids)} or not in order"
        previous = last
    if not len(sample.answers):
        yield "it has no answer"
    for number, encoded in enumerate(sample.images):
        yield from _check_image(number, encoded, rules.manifest.image_size)


def _check_generation(sample: GenerationSample, rules: Rules) -> Iterator[str]:
    tokenizer, prompt, vq_ids = rules.tokenizer, sample.prompt_ids, sample.vq_ids
    if tokenizer is not None and len(prompt):
        yield from _check_ids(prompt, tokenizer)
        last = prompt[:-1] if int(prompt[-1]) in (tokenizer.eoi, tokenizer.eos) else prompt
        if not len(last) or int(last[-1]) != tokenizer.boi:
            yield f"the prompt ends with id {int(prompt[-1])}, not with begin_of_image ({tokenizer.boi})"
    if not len(prompt):
        yield "the prompt is empty"
    if len(vq_ids) != rules.manifest.image_ids:
        yield f"VQ ids: {len(vq_ids)}, an image has {rules.manifest.image_ids}"
    if rules.codes is not None and len(vq_ids) and int(vq_ids.max()) >= rules.codes:
        yield f"VQ id {int(vq_ids.max())}, the VQ tokenizer has {rules.codes} codes"


def _check_known(ids: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    outside = ids[ids >= tokenizer.size]
    if len(outside):
        yield f"token ids beyond the vocabulary of {tokenizer.size:,}: {len(outside)}, the first is {int(outside[0])}"


def _check_ids(ids: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    yield from _check_known(ids, tokenizer)
    if len(ids) and int(ids[0]) != tokenizer.bos:
        yield f"begins with id {int(ids[0])}, not with begin-of-sentence ({tokenizer.bos})"


def _check_image(number: int, encoded: bytes, side: int) -> Iterator[str]:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.size != (side, side):
                yield f"image {number} has {image.width}x{image.height} pixels, the model takes {side}x{side}"
                return
            image.load()
    except Exception as error:  # Pillow raises a dozen kinds on damaged files, none of them documented
        yield f"image {number} does not decode: {type(error).__name__}: {error}"
