"""The three graphs under a real Ray: what goes in comes out once, as the recipe says, and bad samples have a reason."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from data_pipelines import sources, stream
from data_pipelines.prepare import prepare_data, stream_job
from data_pipelines.steps.rows import schema
from data_pipelines.steps.write import WriteShard
from janus_dist.data import images
from janus_dist.data.chat import generation_prompt_ids, text_ids, understanding_ids
from janus_dist.data.manifest import ShardSet
from janus_dist.data.sample import decode
from janus_dist.errors import CheckpointError, DataError
from janus_dist.model import vq as vq_model
from janus_dist.model.vq_weights import load_vq
from tests.pipelines.conftest import captions, conversations, documents

REASONS = {
    4: "does not decode: OSError: image file is truncated",
    13: "does not decode: no image format is recognised",
    21: "too small: 40x5 pixels",
    22: "too long: 320x20 pixels",
    49: "missing: no file",
}

# Ray warns of its own settings and leaves sockets to the garbage collector
pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.filterwarnings("ignore")]


def stored(folder) -> list[Any]:
    """All samples of a shard set, in order."""
    shards, found = ShardSet.open(folder), []
    for number, record in enumerate(shards.all_records()):
        content = Path(shards.path(int(shards.shard_of(np.array([number]))[0]))).read_bytes()
        payload = content[int(record["offset"]) : int(record["offset"]) + int(record["bytes"])]
        found.append(decode(shards.manifest.stream, payload))
    return found


def quarantine(folder):
    return pq.read_table(f"{folder}/quarantine.parquet").to_pylist()


def square(path, recipe, crop):
    return crop(images.load(path.read_bytes(), images.Limits.of(recipe.pipeline)), recipe.model.image_size)


def test_understanding(make_recipe, tokenizer, spoiled):
    recipe = make_recipe("pipeline.max_bad_share=0.1")
    items = conversations(spoiled)
    manifest = stream.run(stream_job("understanding", recipe, tokenizer, items))
    folder = f"{recipe.data.root}/understanding"
    assert (manifest.samples, manifest.quarantined, len(manifest.shards)) == (45, 5, 7)
    good = [item for number, item in enumerate(items) if number not in REASONS]
    for item, sample in zip(good, stored(folder), strict=True):
        assert isinstance(item, sources.Conversation)
        ids, answers = understanding_ids(tokenizer, recipe.data.chat, list(item.turns), num_images=1)
        assert sample.ids.tolist() == ids and sample.answers.tolist() == [list(span) for span in answers]
        path = spoiled[int(item.key[-3:])]
        assert sample.images == [images.to_png(square(path, recipe, images.pad_to_square))]


def test_bad_images_are_quarantined_with_a_reason(make_recipe, tokenizer, spoiled):
    recipe = make_recipe("pipeline.max_bad_share=0.1")
    stream.run(stream_job("understanding", recipe, tokenizer, conversations(spoiled)))
    rows = quarantine(f"{recipe.data.root}/understanding")
    assert [row["key"] for row in rows] == [f"photo-{number:03d}" for number in REASONS]
    for row, (number, reason) in zip(rows, REASONS.items(), strict=True):
        assert row["reason"].startswith(reason)
        assert row["source"] == str(spoiled[number])
        expected = spoiled[number].read_bytes()[:64] if spoiled[number].exists() else b""
        assert row["head"] == expected


def test_generation(make_recipe, tokenizer, spoiled):
    recipe = make_recipe("pipeline.max_bad_share=0.1")
    items = captions(spoiled)
    manifest = stream.run(stream_job("generation", recipe, tokenizer, items))
    assert (manifest.samples, manifest.quarantined, manifest.image_ids) == (45, 5, 16)
    good = [number for number in range(50) if number not in REASONS]
    squares = [np.asarray(square(spoiled[number], recipe, images.resize_and_crop)) for number in good]
    vq = load_vq(recipe.model, recipe.data.vq_weights)
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
    expected = vq_model.encode(vq, vq_model.to_float(pixels))
    found = stored(f"{recipe.data.root}/generation")
    assert len(expected.unique()) > 4, "a VQ tokenizer that gives one id would prove nothing"
    for number, ids, sample in zip(good, expected, found, strict=True):
        assert sample.prompt_ids.tolist() == generation_prompt_ids(tokenizer, recipe.data.chat, f"a circle {number}")
        # another batch size may round a near tie the other way
        assert (sample.vq_ids.astype(int) == ids.numpy()).mean() > 0.9


def test_text(make_recipe, tokenizer):
    recipe = make_recipe()
    items = documents(41)
    manifest = stream.run(stream_job("text", recipe, tokenizer, items))
    expected = [ids for item in items for ids in text_ids(tokenizer, str(sources.to_row(item)["text"]), 40)]
    assert len(expected) > 41, "some documents are cut"
    assert [sample.ids.tolist() for sample in stored(f"{recipe.data.root}/text")] == expected
    assert manifest.samples == len(expected) and len(manifest.shards) == 6


@pytest.mark.parametrize(
    ("name", "items", "reason"),
    [
        ("text", [sources.Document("a", "made", " \n ")], "empty: the text has no words"),
        ("generation", [sources.Caption("a", "made", "none.png", "")], "empty: the caption has no words"),
        ("understanding", [sources.Conversation("a", "made", "none.png", ())], "empty: no question"),
        (
            "understanding",
            [sources.Conversation("a", "made", "none.png", (("what?", "it"), ("why?", " ")))],
            "empty: answer 1 has no words",
        ),
    ],
)
def test_samples_without_words_are_quarantined(make_recipe, tokenizer, name, items, reason):
    recipe = make_recipe("pipeline.max_bad_share=1")
    manifest = stream.run(stream_job(name, recipe, tokenizer, items))
    assert (manifest.samples, manifest.quarantined, len(manifest.shards)) == (0, 1, 0)
    assert [row["reason"] for row in quarantine(f"{recipe.data.root}/{name}")] == [reason]


def test_a_conversation_longer_than_the_model_is_quarantined(make_recipe, tokenizer, photos):
    recipe = make_recipe("pipeline.max_bad_share=0.5", "model.text.max_positions=40")
    items = conversations(photos[:2])
    long = sources.Conversation("long", "made", str(photos[2]), (("why? " * 50, "so"),))
    stream.run(stream_job("understanding", recipe, tokenizer, [*items, long]))
    (row,) = quarantine(f"{recipe.data.root}/understanding")
    assert row["key"] == "long" and row["reason"].endswith("tokens, the model has 40 positions")


def test_too_many_bad_samples_stop_the_run(make_recipe, tokenizer, spoiled):
    recipe = make_recipe("pipeline.max_bad_share=0.09")
    with pytest.raises(DataError) as caught:
        stream.run(stream_job("understanding", recipe, tokenizer, conversations(spoiled)))
    folder = f"{recipe.data.root}/understanding"
    assert "of 50 samples are bad, more than pipeline.max_bad_share=0.09 allows: photo-" in caught.value.message
    assert caught.value.hint is not None and f"{folder}/quarantine.parquet" in caught.value.hint
    assert len(quarantine(folder)) == 5
    with pytest.raises(DataError, match=r"no .*manifest"):
        ShardSet.open(folder)
    # allowing more is enough: what was written before counts
    manifest = stream.run(
        stream_job("understanding", make_recipe("pipeline.max_bad_share=0.1"), tokenizer, conversations(spoiled))
    )
    assert (manifest.samples, manifest.quarantined) == (45, 5)


def test_weights_of_another_size_are_named_before_anything_starts(make_recipe, tokenizer, photos):
    with pytest.raises(CheckpointError, match=r"quantize\.embedding\.weight is 32x8, model\.vq needs 64x8"):
        stream_job("generation", make_recipe("model.vq.codes=64"), tokenizer, captions(photos))
    with pytest.raises(CheckpointError, match="does not exist"):
        stream_job("generation", make_recipe("data.vq_weights=/nowhere.safetensors"), tokenizer, captions(photos))


def test_a_block_that_is_not_one_whole_shard_is_refused(make_recipe, tokenizer, tmp_path):
    write = WriteShard(str(tmp_path), "text", make_recipe().model, tokenizer, ["digest"], [3])
    row = {"shard": 0, "key": "a", "source": "b", "reason": "bad", "head": b""}
    for positions in ([0, 1], [0, 2, 1], [0, 1, 2, 3]):
        rows = [row | {"position": position} for position in positions]
        with pytest.raises(AssertionError, match="is not shard 0 of 3 items"):
            write(schema().empty_table().from_pylist(rows, schema=schema()))
    assert list(tmp_path.iterdir()) == []


def test_prepare_makes_what_is_missing_and_touches_nothing_else(make_recipe, photos, monkeypatch, caplog):
    made = {"understanding": conversations(photos[:9]), "text": documents(9), "generation": captions(photos[:9])}
    monkeypatch.setattr(sources, "items", lambda name, config: made[name])
    recipe = make_recipe()
    with caplog.at_level("INFO", logger="janus_dist"):
        prepare_data(recipe)
    lines = [record.getMessage() for record in caplog.records if record.name == "janus_dist"]
    assert [line.split(":")[0].split(" ")[0] for line in lines] == ["tokenizing", "understanding", "text", "generation"]
    assert lines[1].startswith("understanding: 9 samples, ") and "(9 items in " in lines[1]
    digests = {name: ShardSet.open(f"{recipe.data.root}/{name}").manifest.digest for name in made}
    made["text"] = documents(3)
    prepare_data(recipe)
    assert digests == {name: ShardSet.open(f"{recipe.data.root}/{name}").manifest.digest for name in made}


def test_the_manifest_tells_what_made_it(make_recipe, tokenizer, photos):
    recipe = make_recipe()
    stream.run(stream_job("generation", recipe, tokenizer, captions(photos[:9])))
    values = json.loads(Path(f"{recipe.data.root}/generation/manifest.json").read_text())
    assert values["tokenizer_sha256"] == tokenizer.sha256
    assert values["vq_sha256"] == stream.sha256_of(recipe.data.vq_weights)
    assert values["settings"]["shard_samples"] == 8 and values["settings"]["chat"]["user"] == "User"
