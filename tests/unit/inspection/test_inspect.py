"""Shard sets for people: what is in one, where a sample is, documents as text, differences, tokenizers by digest."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.gather import QUARANTINE_SCHEMA
from janus_dist.data.manifest import Manifest, ShardSet
from janus_dist.data.sample import TextSample, learned
from janus_dist.data.shard import BLOCK_SAMPLES
from janus_dist.errors import DataError, RecordError
from janus_dist.inspection import inspect
from janus_dist.inspection.compare import difference
from janus_dist.inspection.makers import find_codes, find_tokenizer, need_tokenizer
from janus_dist.inspection.render import head, marked, pieces, visible
from tests import shard_sets, tiny
from tests.shard_sets import all_records
from tests.unit.data.test_shard import MAKERS, SPECIAL, as_stored


@pytest.fixture
def words(tmp_path):
    return shard_sets.write_root(tmp_path)


def opened(tmp_path, stream):
    return ShardSet.open(f"{tmp_path}/data/{stream}")


@pytest.mark.parametrize("stream", list(MAKERS))
@pytest.mark.parametrize("answers_only", [False, True])
def test_what_is_learned_is_what_collating_labels(stream, answers_only):
    rng = np.random.default_rng(0)
    for _ in range(5):
        sample = MAKERS[stream](rng, 4)
        batch = tiny.batch_of([sample], tiny.document_format(answers_only))
        ids = sample.prompt_ids if stream == "generation" else sample.ids
        labels = batch.text_labels[batch.text_labels >= 0].tolist()
        assert ids[learned(sample, SPECIAL, answers_only)].tolist() == labels


def test_the_first_id_is_never_learned():
    assert learned(TextSample(np.array([1], dtype=np.uint32)), SPECIAL, False).tolist() == [False]
    assert learned(TextSample(np.array([], dtype=np.uint32)), SPECIAL, False).tolist() == []


def test_folders_of_a_root_and_of_one_set(words, tmp_path):
    root = f"{tmp_path}/data"
    expected = [f"{root}/{name}" for name in ("understanding", "text", "generation")]
    assert inspect.shard_set_folders(root) == inspect.shard_set_folders(root + "/") == expected
    assert inspect.shard_set_folders(f"{root}/text/") == [f"{root}/text"]
    with pytest.raises(DataError, match="no shard set in"):
        inspect.shard_set_folders(str(tmp_path / "nowhere"))


def test_samples_are_found_by_number_and_key(words, tmp_path):
    for name, total in (("understanding", 7), ("text", 4), ("generation", 5)):
        shards = opened(tmp_path, name)
        found = list(inspect.read_samples(shards, [total - 1, 0, 2]))
        assert [one.number for one in found] == [0, 2, total - 1]
        assert [one.key for one in found] == [f"{name}-{number:05d}" for number in (0, 2, total - 1)]
        assert found[-1].shard == ("shard-00000" if name == "text" else "shard-00001")
        for one in found:
            assert inspect.number_of_key(shards, one.key) == one.number
        assert inspect.number_of_key(shards, "nothing") is None
        with pytest.raises(DataError, match=f"there is no sample {total}: the {name} shard set holds {total}"):
            list(inspect.read_samples(shards, [total]))


def test_index_records_and_columns(words, tmp_path):
    shards = opened(tmp_path, "understanding")
    assert [len(inspect.index_records(shards, shard)) for shard in (0, 1)] == [4, 3]
    assert int(inspect.column(shards, "tokens").sum()) == shards.manifest.tokens
    assert inspect.column(shards, "images").tolist() == [1] * 7


def test_a_damaged_sample_is_named(words, tmp_path):
    shards = opened(tmp_path, "text")
    shard_sets.flip(tmp_path / "data/text/shard-00000.tar", int(all_records(shards)[2]["offset"]))
    assert len(list(inspect.read_samples(shards, [1, 3]))) == 2
    with pytest.raises(DataError, match=r"shard-00000\.tar cannot be read: sample 2 is damaged"):
        list(inspect.read_samples(shards, [2]))


def test_the_summary(words, tmp_path):
    values = inspect.summary(opened(tmp_path, "generation"))
    assert values["quarantined"] == {"count": 3, "reasons": {"too small": 2, "empty": 1}}
    assert (values["samples"], values["shards"], values["vq_ids"], values["images"]) == (5, 2, 5 * 16, 0)
    tokens = inspect.column(opened(tmp_path, "generation"), "tokens")
    assert values["token_quantiles"] == {
        "0": tokens.min(), "0.1": np.sort(tokens)[0], "0.5": np.sort(tokens)[2], "0.9": tokens.max(),
        "0.99": tokens.max(), "1": tokens.max(),
    }  # fmt: skip
    assert inspect.stats(f"{tmp_path}/data/generation") == {"records": 8, "dropped": {}, "histograms": {}}
    assert inspect.stats(f"{tmp_path}/data/text") is None and inspect.examples(f"{tmp_path}/data/text") == []
    assert list(inspect.quarantine(f"{tmp_path}/data/text")) == []


def test_an_empty_shard_set(tmp_path):
    shard_sets.write_set(tmp_path / "text", "text", shard_sets.tokenizer(tmp_path))
    shards = ShardSet.open(tmp_path / "text")
    assert inspect.summary(shards)["token_quantiles"] == {}
    with pytest.raises(DataError, match="there is no sample 0"):
        inspect.locate(shards.manifest, 0)


def test_drawn_samples_depend_on_the_seed_alone():
    assert inspect.chosen(100, 5, 1) == inspect.chosen(100, 5, 1) != inspect.chosen(100, 5, 2)
    assert inspect.chosen(3, 5, 0) == [0, 1, 2] and inspect.chosen(0, 5, 0) == []
    assert len(set(inspect.chosen(10**12, 5, 0))) == 5, "no list of all samples is made"


def test_each_index_is_read_once_for_all_columns(words, tmp_path, monkeypatch):
    monkeypatch.setattr(inspect, "BLOCKS_AT_ONCE", 3)
    shards = [shard_sets.several("text", words, 2 + number, 10 * number) for number in range(5)]
    shard_sets.write_set(tmp_path / "text", "text", words, *shards)
    found = ShardSet.open(tmp_path / "text")
    values = inspect.columns(found, "tokens", "crc32")
    assert found.reader.counters().requests == 5
    records = all_records(found)
    assert all(np.array_equal(values[name], records[name]) for name in ("tokens", "crc32")) and len(records) == 20


@pytest.mark.parametrize("stream", list(MAKERS))
def test_samples_without_keys_are_read_beside_each_other(words, tmp_path, stream):
    first = {"text": 30, "generation": BLOCK_SAMPLES + 5, "understanding": 5}[stream]  # one has two blocks
    shards = [shard_sets.several(stream, words, first), shard_sets.several(stream, words, 3, first)]
    shard_sets.write_set(tmp_path / "set", stream, words, *shards)
    found, numbers = ShardSet.open(tmp_path / "set"), [0, 3, first - 1, first, first + 2]
    expected = [one.sample for one in inspect.read_samples(found, numbers)]
    asked = found.reader.counters().requests
    samples = inspect.decoded(found, numbers)
    assert list(map(as_stored, samples)) == list(map(as_stored, expected))
    assert found.reader.counters().requests - asked == 4, "each index and each tar once"
    shard_sets.flip(tmp_path / "set/shard-00000.tar", int(all_records(found)[3]["offset"]))
    with pytest.raises(DataError, match="sample 3 is damaged"):
        inspect.decoded(found, numbers)


def test_refused_records_are_those_of_the_statistics(tmp_path):
    rejects = [("there", f"k{number}", f"{kind}: {number}", b"") for number in range(9) for kind in ("a", "b")]
    shard_sets.write_quarantine(tmp_path, *rejects)
    counts, first = inspect.refused(str(tmp_path), 2)
    assert counts == {"a": 9, "b": 9} and [reject.key for reject in first] == ["k0", "k0", "k1", "k1"]
    shard_sets.write_stats(tmp_path, 1_000, bad={"a": 4, "b": 500})
    counts, again = inspect.refused(str(tmp_path), 2)
    assert list(counts.items()) == [("b", 500), ("a", 4)] and again == first
    (tmp_path / "quarantine.parquet").write_bytes(b"no table")
    assert inspect.refused(str(tmp_path), 0) == (counts, []), "numbers alone need no table"


def test_a_table_says_the_kind_itself_and_one_of_an_older_program_in_its_reason(tmp_path):
    old = ("there", "k", "too small: 5x5 pixels", b"head")
    shard_sets.write_quarantine(tmp_path, old)
    assert list(inspect.quarantine(str(tmp_path))) == [inspect.Reject(*old[:2], "too small", *old[2:])]
    reject = inspect.Reject("there", "k", "too small", "5x5 pixels: the short side must have 20", b"head", records=3)
    table = pa.Table.from_pylist([dataclasses.asdict(reject)], schema=QUARANTINE_SCHEMA)
    pq.write_table(table, tmp_path / "quarantine.parquet")
    assert list(inspect.quarantine(str(tmp_path))) == [reject], "the text is never parsed"


def test_a_fault_of_a_record_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(RecordError("too small", "5x5 pixels")))
    assert (error.kind, error.message, error.hint) == ("too small", "too small: 5x5 pixels", None)


def test_a_conversation_as_text(tmp_path):
    words = shard_sets.tokenizer(tmp_path)
    found = pieces(shard_sets.understanding(words), words, 4)
    end = "<\uff5cend\u2581of\u2581sentence\uff5c>"
    assert marked(found, answers_only=True).endswith(f"what color?\n\nAssistant:[[ blue{end}]]")
    shown = marked(found, answers_only=False)
    assert "[[User: ]]<begin_of_image><image 4 tokens><end_of_image>[[\nwhat color?" in shown
    assert {piece.kind for piece in found} == {"text", "special", "image"}
    assert [piece.text for piece in found if piece.learned == "always"] == [" blue", end]


def test_a_prompt_and_a_text_as_text(tmp_path):
    words = shard_sets.tokenizer(tmp_path)
    shown = marked(pieces(shard_sets.generation(words), words, 4), False)
    assert shown.endswith("User: a circle\n\nAssistant:<begin_of_image>[[<16 VQ ids>]]")
    found = pieces(shard_sets.text(words, "one \x1b[31mtwo"), words, 4)
    assert "[[one \\x1b[31mtwo<" in marked(found, answers_only=True) == marked(found, answers_only=False)


def test_ids_that_mean_nothing_are_shown(tmp_path):
    words = shard_sets.tokenizer(tmp_path)
    found = pieces(TextSample(np.array([words.bos, 5_000, words.eos], dtype=np.uint32)), words, 4)
    assert [piece.text for piece in found if piece.kind == "unknown"] == ["<id 5000?>"]


def test_bytes_for_people():
    assert visible("a\nb\t\u202e\x00") == "a\nb\t\\u202e\\x00"
    assert (head(b"plain"), head(b"\x89PNG"), head(b"")) == ("plain", "89 50 4e 47", "")


def test_no_difference(words, tmp_path):
    shards = opened(tmp_path, "text")
    found = difference(shards, shards)
    assert (found.values, found.only_first.count, found.only_second.count, found.changed.count) == ([], 0, 0, 0)


@pytest.mark.parametrize("stream", list(MAKERS))
def test_differences(tmp_path, stream):
    words = shard_sets.tokenizer(tmp_path)
    one, two = shard_sets.several(stream, words, 6), shard_sets.several(stream, words, 8, first=2)
    two[1] = (two[1][0], two[5][1])  # other content under the key of number 3
    shard_sets.write_set(tmp_path / "a", stream, words, one[:4], one[4:], settings={"a": 1, "chat": {"user": "U"}})
    shard_sets.write_set(tmp_path / "b", stream, words, two, settings={"a": 2, "chat": {"user": "V"}, "b": 0})
    found = difference(ShardSet.open(tmp_path / "a"), ShardSet.open(tmp_path / "b"))
    assert (found.only_first.count, found.only_first.first) == (2, [f"{stream}-00000", f"{stream}-00001"])
    assert (found.only_second.count, found.only_second.first) == (4, [f"{stream}-{n:05d}" for n in (6, 7, 8, 9)])
    assert (found.changed.count, found.changed.first) == (1, [f"{stream}-00003"])
    values = {name: (old, new) for name, old, new in found.values}
    assert values["samples"] == (6, 8) and values["shards"] == (2, 1)
    assert values["settings.a"] == (1, 2) and values["settings.chat.user"] == ("U", "V")
    assert values["settings.b"] == (None, 0) and "stream" not in values


def test_a_tokenizer_is_found_by_its_digest(words, tmp_path, monkeypatch):
    manifest = Manifest.load(tmp_path / "data/text")
    assert need_tokenizer(manifest, tmp_path / "tokenizer.json").sha256 == words.sha256
    assert find_tokenizer(manifest, None) is None
    with pytest.raises(DataError, match="is not among the embedded ones"):
        need_tokenizer(manifest, None)
    (tmp_path / "recipes/mine").mkdir(parents=True)
    (tmp_path / "recipes/mine/tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    monkeypatch.setattr("janus_dist.inspection.makers.RECIPES", tmp_path / "recipes")
    assert need_tokenizer(manifest, None).sha256 == words.sha256


def test_another_tokenizer_is_refused(words, tmp_path):
    manifest = dataclasses.replace(Manifest.load(tmp_path / "data/text"), tokenizer_sha256="f" * 64)
    with pytest.raises(DataError, match="the text shards were made with ffffffffffff"):
        find_tokenizer(manifest, tmp_path / "tokenizer.json")


def test_vq_weights_are_found_by_their_digest(words, tmp_path):
    manifest = Manifest.load(tmp_path / "data/generation")
    assert find_codes(manifest, None) is None and find_codes(Manifest.load(tmp_path / "data/text"), None) is None
    (tmp_path / "vq.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match="the generation shards were made with VQ weights 000000000000"):
        find_codes(manifest, tmp_path / "vq.safetensors")
    with pytest.raises(DataError, match="nothing cannot be read"):
        find_codes(manifest, tmp_path / "nothing")


def test_the_embedded_vq_weights_tell_their_codes(words, tmp_path):
    embedded = json.loads(Path(__file__).parents[3].joinpath("jobs/recipes/tiny/vq.origin.json").read_text())["sha256"]
    manifest = dataclasses.replace(Manifest.load(tmp_path / "data/generation"), vq_sha256=embedded)
    assert find_codes(manifest, None) == 512
