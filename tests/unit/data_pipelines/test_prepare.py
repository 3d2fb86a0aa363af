"""Before a run begins: an input and its output are apart, and what was made with other settings is named."""

import json
import logging
from pathlib import Path

import pytest

from data_pipelines import prepare, stream
from data_pipelines.committed import differences
from janus_dist.data.manifest import Manifest
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
    assert f"the folder of its shards, {tmp_path}/data/understanding, overlap" in caught.value.message
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
    with pytest.raises(ConfigError, match="overlap"):
        prepare.check_apart([work_on("understanding", path, "s3://bucket/data", form="webdataset")])


def alone(of):
    """The recipe with this input alone."""
    pipeline = of.recipe.pipeline.model_copy(update={"inputs": {of.name: of.source}})
    return of.recipe.model_copy(update={"pipeline": pipeline})


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Work on three documents whose shards are there, and the same with settings changed."""
    without_ray(monkeypatch)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": words}) + "\n" for words in ("some words", "no", "many more words")))

    def work(*overrides: str):
        return work_on("text", source, tmp_path / "data", *overrides)

    stream.run(work())
    return work


RULE = "pipeline.inputs.text.where={text_chars: {min: 3}}"


def test_shards_of_other_settings_are_refused_and_left_alone(made, caplog):
    manifest = stream.run(made())
    caplog.clear()  # another test may have left the logger at INFO
    with caplog.at_level(logging.WARNING, logger="janus_dist"):
        prepare.prepare_data(alone(made()))
    assert not caplog.messages
    other = made(RULE, "pipeline.shard_samples=9")
    for refused in (lambda: prepare.prepare_data(alone(other)), lambda: stream.run(other)):
        with pytest.raises(ConfigError) as error:
            refused()
        assert error.value.message == (
            f"text: the shards in {other.folder} were made with other settings than the recipe's: "
            "pipeline.inputs.text.where.text_chars.min=3.0 (the shards: none), pipeline.shard_samples=9 (the shards: 8)"
        )
        assert error.value.exit_code == 2 and "--replace" in (error.value.hint or "")
    assert stream.run(made()) == manifest


def test_shards_are_replaced_when_that_is_asked_for_and_not_before_the_others_are_whole(made, monkeypatch):
    before = stream.run(made())
    other, saved = made(RULE), Manifest.save

    def save(manifest, folder):
        assert all((Path(folder) / f"{entry.name}.tar").exists() for entry in before.shards), "still to be read"
        saved(manifest, folder)

    monkeypatch.setattr(Manifest, "save", save)
    monkeypatch.setattr(prepare, "connect", lambda: None)
    prepare.prepare_data(alone(other), anew=True)
    after = Manifest.load(other.folder)
    assert (before.samples, after.samples) == (3, 2)
    tars = {path.stem for path in Path(other.folder).glob("*.tar")}
    assert tars == {entry.name for entry in after.shards}
    prepare.prepare_data(alone(other))


def test_files_that_were_moved_and_another_version_of_the_program_are_named_only(made, caplog, tmp_path):
    moved = made(f"pipeline.inputs.text.path={tmp_path}/elsewhere.jsonl")
    with caplog.at_level(logging.WARNING, logger="janus_dist"):
        prepare.prepare_data(alone(moved))
    (line,) = caplog.messages
    assert line.startswith("text: its shards are used as they are, although pipeline.inputs.text.path=[")
    with pytest.raises(ConfigError, match="path="):
        prepare.prepare_data(alone(made(f"pipeline.inputs.text.path=[{tmp_path}/in.jsonl, {tmp_path}/more.jsonl]")))


def test_settings_that_an_older_version_did_not_know_count_as_their_defaults():
    now = {
        "shard_samples": 8,
        "new": 1,
        "pipeline_version": 4,
        "input": {"format": "jsonl", "where": {}, "crop": "center"},
    }
    old = {"shard_samples": 8, "gone": 2, "pipeline_version": 3, "input": {"format": "jsonl", "where": {}}}
    assert list(differences(old, now)) == [("pipeline_version", 3, 4)]
    random = now | {"input": {"format": "jsonl", "crop": "random"}}
    assert ("input.crop", "center", "random") in list(differences(old, random))
    assert list(differences({}, now)) == [], "of shards that say nothing"
    other = {"input": {"columns": [], "where": {"width": {"min": 2}}}}, {"input": {"columns": ["a"], "where": {}}}
    assert list(differences(*other)) == [("input.columns", [], ["a"]), ("input.where.width.min", 2, None)]


def test_a_job_that_waited_for_another_takes_what_that_one_made(made, caplog):
    """The manifest is looked for again once the folder is this job's."""
    caplog.set_level(logging.INFO, logger="janus_dist")
    assert stream.run(made()).samples == 3
    assert caplog.messages == ["text: 3 samples exist already, made by another job"]


def test_the_content_of_class_names_is_a_setting(tmp_path):
    names = tmp_path / "names.json"
    of = work_on("generation", "in", tmp_path, f"pipeline.inputs.generation.class_names={names}", form="folders")
    found = []
    for name in ("tench", "shark"):
        names.write_text(json.dumps({"n01": name}))
        found.append(stream.settings(of, "vq"))
    assert found[0] != found[1], "captions that were made with other names would be taken for those of the file"
