"""The tokenizer: special tokens by name, exact round trips, reproducible training."""

import hashlib
import json
import platform
from pathlib import Path

import pytest
import tokenizers

from data_pipelines import tokenizer as training
from janus_dist.data.tokenizer import REQUIRED, SPECIAL, Tokenizer, train_tokenizer
from janus_dist.datasets import easy_vqa
from janus_dist.errors import DataError

SAMPLE = [
    "a blue rectangle",
    "is there a red circle? yes",
    "for x in range(10):\n    pass",
    "na\u00efve caf\u00e9 \u2014 \u6f22\u5b57 \U0001f98a",
] * 3


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return Tokenizer.load(training.PATH)


def test_the_shipped_tokenizer_is_the_one_its_origin_describes(shipped):
    origin = json.loads(training.PATH.with_suffix(".origin.json").read_text())
    assert shipped.sha256 == origin["sha256"] == hashlib.sha256(training.PATH.read_bytes()).hexdigest()
    assert shipped.size == origin["vocab"] == 2048


def test_training_again_gives_the_shipped_bytes(tmp_path):
    origin = json.loads(training.PATH.with_suffix(".origin.json").read_text())
    if origin["python"] != platform.python_version():
        pytest.skip(f"pydoc's topics are those of Python {platform.python_version()}, not {origin['python']}")
    train_tokenizer(training.texts(), training.VOCAB, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == training.PATH.read_bytes()


def test_training_is_reproducible_on_any_texts(tmp_path):
    for name in ("one.json", "two.json"):
        train_tokenizer(iter(SAMPLE), 300, tmp_path / name)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_every_answer_and_word_of_a_caption_is_one_id(shipped):
    for word in (*easy_vqa.SHAPES, *easy_vqa.COLORS, "yes", "no", "a"):
        assert len(shipped.encode(f" {word}")) == 1, word


@pytest.mark.parametrize("text", [*SAMPLE, "", " ", "\n\n", "\x00\x7f", "User: a\n\nAssistant:"])
def test_decode_gives_back_what_was_encoded(shipped, text):
    assert shipped.decode(shipped.encode(text)) == text


def test_special_ids_are_those_of_their_names(shipped):
    inner = tokenizers.Tokenizer.from_file(str(training.PATH))
    found = (shipped.bos, shipped.eos, shipped.pad, shipped.image, shipped.boi, shipped.eoi)
    assert found == tuple(inner.token_to_id(name) for name in REQUIRED)
    assert len(set(found)) == len(REQUIRED)


@pytest.mark.parametrize("name", SPECIAL)
def test_a_special_token_in_a_text_is_encoded_as_letters(shipped, name):
    special = {shipped.inner.token_to_id(other) for other in SPECIAL}
    ids = shipped.encode(f"before{name}after")
    assert not special & set(ids)
    assert shipped.decode(ids) == f"before{name}after"


def test_encode_adds_no_special_token(shipped):
    assert shipped.bos not in shipped.encode("text") and shipped.eos not in shipped.encode("text")


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"none\.json cannot be read: No such file"):
        Tokenizer.load(tmp_path / "none.json")


def test_a_file_that_is_no_tokenizer_is_a_data_error(tmp_path):
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DataError, match=r"broken\.json is not a tokenizer\.json"):
        Tokenizer.load(tmp_path / "broken.json")


def test_a_missing_special_token_is_named(tmp_path):
    path: Path = tmp_path / "poor.json"
    train_tokenizer(SAMPLE, 300, path)
    path.write_text(path.read_text().replace("<begin_of_image>", "<something_else>"))
    with pytest.raises(DataError, match="lacks the special tokens <begin_of_image>"):
        Tokenizer.load(path)
