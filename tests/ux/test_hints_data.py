"""Hints on data and weights, followed: what each says is read from the error, done, and succeeds."""

import base64
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_pipelines import prepare, stream
from data_pipelines.job import InputWork
from janus_dist.cli.main import app
from janus_dist.config.model import ModelConfig
from janus_dist.config.recipe import StageRecipe
from janus_dist.data.manifest import Manifest
from janus_dist.data.plan import Plan, open_shards
from janus_dist.model import vq as vq_model
from janus_dist.model.janus import vq_config
from janus_dist.weights.folders import Folder
from janus_dist.weights.start import open_weights
from janus_dist.weights.vq import load_vq, save_vq
from tests import prepared, published, shard_sets, tiny
from tests.alone import without_ray, work_on
from tests.images import noise, png
from tests.inputs import read, source
from tests.pipelines.conftest import lines
from tests.unit.data_pipelines.test_prepare import alone
from tests.ux.following import found, hint_of, refused

PHOTO = png(noise(20, 20))
BASE64 = base64.b64encode(PHOTO).decode()
TURNS = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a cat"}]


def janus(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shard sets under `data`, a tokenizer, a recipe `mine.json` and two images, in the current folder."""
    monkeypatch.chdir(tmp_path)
    without_ray(monkeypatch)
    monkeypatch.setattr(prepare, "connect", lambda: None)
    shard_sets.write_root(tmp_path)
    for name in ("a.png", "b.png"):
        Path(name).write_bytes(PHOTO)
    return tmp_path


def run(form: str, path: Path | str, *overrides: str, name: str = "generation") -> Manifest:
    return stream.run(work_on(name, path, "made", *overrides, form=form))


def test_shards_are_looked_for_where_the_hint_says(root: Path):
    (root / "empty").mkdir()
    assert found(r"give the folder of a shard set or a (data)\.root", hint_of(janus, "data", "info", "empty"))
    janus("data", "info", "data")
    assert hint_of(janus, "data", "info", "nope://x/y") == "give a local folder or an s3:// URL"
    janus("data", "info", hint_of(janus, "data", "preview", "data", "--sample", "1").removeprefix("give "))
    given = hint_of(janus, "data", "preview", "data", "--sample", "1").split()[-1]
    janus("data", "preview", given, "--sample", "1", "--tokenizer", "tokenizer.json")


def test_one_of_two_options_is_given(root: Path, capsys: pytest.CaptureFixture[str]):
    one = ["data", "preview", "data/text", "--tokenizer", "tokenizer.json"]
    assert hint_of(janus, *one, "--sample", "1", "--key", "text-00001") == "give one of them"
    janus(*one, "--sample", "1")
    janus(*one, "--key", "text-00001")
    numbers = found(r"from (\d+) to (\d+)", hint_of(janus, *one, "--sample", "99")).groups()
    for number in numbers:
        janus(*one, "--sample", number)
    option = found(r"select a sample by (--\w+)", hint_of(janus, *one, "--key", "none"))[1]
    janus(*one, option, "0")
    assert "text sample 0" in capsys.readouterr().out


def test_a_row_is_shown_with_the_recipe_that_the_hint_asks_for(tmp_path: Path):
    prepared.prepare(tmp_path)
    recipe = tmp_path / "mine.json"
    recipe.write_text(prepared.recipe(tmp_path, tmp_path).model_dump_json())
    command = ["data", "preview"]
    option = found(r"give (--\w+) RECIPE.yaml", hint_of(janus, *command, str(tmp_path / "data"), "--row", "0"))[1]
    janus(*command, option, str(recipe), "--row", "0")
    for wrong in (["--step", "99"], ["--step", "0", "--row", "99"]):
        last = found(r"counted from 0 to (\d+)", hint_of(janus, *command, option, str(recipe), *wrong))[1]
        janus(*command, option, str(recipe), *wrong[:-1], last)


def test_two_sets_of_a_name_are_compared(root: Path):
    for folder in ("text", "generation"):
        shutil.copytree(f"data/{folder}", f"other/my-{folder}")
    hint = hint_of(janus, "data", "diff", "data", "other")
    assert hint.startswith("give two shard sets, or two folders with shard sets of the same names")
    janus("data", "diff", "data/text", "other/my-text")
    janus("data", "diff", "data", "data")


def test_a_tokenizer_is_given_as_the_hint_says(root: Path):
    option = found(r"give it with (--\w+) PATH/(\S+)", hint_of(janus, "data", "preview", "data/text"))
    janus("data", "preview", "data/text", option[1], option[2])


def test_a_path_with_a_wrong_name_has_the_right_one_beside_it(root: Path):
    (root / "in").mkdir()
    lines(root / "in" / "laion.jsonl", [{"text": "many words"}])
    right = found(r"has (\S+), but no", hint_of(run, "jsonl", root / "in/laoin.jsonl", name="text"))[1]
    assert run("jsonl", root / "in" / right, name="text").samples == 1
    listed = found(r"it has (\S+)$", hint_of(run, "jsonl", root / "in/*.json", name="text"))[1]
    assert run("jsonl", root / "in" / listed, name="text").samples == 1


def test_patterns_with_braces_are_written_as_the_hint_does(root: Path):
    for name in ("0000", "0012"):
        lines(root / f"{name}.jsonl", [{"text": f"words of {name}"}])
    hint = hint_of(run, "jsonl", root / "{0012..0000..}.jsonl", name="text")
    choice = found(r"a choice is \{(\w),(\w)\}", hint)
    pattern = choice[0].removeprefix("a choice is ").replace(choice[1], "0000").replace(f",{choice[2]}", ",0012")
    assert run("jsonl", root / f"{pattern}.jsonl", name="text").samples == 2


def test_columns_that_count_are_named(root: Path):
    table = pa.Table.from_pylist([{"picture": PHOTO, "words": f"words {number}"} for number in range(3)])
    pq.write_table(table, root / "in.parquet")
    error = refused(run, "parquet", root / "in.parquet", name="understanding")
    image, caption = found(r"it has (\w+), (\w+): name those that count in `columns`", error.hint or "").groups()
    own = f"pipeline.inputs.understanding.columns={{image: {image}, caption: {caption}}}"
    assert run("parquet", root / "in.parquet", own, name="understanding").samples == 3


def test_the_override_that_would_read_the_records_is_one_word_of_a_shell(root: Path):
    lines(root / "in.jsonl", [{"photo": "a.png", "title": "words"}, {"photo": "b.png", "title": "others"}])
    override = found(r"; ('[^;]*') would read them", hint_of(run, "jsonl", root / "in.jsonl", name="understanding"))[1]
    (word,) = shlex.split(override)
    assert run("jsonl", root / "in.jsonl", word, name="understanding").samples == 2


def test_images_in_another_folder_are_found_by_the_setting_that_is_named(root: Path):
    (root / "texts").mkdir()
    lines(root / "texts" / "in.jsonl", [{"image": "a.png", "caption": "words"}])
    wrong = hint_of(run, "jsonl", root / "texts/in.jsonl", name="understanding")
    setting = found(r"set (pipeline\.\S+images)", wrong)[1]
    assert run("jsonl", root / "texts/in.jsonl", f"{setting}={root}", name="understanding").samples == 1


def test_a_rule_on_a_column_that_is_misspelt(root: Path):
    lines(root / "in.jsonl", [{"text": "many words", "score": 5}])
    rule = "pipeline.inputs.text.where={{{}: {{min: 3}}}}".format
    right = found(r"did you mean '(\w+)'", hint_of(run, "jsonl", root / "in.jsonl", rule("scor"), name="text"))[1]
    assert run("jsonl", root / "in.jsonl", rule(right), name="text").samples == 1


@pytest.mark.parametrize(
    "record",
    [
        {"image": "a.png", "picture": "b.png", "caption": "words"},
        {"image": "a.png", "photo_b": "b.png", "caption": "words"},
    ],
)
def test_columns_say_which_image_counts(root: Path, record: dict[str, Any]):
    lines(root / "in.jsonl", [record])
    (reject,) = stream_rejects(root)
    columns = found(r"columns: \{image: (\w+)\}", reject)[1]
    records, rejects = read(source("jsonl", root / "in.jsonl", columns={"image": columns}))
    assert len(records) == 1 and not rejects


def test_an_image_is_where_the_reason_looks_for_it(root: Path):
    lines(root / "in.jsonl", [{"conversations": [{"from": "human", "value": "<image> what?"}, TURNS[1]]}])
    error = refused(run, "jsonl", root / "in.jsonl", name="understanding")
    assert "the text has the mark <image>, but the record has no image for it in " in error.message
    for place in found(r"no image for it in (.*), nor in a message", error.message)[1].split(" or "):
        record = {"conversations": [{"from": "human", "value": "<image> what?"}, TURNS[1]], place: "a.png"}
        lines(root / f"{place}.jsonl", [record])
        assert len(read(source("jsonl", root / f"{place}.jsonl", stream="understanding"))[0][0].pictures) == 1


def stream_rejects(root: Path, **values: Any) -> list[str]:
    return [reject.reason for reject in read(source("jsonl", root / "in.jsonl", **values))[1]]


@pytest.mark.parametrize(
    ("wrong", "advice", "right"),
    [
        ("data:image/png,AAAA", "write it as `data:TYPE;base64,DATA`", f"data:image/png;base64,{BASE64}"),
        (["a.png", ""], "leave it out, or name its file", ["a.png"]),
        (["a.png", ""], "leave it out, or name its file", ["a.png", "b.png"]),
        ({"file_id": "x"}, "name a file, or give its bytes", {"path": "a.png"}),
        ({"file_id": "x"}, "name a file, or give its bytes", {"bytes": BASE64}),
        ("https://example.org/a.png", "download images first", "a.png"),
    ],
)
def test_images_are_given_as_the_reasons_say(root: Path, wrong: Any, advice: str, right: Any):
    lines(root / "in.jsonl", [{"image": wrong, "conversations": TURNS}])
    (reject,) = stream_rejects(root, stream="understanding")
    assert advice in reject
    lines(root / "in.jsonl", [{"image": right, "conversations": TURNS}])
    assert not stream_rejects(root, stream="understanding")


def test_columns_say_which_conversation_counts(root: Path):
    other = [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so"}]
    lines(root / "in.jsonl", [{"image": "a.png", "conversations": TURNS, "messages": other}])
    (reject,) = stream_rejects(root, stream="understanding")
    turns = found(r"columns: \{turns: (\w+)\}", reject)[1]
    records, rejects = read(source("jsonl", root / "in.jsonl", stream="understanding", columns={"turns": turns}))
    assert len(records) == 1 and not rejects


def test_names_of_classes_are_written_as_the_hint_does(root: Path):
    (root / "in" / "n01").mkdir(parents=True)
    (root / "in" / "n01" / "a.png").write_bytes(PHOTO)
    names = root / "names"
    own = f"pipeline.inputs.generation.class_names={names}"
    names.write_text("n01\n")
    hint = hint_of(read, source("folders", root / "in", class_names=str(names)))
    assert hint == "give JSON {folder: name}, or lines `folder name, other name`" and own
    for text in ('{"n01": "tench"}', "n01 tench, other name\n"):
        names.write_text(text)
        assert read(source("folders", root / "in", class_names=str(names)))[0]
    names.write_text("n02 goldfish\n")
    assert "leave class_names out" in hint_of(read, source("folders", root / "in", class_names=str(names)))
    assert read(source("folders", root / "in"))[0]


def work(root: Path, path: str, data: str = "made", *overrides: str) -> InputWork:
    return work_on("text", root / path, root / data, *overrides)


def test_a_source_and_its_shards_are_apart_as_the_hint_says(root: Path):
    (root / "made" / "text").mkdir(parents=True)
    lines(root / "made" / "text" / "in.jsonl", [{"text": "many words"}])
    hint = hint_of(prepare.prepare_data, alone(work(root, "made/text/in.jsonl")).model_copy())
    assert "set another data.root, or move the source" in hint
    prepare.prepare_data(alone(work(root, "made/text/in.jsonl", "other")))
    (root / "made" / "text" / "in.jsonl").rename(root / "in.jsonl")
    prepare.prepare_data(alone(work(root, "in.jsonl")))


def test_shards_of_other_settings_are_made_again_by_the_option_that_is_named(root: Path):
    lines(root / "in.jsonl", [{"text": "many words"}])
    prepare.prepare_data(alone(work(root, "in.jsonl")))
    other = work(root, "in.jsonl", "made", "pipeline.shard_samples=9")
    hint = hint_of(prepare.prepare_data, alone(other))
    assert shlex.split(hint.rpartition(": ")[2])[-1] == "--replace" and "set another data.root" in hint
    prepare.prepare_data(alone(work(root, "in.jsonl", "elsewhere", "pipeline.shard_samples=9")))
    prepare.prepare_data(alone(other), anew=True)


def plan_of(recipe: StageRecipe) -> Plan:
    return Plan(open_shards(recipe.data, recipe.mix), recipe.mix, recipe.batch, 0, answers_only=False)


def test_a_row_holds_the_longest_sample_by_the_number_that_is_named(tmp_path: Path):
    prepared.prepare(tmp_path)
    small = prepared.recipe(tmp_path, tmp_path, batch={"row_tokens": 21})
    number = found(r"set (batch\.row_tokens)=(\d+)", hint_of(plan_of, small))[2]
    plan_of(prepared.recipe(tmp_path, tmp_path, batch={"row_tokens": int(number)}))


def changed(model: ModelConfig, overrides: list[str]) -> ModelConfig:
    """Return the model with overrides `model.KEY=VALUE`."""
    values = model.model_dump()
    for override in overrides:
        key, _, value = override.removeprefix("model.").partition("=")
        *above, last = key.split(".")
        section = values[above[0]] if above else values
        section[last] = json.loads(value)
    return ModelConfig.model_validate(values)


def test_published_weights_fit_the_model_of_the_overrides_that_are_named(tmp_path: Path):
    text = tiny.MODEL.text
    config = {"hidden_size": text.hidden, "num_hidden_layers": text.layers, "intermediate_size": text.mlp}
    folder = published.write(tmp_path / "weights", published.tensors(published.llama(tiny.MODEL, "model.")), config)
    other = tiny.MODEL.model_copy(update={"text": text.model_copy(update={"layers": 3, "mlp": 50})})
    hint = hint_of(open_weights, other, {"language_model": str(folder)})
    overrides = found(r"set (.*), or give other weights", hint)[1].split()
    assert len(overrides) == 2 and open_weights(changed(other, overrides), {"language_model": str(folder)})


def test_folders_of_weights_are_whole_as_the_hints_say(tmp_path: Path):
    weights = published.tensors(published.llama(tiny.MODEL, "model."))
    published.write(tmp_path / "two", weights, {}, shards=2)
    part = min((tmp_path / "two").glob("*.safetensors"))
    content = part.read_bytes()
    part.write_bytes(content[:100])
    assert "fetch it again" in hint_of(Folder.open, str(tmp_path / "two"), "here")
    part.unlink()
    assert "fetch them" in hint_of(Folder.open, str(tmp_path / "two"), "here")
    part.write_bytes(content)
    assert Folder.open(str(tmp_path / "two"), "here").entries
    assert "give the folder that the weights were published in" in hint_of(Folder.open, str(tmp_path), "here")
    assert "--local-dir DIR" in hint_of(Folder.open, str(tmp_path / "none"), "here")


def test_weights_of_a_vq_tokenizer_fit_the_sizes_that_they_were_trained_with(tmp_path: Path):
    save_vq(vq_model.build(vq_config(tiny.MODEL)), tmp_path / "vq.safetensors")
    other = tiny.MODEL.model_copy(update={"vq": tiny.MODEL.vq.model_copy(update={"codes": 64})})
    assert "give the model.vq sizes" in hint_of(load_vq, other, tmp_path / "vq.safetensors")
    assert isinstance(load_vq(tiny.MODEL, tmp_path / "vq.safetensors"), torch.nn.Module)
