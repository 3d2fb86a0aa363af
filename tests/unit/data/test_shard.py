"""Shards: round trips through the index, plain webdataset, the same bytes for the same samples."""

import gc
import io
import json
import re
import tarfile
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from webdataset.compat import WebDataset

from janus_dist.data.loader import read_payloads
from janus_dist.data.manifest import VERSION, Manifest, ShardSet, ShardTable
from janus_dist.data.sample import Sample, TextSample, decode, encode, members
from janus_dist.data.shard import BLOCK_SAMPLES, counts, read_index, write_shard
from janus_dist.errors import DataError
from janus_dist.storage import fs
from tests import tiny
from tests.shard_sets import all_records

SPECIAL = (tiny.BOI, tiny.IMAGE, tiny.EOI)
MAKERS = {
    "understanding": tiny.understanding_sample,
    "text": tiny.text_sample,
    "generation": tiny.generation_sample,
}


def make(stream, number, seed=0):
    rng = np.random.default_rng(seed)
    return [(f"key-{row:04d}", MAKERS[stream](rng, 3 + row % 5)) for row in range(number)]


def open_set(folder, stream, *shards):
    entries = tuple(write_shard(folder, f"shard-{n:05d}", s, tiny.MODEL, SPECIAL) for n, s in enumerate(shards))
    totals = sum(entry.samples for entry in entries), sum(entry.tokens for entry in entries)
    Manifest(VERSION, stream, *totals, 0, 16, 4, 16, "tokenizer", None, {"a": 1}, ShardTable.of(entries)).save(folder)
    return ShardSet.open(folder)


def as_stored(sample):
    return encode(sample) if not hasattr(sample, "images") else members("key", sample)


@pytest.mark.parametrize("stream", list(MAKERS))
def test_every_sample_is_found_by_the_index(tmp_path, stream):
    shards = [make(stream, 5, seed=1), make(stream, BLOCK_SAMPLES + 3 if stream != "understanding" else 7, seed=2)]
    found = open_set(tmp_path, stream, *shards)
    expected = [sample for shard in shards for _, sample in shard]
    order = np.random.default_rng(3).permutation(len(expected))
    payloads = read_payloads(found, order, all_records(found)[order])
    for place, payload in zip(order.tolist(), payloads, strict=True):
        assert as_stored(decode(stream, payload)) == as_stored(expected[place])
        assert found.shard_of(np.array([place])) == (0 if place < 5 else 1)


@pytest.mark.parametrize("stream", list(MAKERS))
def test_the_index_counts_what_collating_will_make(tmp_path, stream):
    samples = make(stream, 6)
    index = all_records(open_set(tmp_path, stream, samples))
    for record, (_, sample) in zip(index, samples, strict=True):
        for answers_only, column in ((False, "text_labels"), (True, "answer_labels")):
            batch = tiny.batch_of([sample], tiny.document_format(answers_only))
            assert record["tokens"] == len(batch.input_ids)
            assert record[column] == (batch.text_labels >= 0).sum()
        assert record["image_ids"] == (batch.image_labels >= 0).sum()
        assert record["images"] == len(getattr(sample, "images", []))


def test_counts_of_known_documents():
    rng = np.random.default_rng(0)
    # bos boi image eoi, 5 words asked, 4 words and eos answered: 16/8 squared = 4 tokens of image
    assert counts(tiny.understanding_sample(rng, 5, 4), tiny.MODEL, SPECIAL) == (3 + 4 + 10, 10, 5, 1, 0)
    assert counts(tiny.text_sample(rng, 9), tiny.MODEL, SPECIAL) == (11, 10, 10, 0, 0)
    assert counts(tiny.generation_sample(rng, 4), tiny.MODEL, SPECIAL) == (6 + 16, 0, 0, 0, 16)


@pytest.mark.parametrize("stream", list(MAKERS))
def test_the_same_samples_give_the_same_bytes(tmp_path, stream):
    one, two = (
        write_shard(tmp_path / folder, "shard-00000", make(stream, 9), tiny.MODEL, SPECIAL) for folder in ("a", "b")
    )
    assert one == two
    for file in ("shard-00000.tar", "shard-00000.index.npy"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    other = write_shard(tmp_path / "c", "shard-00000", make(stream, 9, seed=1), tiny.MODEL, SPECIAL)
    assert other.sha256 != one.sha256


def test_headers_carry_no_time_and_no_user(tmp_path):
    write_shard(tmp_path, "shard-00000", make("understanding", 2), tiny.MODEL, SPECIAL)
    with tarfile.open(tmp_path / "shard-00000.tar") as tar:
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}


def read_by_webdataset(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its file to the garbage collector
        found = list(WebDataset(str(path), shardshuffle=False))
        gc.collect()
    return found


def test_plain_webdataset_reads_conversations(tmp_path):
    samples = make("understanding", 4)
    write_shard(tmp_path, "shard-00000", samples, tiny.MODEL, SPECIAL)
    found = read_by_webdataset(tmp_path / "shard-00000.tar")
    assert [row["__key__"] for row in found] == [key for key, _ in samples]
    for row, (_, sample) in zip(found, samples, strict=True):
        assert np.frombuffer(row["tokens"], "<u4").tolist() == sample.ids.tolist()
        assert np.frombuffer(row["answers"], "<u4").reshape(-1, 2).tolist() == sample.answers.tolist()
        assert Image.open(io.BytesIO(row["png"])).size == (16, 16)


def test_plain_webdataset_reads_blocks(tmp_path):
    samples = make("generation", BLOCK_SAMPLES + 2)
    write_shard(tmp_path, "shard-00000", samples, tiny.MODEL, SPECIAL)
    found = read_by_webdataset(tmp_path / "shard-00000.tar")
    assert [row["__key__"] for row in found] == ["block-000000", "block-000001"]
    keys, payloads = [], []
    for row in found:
        names = json.loads(row["json"])
        keys += names["keys"]
        ends = np.cumsum(names["bytes"]).tolist()
        payloads += [row["ids"][end - size : end] for end, size in zip(ends, names["bytes"], strict=True)]
    assert keys == [key for key, _ in samples]
    assert payloads == [encode(sample) for _, sample in samples]


def test_a_slice_of_a_conversation_is_a_tar_of_its_own(tmp_path):
    found = open_set(tmp_path, "understanding", make("understanding", 3))
    content = (tmp_path / "shard-00000.tar").read_bytes()
    for number, record in enumerate(all_records(found)):
        start = int(record["offset"])
        slice_ = content[start : start + int(record["bytes"])]
        assert zlib.crc32(slice_) == record["crc32"]
        with tarfile.open(fileobj=io.BytesIO(slice_)) as tar:
            assert tar.getnames() == [f"key-{number:04d}.{end}" for end in ("tokens", "answers", "png")]


def test_a_flipped_bit_is_a_data_error(tmp_path):
    found = open_set(tmp_path, "text", make("text", 4))
    records = all_records(found)
    path = tmp_path / "shard-00000.tar"
    content = bytearray(path.read_bytes())
    content[int(records[2]["offset"]) + 4] ^= 1
    path.write_bytes(bytes(content))
    good, bad = read_payloads(found, np.array([0, 2]), records[[0, 2]])
    assert isinstance(good, bytes) and isinstance(bad, DataError)
    start = int(records[2]["offset"])
    assert re.match(rf"{path} from byte {start} has checksum [0-9a-f]{{8}}, the index says [0-9a-f]{{8}}$", bad.message)


def test_an_empty_shard_has_an_empty_index(tmp_path):
    entry = write_shard(tmp_path, "shard-00000", [], tiny.MODEL, SPECIAL)
    assert (entry.samples, entry.tokens) == (0, 0)
    assert len(read_index((tmp_path / "shard-00000.index.npy").read_bytes())) == 0


@pytest.mark.parametrize(("tokens", "most"), [(32, 1.6), (64, 1.3), (512, 1.05)])
def test_texts_cost_little_more_on_disk_than_their_ids(tmp_path, tokens, most):
    """Index, tar headers and names of a shard of 1,000 documents, as docs/data-format.md says."""
    rng = np.random.default_rng(0)
    texts: list[tuple[str, Sample]] = [
        (f"documents-{row * 1_000}", TextSample(rng.integers(0, 9, tokens).astype(np.uint32))) for row in range(1_000)
    ]
    write_shard(tmp_path, "shard-00000", texts, tiny.MODEL, SPECIAL)
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert on_disk <= most * sum(4 * tokens for _ in texts)


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    fs.write_whole(tmp_path / "file", b"old")

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(fs.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        fs.write_whole(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert fs.read(tmp_path / "file") == b"old"
