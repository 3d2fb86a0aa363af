"""Samples to bytes and back; damaged bytes."""

import gc
import io
import warnings

import numpy as np
import pytest
from PIL import Image
from webdataset.compat import WebDataset

from data_pipelines.inputs.keys import safe_key
from janus_dist.data.sample import (
    GenerationSample,
    TextSample,
    UnderstandingSample,
    decode,
    encode,
    members,
)
from janus_dist.errors import DataError
from tests import tiny
from tests.images import noise
from tests.inputs import tar


def encoded(form, seed):
    buffer = io.BytesIO()
    Image.fromarray(noise(8, 8, seed)).save(buffer, form)
    return buffer.getvalue()


BIG = 102_399  # the largest id of Janus's vocabulary does not fit into 16 bits


def test_text_comes_back():
    sample = TextSample(np.array([1, BIG, 2], dtype=np.uint32))
    payload = encode(sample)
    assert payload == (1).to_bytes(4, "little") + BIG.to_bytes(4, "little") + (2).to_bytes(4, "little")
    found = decode("text", payload)
    assert isinstance(found, TextSample) and found.ids.tolist() == [1, BIG, 2] and found.ids.dtype == np.uint32


def test_generation_comes_back():
    sample = GenerationSample(np.array([1, BIG], dtype=np.uint32), np.array([0, 65_535, 7], dtype=np.uint16))
    payload = encode(sample)
    assert len(payload) == 4 + 2 * 4 + 3 * 2
    found = decode("generation", payload)
    assert isinstance(found, GenerationSample)
    assert found.prompt_ids.tolist() == [1, BIG] and found.vq_ids.tolist() == [0, 65_535, 7]


def test_understanding_comes_back():
    sample = tiny.understanding_sample(np.random.default_rng(0))
    found = decode("understanding", tar(members("key", sample)))
    assert isinstance(found, UnderstandingSample)
    assert found.ids.tolist() == sample.ids.tolist()
    assert found.answers.tolist() == sample.answers.tolist() and found.answers.shape == (1, 2)
    assert found.images == sample.images


@pytest.mark.parametrize("formats", [("PNG",), ("JPEG",), ("JPEG", "PNG", "JPEG"), ()])
def test_images_have_the_ending_of_their_format(formats):
    images = [encoded(form, seed) for seed, form in enumerate(formats)]
    sample = UnderstandingSample(np.array([1], np.uint32), np.array([[0, 1]]), images)
    contents = members("key", sample)
    endings = {"PNG": "png", "JPEG": "jpg"}
    names = [f"key{f'.{number}' if number else ''}.{endings[form]}" for number, form in enumerate(formats)]
    assert [name for name, _ in contents] == ["key.tokens", "key.answers", *names]
    found = decode("understanding", tar(contents))
    assert isinstance(found, UnderstandingSample) and found.images == images


def test_plain_webdataset_finds_the_images_of_a_sample(tmp_path):
    images = [encoded("JPEG", 0), encoded("PNG", 1)]
    sample = UnderstandingSample(np.array([1], np.uint32), np.array([[0, 1]]), images)
    keys = [safe_key(key) for key in ("photo.v2", "photo.v3", "folder/a")]
    (tmp_path / "a.tar").write_bytes(tar([one for key in keys for one in members(key, sample)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its file to the garbage collector
        found = list(WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
        gc.collect()
    assert [one["__key__"] for one in found] == keys
    assert all([one["jpg"], one["1.png"]] == images for one in found)


def test_a_long_key_fits_into_a_header():
    images = [encoded("JPEG", 0)] * 12
    sample = UnderstandingSample(np.array([1], np.uint32), np.array([[0, 1]]), images)
    contents = members(safe_key("\u6f22" * 500), sample)
    assert max(len(name.encode()) for name, _ in contents) <= 100
    found = decode("understanding", tar(contents))
    assert isinstance(found, UnderstandingSample) and found.images == images


@pytest.mark.parametrize(
    ("stream", "payload"),
    [
        ("text", b"\x00\x00\x00"),
        ("text", b""),
        ("generation", b""),
        ("generation", (9).to_bytes(4, "little") + b"\x00" * 8),
        ("generation", (1).to_bytes(4, "little") + b"\x00" * 5),
        ("understanding", b""),
        ("understanding", b"\xff" * 512),
        ("understanding", tar([("key.tokens", b"\x00" * 8)])),
        ("understanding", tar([("key.tokens", b"\x00" * 8), ("key.answers", b"\x00" * 4), ("key.png", b"")])),
        ("understanding", tar([("key.tokens", b"\x00" * 7), ("key.answers", b""), ("key.png", b"")])),
        ("understanding", tar([("key.tokens", b"\x00" * 5000), ("key.answers", b"")])[:1024]),
    ],
)
def test_damaged_bytes_are_a_data_error(stream, payload):
    with pytest.raises(DataError, match=f"a sample of the {stream} stream does not decode"):
        decode(stream, payload)
