"""Lint: a sound shard set has no fault, and each thing that can be wrong is named with its shard, key and way out."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from janus_dist.data.chat import text_ids
from janus_dist.data.manifest import Manifest, ShardSet, ShardTable
from janus_dist.data.sample import GenerationSample, TextSample, UnderstandingSample
from janus_dist.inspection.inspect import column
from janus_dist.inspection.lint import Scope, lint
from janus_dist.inspection.lint_sample import AGAIN, WRITTEN_SO
from tests import shard_sets
from tests.images import png
from tests.shard_sets import all_records

DEEP = Scope(deep=True)
STREAMS = ("understanding", "text", "generation")


@pytest.fixture
def words(tmp_path):
    return shard_sets.write_root(tmp_path)


def faults(folder, words, scope=DEEP, codes=16):
    return lint(str(folder), Manifest.load(folder), words, codes, scope).faults


def only(folder, words, scope=DEEP):
    found = faults(folder, words, scope)
    assert len(found) == 1, found
    return found[0]


def mended_manifest(folder, change):
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("scope", [DEEP, Scope(samples=3)], ids=["deep", "drawn"])
def test_a_sound_set_has_no_fault(words, tmp_path, stream, scope):
    folder = tmp_path / "data" / stream
    found = lint(str(folder), Manifest.load(folder), words, 16, scope)
    assert found.faults == []
    assert found.samples_read == (found.samples if scope.deep else 3)
    assert found.bytes_read > 0 and bool(found.not_checked) != scope.deep


def test_what_was_not_checked_is_said(words, tmp_path):
    folder = tmp_path / "data/generation"
    assert lint(str(folder), Manifest.load(folder), None, None, Scope(samples=3)).not_checked == [
        "2 samples, digests and keys of shards (--deep reads all)",
        f"token ids (give --tokenizer, with sha256 {words.sha256[:12]})",
        "range of VQ ids (give --vq-weights, with sha256 000000000000)",
    ]


def test_drawn_samples_find_what_they_meet(words, tmp_path):
    folder = tmp_path / "data/text"
    record = all_records(ShardSet.open(folder))[1]
    shard_sets.flip(folder / "shard-00000.tar", int(record["offset"]))
    assert only(folder, words, Scope(samples=4)).key == "text-00001"
    assert faults(folder, words, Scope(samples=0)) == []


@pytest.mark.parametrize("stream", STREAMS)
def test_a_flipped_byte(words, tmp_path, stream):
    folder = tmp_path / "data" / stream
    record = all_records(ShardSet.open(folder))[1]
    shard_sets.flip(folder / "shard-00000.tar", int(record["offset"]) + (512 if stream == "understanding" else 0))
    digest, sample = faults(folder, words)
    assert (digest.shard, digest.sample, digest.what) == (
        "shard-00000", None, "the tar has another sha256 than the manifest says"
    )  # fmt: skip
    assert (sample.shard, sample.sample, sample.key, sample.do) == ("shard-00000", 1, f"{stream}-00001", AGAIN)
    assert sample.what.startswith("damaged: its checksum is ")


def test_a_flipped_byte_between_samples_is_in_the_digest(words, tmp_path):
    folder = tmp_path / "data/text"
    shard_sets.flip(folder / "shard-00000.tar", 200)  # in a tar header
    assert any("another sha256" in fault.what for fault in faults(folder, words))


def test_a_truncated_tar(words, tmp_path):
    path = tmp_path / "data/understanding/shard-00001.tar"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    fault = only(path.parent, words)
    assert (fault.shard, fault.what) == (
        "shard-00001", f"the tar has {size // 2:,} bytes, the manifest says {size:,}"
    )  # fmt: skip
    found = lint(str(path.parent), Manifest.load(path.parent), words, None, DEEP)
    assert (found.samples_read, found.not_checked) == (4, ["3 samples of shards that cannot be read"])


@pytest.mark.parametrize(
    ("name", "what"), [("shard-00001.tar", "the tar is missing"), ("shard-00001.index.npy", "the index is missing")]
)
def test_a_missing_file(words, tmp_path, name, what):
    (tmp_path / "data/generation" / name).unlink()
    fault = only(tmp_path / "data/generation", words)
    assert (fault.shard, fault.what, fault.do) == ("shard-00001", what, AGAIN)


def test_an_index_that_does_not_agree(words, tmp_path):
    folder = tmp_path / "data/understanding"
    path = folder / "shard-00000.index.npy"
    index = np.load(path)
    index["tokens"][2] += 1
    np.save(path, index)
    assert [(fault.sample, fault.key) for fault in faults(folder, words)] == [
        (None, None), (None, None), (2, "understanding-00002")
    ]  # fmt: skip
    whats = [fault.what for fault in faults(folder, words)]
    assert whats[0].startswith("the index counts ") and "another sha256 than the manifest" in whats[1]
    assert whats[2].startswith("tokens: ") and ", the index says " in whats[2]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda index: index[:-1], "the index has 3 samples, the manifest says 4"),
        (lambda index: index["offset"], "the index cannot be read"),
    ],
)
def test_an_index_of_another_shape(words, tmp_path, change, what):
    path = tmp_path / "data/text/shard-00000.index.npy"
    np.save(path, change(np.load(path)))
    assert only(path.parent, words).what.startswith(what)


def test_an_index_that_points_elsewhere(words, tmp_path):
    path = tmp_path / "data/text/shard-00000.index.npy"
    index = np.load(path)
    index["offset"][3] = 1 << 40
    np.save(path, index)
    assert "samples that the index places outside the tar: 1" in [fault.what for fault in faults(path.parent, words)]
    index["offset"][3] = index["offset"][2]
    np.save(path, index)
    assert "the index places samples over one another" in [fault.what for fault in faults(path.parent, words)]


def test_duplicate_keys_are_found_across_shards(tmp_path):
    words = shard_sets.tokenizer(tmp_path)
    first, second = shard_sets.several("text", words, 3), shard_sets.several("text", words, 3, first=2)
    shard_sets.write_set(tmp_path / "text", "text", words, first, [*second, second[1]])
    found = faults(tmp_path / "text", words)
    assert [(fault.shard, fault.sample, fault.key, fault.what) for fault in found] == [
        ("shard-00001", 3, "text-00002", "its key was used before, in shard-00000"),
        ("shard-00001", 6, "text-00003", "its key was used before, in shard-00001"),
    ]


def test_the_manifest_and_its_folder(words, tmp_path):
    folder = tmp_path / "data/text"
    (folder / "shard-00007.tar").write_bytes(b"")
    mended_manifest(folder, lambda values: values.update(samples=5, tokens=1))
    whats = [(fault.shard, fault.what) for fault in faults(folder, words)]
    assert whats[0] == (None, "the manifest says 5 samples, its shards add up to 4")
    assert whats[1][1].startswith("the manifest says 1 tokens, its shards add up to ")
    assert whats[2] == ("shard-00007", "the manifest does not list it")


def test_a_shard_listed_twice(words, tmp_path):
    folder = tmp_path / "data/text"

    manifest = Manifest.load(folder)
    twice = ShardTable.of([*manifest.shards, *manifest.shards])
    dataclasses.replace(manifest, shards=twice, samples=2 * manifest.samples, tokens=2 * manifest.tokens).save(folder)
    whats = [fault.what for fault in faults(folder, words)]
    assert whats[0] == "the manifest lists it more than once" and len(whats) == 1 + 4


def test_the_quarantine_table(words, tmp_path):
    folder = tmp_path / "data/generation"
    shard_sets.write_quarantine(folder, ("a.png", "a", "empty: no words", b""))
    assert only(folder, words).what == "the manifest says 3 quarantined, the quarantine table has 1"
    (folder / "quarantine.parquet").write_bytes(b"nothing")
    assert "is not a quarantine table" in only(folder, words).what


def ids(*values):
    return np.array(values, dtype=np.uint32)


def small_image(side=8):
    return png(np.zeros((side, side, 3), np.uint8))


def broken_png():
    return shard_sets.IMAGE[:60] + b"\0" * (len(shard_sets.IMAGE) - 60)


def bad_text(words):
    yield TextSample(ids(words.bos)), "ids: 1; nothing in it is learned"
    yield (
        TextSample(ids(words.bos, 300, 301, words.eos)),
        (f"token ids beyond the vocabulary of {words.size}: 2, the first is 300"),
    )
    yield TextSample(ids(20, words.bos, words.eos)), f"begin-of-sentence ({words.bos}) stands within it"
    yield TextSample(ids(words.bos, words.eos, 20)), f"end-of-sentence ({words.eos}) stands within it"
    yield TextSample(ids(words.bos, words.image, words.eos)), "image placeholders in a text: 1"


def bad_understanding(words):
    good = shard_sets.understanding(words)
    spans, image = good.answers, good.images[0]
    last = len(good.ids)
    yield UnderstandingSample(good.ids, spans, [image, image]), "image placeholders: 1, images: 2"
    yield UnderstandingSample(good.ids, spans, []), "image placeholders: 1, images: 0"
    yield UnderstandingSample(good.ids, spans, [small_image()]), "image 0 has 8x8 pixels, the model takes 16x16"
    yield UnderstandingSample(good.ids, spans, [b"no image"]), "image 0 does not decode: UnidentifiedImageError"
    yield UnderstandingSample(good.ids, spans, [broken_png()]), "image 0 does not decode: "
    outside = np.array([[last - 1, last + 1]])
    yield (
        UnderstandingSample(good.ids, outside, [image]),
        (f"the answer at ids {last - 1} to {last + 1} is not inside the document of {last} or not in order"),
    )
    yield UnderstandingSample(good.ids, np.empty((0, 2), np.int64), [image]), "it has no answer"
    swapped = good.ids.copy()
    swapped[good.ids == words.boi] = 20
    yield UnderstandingSample(swapped, spans, [image]), "does not stand between begin_of_image and end_of_image"


def bad_generation(words):
    good = shard_sets.generation(words)
    yield GenerationSample(good.prompt_ids, good.vq_ids[:-1]), "VQ ids: 15, an image has 16"
    yield GenerationSample(good.prompt_ids, good.vq_ids + np.uint16(1)), "VQ id 16, the VQ tokenizer has 16 codes"
    yield GenerationSample(good.prompt_ids[:-1], good.vq_ids), f"not with begin_of_image ({words.boi})"
    yield GenerationSample(good.prompt_ids[:0], good.vq_ids), "the prompt is empty"


@pytest.mark.parametrize(
    ("stream", "make"),
    [("text", bad_text), ("understanding", bad_understanding), ("generation", bad_generation)],
)
def test_samples_that_were_written_wrong(tmp_path, stream, make):
    words = shard_sets.tokenizer(tmp_path)
    good = shard_sets.several(stream, words, 2)
    for number, (sample, what) in enumerate(make(words)):
        folder = tmp_path / str(number)
        shard_sets.write_set(folder, stream, words, [*good, ("bad", sample)])
        found = [fault for fault in faults(folder, words) if fault.do == WRITTEN_SO]
        assert any(what in fault.what for fault in found), (what, found)
        assert {(fault.shard, fault.sample, fault.key) for fault in found} == {("shard-00000", 2, "bad")}


def test_pieces_of_a_long_text_are_no_fault(tmp_path):
    words = shard_sets.tokenizer(tmp_path)
    pieces = text_ids(words, "one two three four five", 8)
    assert len(pieces) > 2
    samples = [(f"a-{number:03d}", TextSample(piece)) for number, piece in enumerate(pieces)]
    shard_sets.write_set(tmp_path / "a", "text", words, samples)
    assert faults(tmp_path / "a", words) == []


def test_an_image_in_another_mode_is_no_fault(tmp_path):
    words, buffer = shard_sets.tokenizer(tmp_path), io.BytesIO()
    Image.new("L", (16, 16)).save(buffer, "PNG")
    sample = shard_sets.understanding(words, image=buffer.getvalue())
    shard_sets.write_set(tmp_path / "a", "understanding", words, [("a", sample)])
    assert faults(tmp_path / "a", words) == []


def test_without_a_tokenizer_ids_are_not_checked(tmp_path):
    words = shard_sets.tokenizer(tmp_path)
    shard_sets.write_set(tmp_path / "a", "text", words, [("a", TextSample(ids(900, 901)))])
    assert faults(tmp_path / "a", None) == []
    assert column(ShardSet.open(tmp_path / "a"), "tokens").tolist() == [2]
