"""Before a run begins: an input and its output are apart, and what was made with other settings is named."""

import json
import logging

import pytest

from data_pipelines import prepare, stream
from janus_dist.errors import ConfigError
from tests.alone import without_ray, work_on


@pytest.mark.parametrize(
    "path",
    ["data/understanding", "data/understanding/*.tar", "data/understanding/raw/a.tar", "data", ".", "data/*/*.tar",
     "**/*.tar", "link", "data/../data/understanding/", "dat?/under*"],
)  # fmt: skip
def test_a_source_in_the_folder_of_its_shards_is_refused_before_anything_starts(tmp_path, monkeypatch, path):
    """The end of a run removes shards that do not count: a source there could be taken for such."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    of = work_on("understanding", path, "data", form="webdataset")
    with pytest.raises(ConfigError) as caught:
        prepare.prepare_data(of.recipe)
    assert "pipeline.inputs.understanding.path=" in caught.value.message and path.strip("./") in caught.value.message
    assert f"the folder of its shards, {tmp_path}/data/understanding, are not apart" in caught.value.message
    assert "data.root/NAME" in (caught.value.hint or "") and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("path", "root"),
    [("in", "data"), ("data/*.tar", "data"), ("data/understanding-raw", "data"), ("data/under", "data"),
     ("data/text/*.tar", "data"), ("s3://bucket/data", "data"), ("s3://bucket/in", "s3://bucket/data")],
)  # fmt: skip
def test_a_source_beside_its_shards_is_not(tmp_path, monkeypatch, path, root):
    monkeypatch.chdir(tmp_path)
    prepare.check_apart([work_on("understanding", path, root, form="webdataset")])


@pytest.mark.parametrize("path", ["s3://bucket/data", "s3://bucket/data/understanding/*.tar", "s3://bucket/*"])
def test_a_source_in_a_store_is_compared_too(path):
    with pytest.raises(ConfigError, match="are not apart"):
        prepare.check_apart([work_on("understanding", path, "s3://bucket/data", form="webdataset")])


def alone(of):
    """The recipe with this input alone."""
    pipeline = of.recipe.pipeline.model_copy(update={"inputs": {of.name: of.source}})
    return of.recipe.model_copy(update={"pipeline": pipeline})


def test_shards_of_other_settings_are_named_and_left_alone(tmp_path, monkeypatch, caplog):
    without_ray(monkeypatch)
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"text": "some words"}))
    of = work_on("text", source, tmp_path / "data")
    manifest = stream.run(of)
    with caplog.at_level(logging.WARNING, logger="janus_dist"):
        prepare.prepare_data(alone(of))
        assert not caplog.messages
        rule = "pipeline.inputs.text.where={text_chars: {min: 3}}"
        prepare.prepare_data(alone(work_on("text", source, tmp_path / "data", rule, "pipeline.shard_samples=9")))
    (line,) = caplog.messages
    assert line.startswith(
        "text: its shards were made with other settings than the recipe's and are left as they are: "
    )
    assert "shard_samples (8 there)" in line and "input.where.text_chars.min (None there)" in line
    assert "jpeg_quality" not in line and stream.run(of) == manifest


def test_the_content_of_class_names_is_a_setting(tmp_path):
    names = tmp_path / "names.json"
    of = work_on("generation", "in", tmp_path, f"pipeline.inputs.generation.class_names={names}", form="folders")
    found = []
    for name in ("tench", "shark"):
        names.write_text(json.dumps({"n01": name}))
        found.append(stream.settings(of, "vq"))
    assert found[0] != found[1], "captions that were made with other names would be taken for those of the file"
