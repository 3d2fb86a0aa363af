"""When nearly all records fail for one reason: what is looked for, what is there, and the setting that reads it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_pipelines import stream
from data_pipelines.explain import suggested_columns
from data_pipelines.inputs import formats
from data_pipelines.inputs.contents import contents, kind_of_value
from janus_dist.config.pipeline import InputConfig
from janus_dist.errors import DataError
from tests.alone import without_ray, work_on
from tests.images import noise, png
from tests.inputs import source, tar
from tests.pipelines.conftest import lines

TURNS = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a cat"}]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    without_ray(monkeypatch)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, ""),
        ("", ""),
        (3, "number"),
        ("photos/a.JPG", "path of an image"),
        ("data:image/png;base64,AAAA", "image as a data URI"),
        ("some words.", "text"),
        (b"\xff", "bytes"),
        ({"bytes": b"x", "path": None}, "bytes"),
        ({"bytes": None, "path": "a.png"}, "path of an image"),
        (TURNS, "conversation"),
        (["a.png"], "path of an image"),
        (["a", "b"], "list of text"),
        ({"x": 1, "y": 2}, "object with x, y"),
    ],
)
def test_kinds_of_values(value, kind):
    assert kind_of_value(value) == kind


@pytest.mark.parametrize(
    ("stream_name", "columns", "names", "expected"),
    [
        ("text", {}, {"body": "text", "id": "number"}, {"text": "body"}),
        ("text", {}, {"title": "text", "contents": "text"}, {"text": "contents"}),
        ("text", {}, {"text": "text", "body": "text"}, {}),
        ("text", {"text": "bdy"}, {"body": "text"}, {"text": "body"}),
        ("generation", {}, {"img": "bytes", "alt": "text"}, {"image": "img", "caption": "alt"}),
        ("generation", {}, {"image": "bytes", "alt": "text", "url": "text"}, {"caption": "alt"}),
        ("generation", {}, {"n": "number"}, {}),
        (
            "understanding",
            {},
            {"picture": "path of an image", "dialog": "conversation"},
            {"image": "picture", "turns": "dialog"},
        ),
        ("understanding", {}, {"picture": "path of an image", "caption": "text"}, {"image": "picture"}),
    ],
)
def test_columns_that_would_read_it(stream_name, columns, names, expected):
    of = source("jsonl", "a", columns=columns, stream=stream_name)
    assert suggested_columns(of, stream_name, names) == expected


def run(tmp_path, name, path, *more, form="jsonl"):
    return stream.run(work_on(name, path, tmp_path / "data", *more, form=form))


@pytest.mark.parametrize("form", ["jsonl", "parquet", "webdataset"])
def test_the_setting_that_a_message_names_reads_the_records(tmp_path, form):
    """Whoever follows the hint gets the samples."""
    photo = png(noise(20, 20))
    (tmp_path / "in").mkdir()
    if form == "jsonl":
        (tmp_path / "in/a.png").write_bytes(photo)
        lines(tmp_path / "in/a.jsonl", [{"photo": "a.png", "title": f"words {number}"} for number in range(20)])
    elif form == "parquet":
        rows = [{"photo": photo, "title": f"words {number}", "id": number} for number in range(20)]
        pq.write_table(pa.Table.from_pylist([row | {"text": None} for row in rows]), tmp_path / "in/a.parquet")
    else:
        pair = [("photo", photo), ("json", json.dumps({"title": "words", "n": 1}).encode())]
        members = [(f"{number}.{end}", content) for number in range(20) for end, content in pair]
        (tmp_path / "in/0.tar").write_bytes(tar(members))
    with pytest.raises(DataError) as caught:
        run(tmp_path, "understanding", tmp_path / "in", form=form)
    hint = caught.value.hint or ""
    assert f"format={form} looks for image in " in hint and "the records hold " in hint and "title (text)" in hint
    setting = hint.partition("pipeline.inputs.understanding.columns=")[2].partition("}")[0] + "}"
    assert yaml.safe_load(setting) == {"image": "photo", "caption": "title"}
    own = f"pipeline.inputs.understanding.columns={setting}"
    assert run(tmp_path, "understanding", tmp_path / "in", own, form=form).samples == 20


def test_pictures_in_another_folder_are_explained(tmp_path):
    lines(tmp_path / "in.jsonl", [{"image": "a.png", "caption": "words"}] * 3)
    with pytest.raises(DataError) as caught:
        run(tmp_path, "understanding", tmp_path / "in.jsonl", "pipeline.max_bad_share=1")
    assert "nearly all records (3 of 3) fail as 'missing'" in (caught.value.hint or "")
    assert "set pipeline.inputs.understanding.images" in (caught.value.hint or "")


def test_few_bad_records_are_not_explained(tmp_path):
    rows = [{"text": "words"}] * 8 + [{"body": "words"}] * 2
    with pytest.raises(DataError) as caught:
        run(tmp_path, "text", lines(tmp_path / "in.jsonl", rows))
    assert "nearly all" not in str(caught.value) and "repair the source" in (caught.value.hint or "")


def test_a_source_that_is_gone_or_damaged_is_no_error_of_its_own(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"x" * 2_000)
    of = source("webdataset", tmp_path)
    units = formats.units(of, 10)
    assert contents(of, units) == {}
    (tmp_path / "0.tar").unlink()
    assert contents(of, units) == {} and isinstance(of, InputConfig)
