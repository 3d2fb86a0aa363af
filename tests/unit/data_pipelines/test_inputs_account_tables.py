"""The account of tables and tars: columns and members that no record is made of."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.inputs import media
from tests.images import noise, png
from tests.inputs import read, source, tar

USER, ANSWER = {"role": "user", "content": "what?"}, {"role": "assistant", "content": "a thing"}
PNG = png(noise(20, 20))


def write_table(tmp_path, columns, **settings):
    pq.write_table(pa.table(columns), tmp_path / "0.parquet", **settings)
    return source("parquet", tmp_path / "0.parquet", stream="understanding")


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("view", [PNG + bytes(5000), None, PNG]),
        ("view", ["a.png", "b.png", "c.png"]),
        ("view", [None, {"bytes": PNG * 9, "path": None}, None]),
        ("view", [["a.png"], [], ["c.png"]]),
    ],
)
def test_images_in_columns_that_nothing_reads(tmp_path, name, values, compression):
    conversations = [json.dumps([USER, ANSWER])] * 3
    of = write_table(tmp_path, {"messages": conversations, name: values, "n": [1, 2, 3]}, compression=compression)
    records, rejects = read(of)
    assert len(rejects) == sum(media.has_value(value) for value in values)
    assert all(reject.reason.startswith(f"images: {name} has ") for reject in rejects)
    assert all(dict(record.ignored) == {"n": "not used"} for record in records)
    named = of.model_copy(update={"columns": {"image": "n"}})
    assert len(read(named)[1]) == 3, "which is no image"


def test_columns_of_video_and_sound(tmp_path):
    of = write_table(tmp_path, {"messages": [json.dumps([USER, ANSWER])] * 2, "audio": [{"bytes": b"x"}, None]})
    records, rejects = read(of)
    assert len(records) == 1 and [reject.kind for reject in rejects] == ["audio"]


def test_members_and_keys_of_a_tar(tmp_path):
    meta = {"url": "http://x/b.jpg", "file_name": "IMG_1.jpg", "image": "old.jpg", "width": 3, "caption": "other"}
    content = tar([("0.jpg", b"x"), ("0.txt", b"c"), ("0.json", json.dumps(meta).encode()), ("0.npy", b"")])
    (tmp_path / "0.tar").write_bytes(content)
    (record,), rejects = read(source("webdataset", tmp_path / "0.tar"))
    assert not rejects and dict(record.ignored) == {
        ".npy": "not used",
        "json: image": "members of the tar are the images",
        "json: caption": ".txt is used",
        "url": "a web address of an image, which is not read",
        "file_name": "a name of an image, but members of the tar are the images",
        "width": "not used",
    }


def test_conversations_of_a_tar_do_not_lose_images(tmp_path):
    messages = {"messages": [USER, ANSWER]}
    members_of = [
        ("0.json", json.dumps({**messages, "image": "a.jpg"}).encode()),
        ("1.json", json.dumps({**messages, "images": ["a.jpg", "b.jpg"]}).encode()), ("1.jpg", b"x"),
        ("2.json", json.dumps(messages).encode()), ("2.mp4", b"x"),
    ]  # fmt: skip
    (tmp_path / "0.tar").write_bytes(tar(members_of))
    (record,), rejects = read(source("webdataset", tmp_path / "0.tar"))
    assert [one.source for one in record.pictures] == [f"{tmp_path}/a.jpg"]
    assert [reject.reason.partition(";")[0] for reject in rejects] == [
        "images: images in the JSON has 2, the entry has 1 members that are images",
        "video: '2' has a member .mp4",
    ]


@pytest.mark.parametrize(("size", "names"), [(10, ["a.jpg"]), (10**6, [])])
def test_long_lists_of_numbers_are_looked_at_in_part(size, names):
    assert [sight.path for sight in media.look([*np.zeros(size).tolist(), "a.jpg"])] == names
