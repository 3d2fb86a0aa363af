"""The three streams under a real Ray: what goes in comes out once, as the recipe says; bad records have a reason."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import webdataset

from data_pipelines import job_runner, progress, stream, work
from data_pipelines.inputs import formats
from data_pipelines.prepare import prepare_data
from janus_dist.data import images
from janus_dist.data.chat import generation_prompt_ids, text_ids, understanding_ids
from janus_dist.data.keys import shard_keys
from janus_dist.data.manifest import ShardSet
from janus_dist.data.sample import decode
from janus_dist.errors import CheckpointError, ConfigError, DataError
from janus_dist.model import vq as vq_model
from janus_dist.weights.vq import load_vq
from tests.pipelines.conftest import captions, conversations, documents, lines
from tests.shard_sets import all_records

REASONS = {
    4: "does not decode: OSError: image file is truncated",
    13: "does not decode: no image format is recognised",
    21: "too small: 40x5 pixels",
    22: "too narrow: 420x20 pixels",
    49: "missing: no file",
}

# Ray warns of its own settings and leaves sockets to the garbage collector
pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.filterwarnings("ignore")]


def stored(folder) -> list[Any]:
    """All samples of a shard set, in order."""
    shards, found = ShardSet.open(folder), []
    for number, record in enumerate(all_records(shards)):
        content = Path(shards.path(int(shards.shard_of(np.array([number]))[0]))).read_bytes()
        payload = content[int(record["offset"]) : int(record["offset"]) + int(record["bytes"])]
        found.append(decode(shards.manifest.stream, payload))
    return found


def keys(folder) -> list[str]:
    manifest = ShardSet.open(folder).manifest
    return [key for shard in range(len(manifest.shards)) for key in shard_keys(str(folder), manifest, shard)]


def quarantine(folder):
    return pq.read_table(f"{folder}/quarantine.parquet").to_pylist()


def square(path, crop):
    return crop(images.load(path.read_bytes()), 16)


def test_understanding(make_work, tokenizer, spoiled):
    work_ = make_work("understanding", conversations(spoiled), "pipeline.max_bad_share=0.1")
    manifest = stream.run(work_)
    assert (manifest.samples, manifest.quarantined) == (45, 5)
    good = [number for number in range(50) if number not in REASONS]
    for number, sample in zip(good, stored(work_.folder), strict=True):
        turns = [("what is it?", "a circle"), (f"is it {number}?", "yes")]
        ids, answers = understanding_ids(tokenizer, work_.recipe.data.chat, turns, num_images=1)
        assert sample.ids.tolist() == ids and sample.answers.tolist() == [list(span) for span in answers]
        assert sample.images == [images.encode(square(spoiled / f"photo-{number:03d}.png", images.pad_to_square), None)]


def test_bad_images_are_quarantined_with_a_reason(make_work, spoiled):
    work_ = make_work("understanding", conversations(spoiled), "pipeline.max_bad_share=0.1")
    stream.run(work_)
    rows = quarantine(work_.folder)
    assert len(rows) == 5 and all(row["key"].startswith("conversations-") for row in rows)
    for row, (number, reason) in zip(rows, REASONS.items(), strict=True):
        assert row["reason"].startswith(reason)
        assert row["source"].startswith(f"{spoiled}/conversations.jsonl:")
        path = spoiled / f"photo-{number:03d}.png"
        assert row["head"] == (path.read_bytes()[:64] if path.exists() else b"")
    stats = json.loads(Path(f"{work_.folder}/stats.json").read_text())
    assert stats["records"] == 50 and stats["dropped"] == {}
    assert stats["bad"] == {"does not decode": 2, "missing": 1, "too narrow": 1, "too small": 1}
    assert sum(stats["histograms"]["width"].values()) == 45
    assert set(stats["seconds"]) == {"read", "make", "write"}


def test_generation(make_work, tokenizer, spoiled):
    work_ = make_work("generation", captions(spoiled), "pipeline.max_bad_share=0.1")
    manifest = stream.run(work_)
    assert (manifest.samples, manifest.quarantined, manifest.image_ids) == (45, 5, 16)
    good = [number for number in range(50) if number not in REASONS]
    squares = [np.asarray(square(spoiled / f"photo-{number:03d}.png", images.resize_and_crop)) for number in good]
    vq = load_vq(work_.recipe.model, work_.recipe.data.vq_weights)
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
    expected = vq_model.encode(vq, vq_model.to_float(pixels))
    assert len(expected.unique()) > 4, "a VQ tokenizer that gives one id would prove nothing"
    for number, ids, sample in zip(good, expected, stored(work_.folder), strict=True):
        chat = work_.recipe.data.chat
        assert sample.prompt_ids.tolist() == generation_prompt_ids(tokenizer, chat, f"a circle {number}")
        # another batch size may round a near tie the other way
        assert (sample.vq_ids.astype(int) == ids.numpy()).mean() > 0.9


def test_text(make_work, tokenizer, tmp_path):
    work_ = make_work("text", documents(tmp_path, 41))
    manifest = stream.run(work_)
    texts = [f"Text {place}. " * (1 + place % 9) for place in range(41)]
    expected = [ids.tolist() for text in texts for ids in text_ids(tokenizer, text, 40)]
    assert len(expected) > 41, "some documents are cut"
    assert [sample.ids.tolist() for sample in stored(work_.folder)] == expected
    assert manifest.samples == len(expected) and len(manifest.shards) >= 6
    assert len(set(keys(work_.folder))) == len(expected)


def test_what_a_rule_drops_is_counted_and_not_bad(make_work, photos, tmp_path):
    source = lines(
        tmp_path / "scored.jsonl",
        [{"image": f"photo-{n:03d}.png", "caption": f"a circle {n}", "score": n / 10} for n in range(20)],
    )
    where = "{score: {min: 0.5}, width: {min: 30}}"
    work_ = make_work("generation", source, f"pipeline.inputs.generation.images={photos}",
                      f"pipeline.inputs.generation.where={where}")  # fmt: skip
    manifest = stream.run(work_)
    wide = [n for n in range(20) if images.size(images.peek((photos / f"photo-{n:03d}.png").read_bytes()))[0] >= 30]
    kept = [n for n in wide if n >= 5]
    assert (manifest.samples, manifest.quarantined) == (len(kept), 0)
    stats = json.loads(Path(f"{work_.folder}/stats.json").read_text())
    assert stats["dropped"] == {"score >= 0.5": 5, "width >= 30": 15 - len(kept)}
    examples = pq.read_table(f"{work_.folder}/examples.parquet").to_pylist()
    dropped = [row for row in examples if row["rule"] == "score >= 0.5"]
    assert dropped[0]["value"] == "0" and dropped[0]["words"] == "a circle 0"
    wide_rule = [row for row in examples if row["rule"] == "width >= 30"]
    assert wide_rule and all(images.load(row["image"]).mode == "RGB" for row in wide_rule)
    crops = [row for row in examples if not row["rule"]]
    assert crops and {row["key"] for row in crops} <= set(keys(work_.folder))
    assert all(images.load(row["image"]).size == (16, 16) for row in crops)


def test_plain_webdataset_reads_the_shards(make_work, photos, tmp_path):
    (tmp_path / "in").mkdir()
    work_ = make_work("understanding", conversations(tmp_path / "in", 11), "pipeline.jpeg_quality=95",
                      f"pipeline.inputs.understanding.images={photos}")  # fmt: skip
    stream.run(work_)
    found = list(webdataset.WebDataset(sorted(map(str, Path(work_.folder).glob("*.tar"))), shardshuffle=False))
    assert sorted(row["__key__"] for row in found) == sorted(keys(work_.folder)) and len(found) == 11
    assert all(row["jpg"].startswith(b"\xff\xd8\xff") for row in found)


@pytest.mark.parametrize(
    ("name", "entry", "reason"),
    [
        ("text", {"text": " \n "}, "empty: the text has no words"),
        ("text", {"text": "binary \0"}, "no text: the text has a NUL character"),
        ("generation", {"image": "none.png", "caption": ""}, "empty: the caption has no words"),
        ("generation", {"caption": "a circle"}, "images: 0 images, but a caption describes one"),
        ("understanding", {"image": "none.png", "conversations": []}, "empty: no question"),
        (
            "understanding",
            {"image": "no.png", "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": " "}]},
            "empty: answer 0 has no words",
        ),
        (
            "understanding",
            {"messages": [{"role": "user", "content": "<image> why?"}, {"role": "assistant", "content": "so"}]},
            "images: the text has the mark <image>, but the record has no image for it in image or images or jpg or "
            "png or image_path, nor in a message",
        ),
    ],
)  # fmt: skip
def test_records_without_what_they_need_are_quarantined(make_work, tmp_path, name, entry, reason):
    work_ = make_work(name, lines(tmp_path / "in.jsonl", [entry]), "pipeline.max_bad_share=1")
    with pytest.raises(DataError, match="none of 1 records became a sample"):
        stream.run(work_)
    assert [row["reason"] for row in quarantine(work_.folder)] == [reason]


def test_a_conversation_longer_than_the_model_is_quarantined(make_work, photos, tmp_path):
    turns = [{"from": "human", "value": "why? " * 50}, {"from": "gpt", "value": "so"}]
    source = lines(tmp_path / "in.jsonl", [{"image": "photo-001.png", "conversations": turns}])
    work_ = make_work("understanding", source, f"pipeline.inputs.understanding.images={photos}",
                      "pipeline.max_bad_share=1", "model.text.max_positions=40")  # fmt: skip
    with pytest.raises(DataError, match="none of 1 records became a sample"):
        stream.run(work_)
    (row,) = quarantine(work_.folder)
    assert row["reason"].endswith("tokens, the model has 40 positions")


def test_too_many_bad_records_stop_the_run(make_work, spoiled):
    work_ = make_work("understanding", conversations(spoiled), "pipeline.max_bad_share=0.05")
    with pytest.raises(DataError) as caught:
        stream.run(work_)
    assert "records are bad, more than pipeline.max_bad_share=0.05 allows: conversations-" in caught.value.message
    assert caught.value.hint is not None and f"{work_.folder}/quarantine.parquet" in caught.value.hint
    assert 3 <= len(quarantine(work_.folder)) <= 5
    with pytest.raises(DataError, match=r"manifest\.json does not exist"):
        ShardSet.open(work_.folder)
    # allowing more is enough: what was written before counts
    manifest = stream.run(make_work("understanding", conversations(spoiled), "pipeline.max_bad_share=0.1"))
    assert (manifest.samples, manifest.quarantined) == (45, 5)


def test_a_limit_reads_so_many_records_into_a_folder_of_its_own(make_recipe, tmp_path, photos):
    recipe = make_recipe(
        f"pipeline.inputs.text={{format: jsonl, path: '{documents(tmp_path, 60)}'}}",
        f"pipeline.inputs.understanding={{format: jsonl, path: '{conversations(tmp_path)}', images: '{photos}'}}",
        f"pipeline.inputs.generation={{format: jsonl, path: '{captions(tmp_path)}', images: '{photos}'}}",
    )
    prepare_data(recipe, limit=20)
    root = Path(f"{recipe.data.root}-first-20")
    assert json.loads((root / "text" / "stats.json").read_text())["records"] == 20
    assert ShardSet.open(root / "generation").manifest.samples == 20
    assert not Path(recipe.data.root).exists(), "a later run over everything is not told that it is done"


def test_weights_of_another_size_are_named_before_anything_starts(make_recipe, photos):
    own = f"pipeline.inputs.generation={{format: folders, path: '{photos}'}}"
    with pytest.raises(CheckpointError, match=r"quantize\.embedding\.weight: 32x8 there, 64x8 by the recipe"):
        prepare_data(make_recipe(own, "model.vq.codes=64"))
    with pytest.raises(CheckpointError, match="does not exist"):
        prepare_data(make_recipe(own, "data.vq_weights=/nowhere.safetensors"))


def test_an_input_of_no_stream_is_a_fault_of_the_recipe(make_recipe):
    with pytest.raises(ConfigError, match=r"inputs\.imagenet\.stream is required, because 'imagenet' is not one of"):
        make_recipe("pipeline.inputs.imagenet={format: folders, path: /x}")
    with pytest.raises(ConfigError, match=r"inputs\.text\.path is required with format=jsonl"):
        make_recipe("pipeline.inputs.text={format: jsonl}")


def test_prepare_makes_what_is_missing_and_touches_nothing_else(make_recipe, photos, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(progress, "PRINT_INTERVAL_S", math.inf)  # lines of progress come by the clock

    def recipe(number):
        asked, drawn, said = conversations(tmp_path, 9), captions(tmp_path, 9), documents(tmp_path / "a", number)
        return make_recipe(
            f"pipeline.inputs.text={{format: jsonl, path: '{said}'}}",
            f"pipeline.inputs.understanding={{format: jsonl, path: '{asked}', images: '{photos}'}}",
            f"pipeline.inputs.generation={{format: jsonl, path: '{drawn}', images: '{photos}'}}",
        )

    with caplog.at_level("INFO", logger="janus_dist"):
        prepare_data(recipe(9))
    said = [record.getMessage() for record in caplog.records if record.name == "janus_dist"]
    names = ["understanding", "understanding", "text", "text", "generation", "generation"]
    assert [line.split(":")[0] for line in said] == names
    assert said[0].endswith(f"tokenizing {tmp_path}/conversations.jsonl (jsonl) into {tmp_path}/data/understanding")
    assert said[1].startswith("understanding: 9 samples, ") and "(9 records in " in said[1] and "; read " in said[1]
    digests = {name: ShardSet.open(f"{tmp_path}/data/{name}").manifest.digest for name in set(names)}
    prepare_data(recipe(3))
    assert digests == {name: ShardSet.open(f"{tmp_path}/data/{name}").manifest.digest for name in set(names)}


def test_the_manifest_tells_what_made_it(make_work, photos, tmp_path):
    work_ = make_work("generation", captions(tmp_path, 9), f"pipeline.inputs.generation.images={photos}")
    stream.run(work_)
    values = json.loads(Path(f"{work_.folder}/manifest.json").read_text())
    assert values["tokenizer_sha256"] == work_.tokenizer.sha256
    assert values["vq_sha256"] == stream.sha256_of(work_.recipe.data.vq_weights)
    assert values["settings"]["shard_samples"] == 8 and values["settings"]["chat"]["user"] == "User"
    assert values["settings"]["input"]["path"] == [f"{tmp_path}/captions.jsonl"]


def test_a_job_that_cannot_be_done_is_named_and_the_others_are_done(make_work, tmp_path):
    """A file goes between listing and reading: its jobs fail, all others are kept, and a later run does the rest."""
    for number in range(4):
        documents(tmp_path / f"{number}", 8)
    work_ = make_work("text", f"{tmp_path}/?/documents.jsonl")
    content = (tmp_path / "2" / "documents.jsonl").read_bytes()
    units = formats.units(work_.source, 8)
    jobs = work.cut(units, 8, stream.settings(work_), None)

    def taken_away(self, *arguments):
        (tmp_path / "2" / "documents.jsonl").unlink(missing_ok=True)
        return units

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "units", lambda of, samples: taken_away(None))
        patch.setattr(job_runner, "ATTEMPTS", 2)
        patch.setattr(job_runner, "PAUSE_S", 0.1)
        with pytest.raises(Exception, match=r"text: \d of \d jobs were not done; job \d \(.*/2/documents.jsonl\)"):
            stream.run(work_)
    done = list(work.done(work_.folder, jobs))
    assert 0 < len(done) < len(jobs)
    (tmp_path / "2" / "documents.jsonl").write_bytes(content)
    assert stream.run(work_).samples > 32


def test_paths_of_a_recipe_may_be_relative(make_recipe, tokenizer, photos, tmp_path, monkeypatch):
    """Workers run in other folders than the one in which the recipe was written."""
    captions(tmp_path / "in", 4)
    (tmp_path / "in" / "pictures").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    own = "pipeline.inputs.generation={format: jsonl, path: in/*.jsonl, images: in/pictures}"
    recipe = make_recipe(own, "data.root=out")
    prepare_data(recipe.model_copy(update={"pipeline": recipe.pipeline.model_copy(update={"inputs": {
        "generation": recipe.pipeline.inputs["generation"]
    }})}))  # fmt: skip
    assert ShardSet.open(tmp_path / "out" / "generation").manifest.samples == 4
