"""Parquet: tables as the Hugging Face hub serves them, cut into runs of row groups, and damaged ones."""

import datetime
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.inputs import files, formats
from data_pipelines.inputs.files import UnreachableError
from data_pipelines.record import Picture, Record
from janus_dist.errors import DataError
from janus_dist.inspection.inspect import Reject
from tests.inputs import read, reasons, source

LLAVA = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
TURNS = (("<image>\nWhat?", "A cat."),)
CAPTIONS = {"image": [b"0", b"1", b"2"], "caption": ["a", "b", "c"]}

CASES = Path(__file__).parents[2] / "cases"


def write(folder, columns, name="train-00000.parquet", **options):
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), folder / name, **options)
    return source("parquet", folder)


def pictures(record: Record) -> list[bytes | str]:
    return [one.source if one.content is None else one.content for one in record.pictures]


# --- what is read ---


def test_images_of_the_hub_with_captions(tmp_path):
    images = [
        {"bytes": b"jpeg", "path": "1.jpg"},
        {"bytes": None, "path": "sub/2.jpg"},
        {"bytes": None, "path": None},
        None,
    ]
    of = write(tmp_path, {"image": images, "text": ["one", "two", "three", None], "label": [1, 2, 3, 4]})
    records, rejects = read(of)
    file = f"{tmp_path}/train-00000.parquet"
    assert not rejects
    assert records[0] == Record(
        "train-00000-0", f"{file}:0", (Picture(f"{file}:0", b"jpeg"),), caption="one", text="one"
    )
    assert [pictures(record) for record in records] == [[b"jpeg"], [f"{tmp_path}/sub/2.jpg"], [], []]
    assert [record.caption for record in records] == ["one", "two", "three", ""]


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())]
)
def test_images_as_bytes(tmp_path, kind):
    records, rejects = read(
        write(tmp_path, {"image": pa.array([b"a", b"b", None]).cast(kind), "caption": ["x", "y", "z"]})
    )
    assert not rejects and [pictures(record) for record in records] == [[b"a"], [b"b"], []]


def test_images_as_paths_and_lists(tmp_path):
    of = write(tmp_path, {"images": [["a.jpg", "b.jpg"], [], ["../c.jpg"]], "caption": ["x", "y", "z"]})
    records, (reject,) = read(of.model_copy(update={"images": "/photos"}))
    assert [pictures(record) for record in records] == [["/photos/a.jpg", "/photos/b.jpg"], []]
    assert (reject.key, reject.reason) == ("train-00000-2", "unsafe name: '../c.jpg' is not a path inside /photos")
    of = write(tmp_path, {"images": [[{"bytes": b"a", "path": None}, {"bytes": b"b", "path": None}]]})
    assert pictures(read(of)[0][0]) == [b"a", b"b"]


@pytest.mark.parametrize("name", ["caption", "text", "TEXT", "prompt"])
def test_usual_names_of_captions(tmp_path, name):
    assert read(write(tmp_path, {name: ["words"], "jpg": [b"x"]}))[0][0].caption == "words"


def test_of_a_list_of_captions_one_is_drawn_by_the_key(tmp_path):
    """As COCO and Flickr30k come from the hub."""
    several = [f"caption {number}" for number in range(5)]
    lists = [*([several] * 200), [" ", "words", ""], [], None]
    of = write(tmp_path, {"image": [b"x"] * 203, "caption": pa.array(lists, pa.list_(pa.string()))})
    records, rejects = read(of)
    found = [record.caption for record in records]
    assert not rejects and found[200:] == ["words", "", ""]
    assert all(25 < found.count(one) < 60 for one in several), "each about as often as the others"
    assert found == [record.caption for record in read(of, shard_samples=10)[0]], "the same in every run"
    _, (reject,) = read(write(tmp_path, {"image": [b"x"], "caption": [[1, 2]]}))
    assert reject.reason == "not text: the caption is int"


def test_the_first_usual_name_that_has_a_value_counts(tmp_path):
    (first, second), _ = read(write(tmp_path, {"text": ["t", "t"], "caption": ["c", None]}))
    assert (first.caption, second.caption) == ("c", "t")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("conversations", [LLAVA]),
        ("conversations", [json.dumps(LLAVA)]),
        ("messages", [[{"role": "user", "content": LLAVA[0]["value"]}, {"role": "assistant", "content": "A cat."}]]),
    ],
)
def test_conversations(tmp_path, name, values):
    of = write(tmp_path, {name: values, "image": [b"x"], "text": [5]})
    ((record,), rejects) = read(of)
    assert not rejects and record.turns == TURNS and pictures(record) == [b"x"]


def test_openai_parts_have_nulls_in_a_table(tmp_path):
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ]
    ((record,), rejects) = read(write(tmp_path, {"messages": [messages], "image": [b"x"]}))
    assert not rejects and record.turns == (("<image>What?", "A cat."),) and pictures(record) == [b"x"]


def test_named_columns_and_columns_of_rules(tmp_path):
    columns = {"pic": [b"a"], "title": ["c"], "image": [b"no"], "caption": ["no"], "score": [0.5], "other": [1]}
    values = {"columns": {"image": "pic", "caption": "title"}, "where": {"score": {"min": 0.1}, "caption": {}}}
    write(tmp_path, columns)
    (record,), _ = read(source("parquet", tmp_path, **values))
    assert (pictures(record), record.caption, record.columns) == ([b"a"], "c", {"score": 0.5, "caption": "no"})


def test_only_the_columns_that_are_used_are_read(tmp_path, monkeypatch):
    asked = []
    original = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, size, groups, names, **options: (
            asked.append(names) or original(self, size, groups, names, **options)
        ),
    )
    read(write(tmp_path, {"image": [b"a"], "caption": ["x"], "embedding": [[1.0]], "url": ["u"]}))
    assert asked == [["image", "caption"]]


def test_keys(tmp_path):
    (tmp_path / "en").mkdir()
    (tmp_path / "de").mkdir()
    write(tmp_path / "en", CAPTIONS, row_group_size=2)
    write(tmp_path / "de", CAPTIONS)
    assert [record.key for record in read(source("parquet", tmp_path))[0]] == [
        f"{language}/train-00000-{row}" for language in ("de", "en") for row in range(3)
    ]


def test_keys_of_a_column(tmp_path):
    columns = {"id": ["a.b", "2", "2", "", None], "text": ["x"] * 5}
    write(tmp_path, columns)
    records, rejects = read(source("parquet", tmp_path, columns={"key": "id"}))
    assert [record.key for record in records] == ["a%2Eb", "2"]
    assert [(reject.key, reject.reason) for reject in rejects] == [
        ("2", "duplicate key: '2' occurs twice"),
        ("train-00000-3", "no key: id is empty"),
        ("train-00000-4", "no key: id is absent"),
    ]
    write(tmp_path, {"id": [7, 8], "text": ["x", "y"]})
    assert [record.key for record in read(source("parquet", tmp_path, columns={"key": "id"}))[0]] == ["7", "8"]


# --- units ---


def test_units_are_runs_of_row_groups(tmp_path):
    of = write(tmp_path, {"text": [f"{row:04d}" for row in range(95)]}, row_group_size=10)
    units = formats.units(of, 30)
    assert [(unit.start, unit.stop, unit.records) for unit in units] == [(0, 3, 30), (3, 6, 30), (6, 9, 30), (9, 10, 5)]
    assert {(unit.path, unit.stem) for unit in units} == {(f"{tmp_path}/train-00000.parquet", "train-00000")}
    rows = [[record.text for record in formats.records(of, unit) if isinstance(record, Record)] for unit in units]
    assert [len(one) for one in rows] == [30, 30, 30, 5] and [text for one in rows for text in one] == [
        f"{row:04d}" for row in range(95)
    ]
    assert [record.key for record in read(of, 30)[0]] == [f"train-00000-{row}" for row in range(95)]
    assert [unit.records for unit in formats.units(of, 5)] == [10] * 9 + [5], "a row group is not cut"


def test_units_of_an_empty_table(tmp_path):
    of = write(tmp_path, pa.table({"text": pa.array([], pa.string())}))
    assert read(of) == ([], []) and sum(unit.records or 0 for unit in formats.units(of, 10)) == 0


def test_memory_does_not_grow_with_the_row_group(tmp_path):
    def chunks():
        for row in range(64):
            yield pa.record_batch({"image": [bytes([row]) * 1_000_000], "caption": ["x"]})

    with pq.ParquetWriter(
        tmp_path / "0.parquet",
        pa.schema({"image": pa.binary(), "caption": pa.string()}),
        compression="none",
        use_dictionary=False,
        write_batch_size=1,
    ) as writer:
        writer.write_table(pa.Table.from_batches(chunks()))
    of = source("parquet", tmp_path)
    (unit,) = formats.units(of, 10)
    most, before = 0, pa.total_allocated_bytes()
    tracemalloc.start()  # of Python's own: what is read from the file
    for number, record in enumerate(formats.records(of, unit)):
        assert isinstance(record, Record) and record.pictures[0].content == bytes([number]) * 1_000_000
        most = max(most, pa.total_allocated_bytes() - before)
    most += tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 63 and most < 60_000_000


# --- what is damaged ---


def test_columns_that_are_not_there(tmp_path):
    write(tmp_path, {"picture": [b"a"], "words": ["x"]})
    with pytest.raises(DataError, match=r"train-00000\.parquet has no column of images or texts") as caught:
        formats.units(source("parquet", tmp_path), 10)
    assert caught.value.hint == "it has picture, words: name those that count in `columns`"
    with pytest.raises(DataError, match="has no column pictures"):
        formats.units(source("parquet", tmp_path, columns={"image": "pictures", "caption": "words"}), 10)


def test_a_file_without_a_footer_is_a_reject(tmp_path):
    of = write(tmp_path, CAPTIONS)
    whole = (tmp_path / "train-00000.parquet").read_bytes()
    (tmp_path / "train-00001.parquet").write_bytes(whole[:-20])
    (tmp_path / "train-00002.parquet").write_bytes(b"")
    records, rejects = read(of)
    assert len(records) == 3
    assert [reject.key for reject in rejects] == ["train-00001-0", "train-00002-0"]
    assert all(reject.reason.startswith("damaged: no row can be read: ") for reject in rejects)


def test_files_of_which_none_is_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"a,b\n1,2\n" * 10)
    with pytest.raises(DataError, match=r"a\.parquet is not a Parquet file: Parquet magic bytes not found"):
        formats.units(source("parquet", tmp_path), 10)


def test_a_damaged_page_costs_the_rest_of_its_row_group(tmp_path):
    columns = {"image": [np.random.default_rng(row).bytes(2000) for row in range(40)]}
    of = write(tmp_path, columns, row_group_size=10, compression="zstd", use_dictionary=False, write_page_checksum=True)
    path = tmp_path / "train-00000.parquet"
    content, place = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content[place + 5000 : place + 5010] = bytes(10)
    path.write_bytes(content)
    records, (reject,) = read(of)
    assert [record.key for record in records] == [f"train-00000-{row}" for row in [*range(10), *range(20, 40)]]
    assert reject.key == "train-00000-10" and reject.source == f"{path}:10"
    assert reject.reason.startswith("damaged: rows 10 to 19 cannot be read: ")


def test_text_that_is_no_utf8_is_one_reject(tmp_path):
    text = pa.array([b"a", b"b\xff", b"c"]).view(pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, text.buffers())
    records, (reject,) = read(write(tmp_path, {"text": broken}))
    assert [record.text for record in records] == ["a", "c"]
    assert (reject.key, reject.reason) == ("train-00000-1", "not UTF-8: a text at byte 1")


def test_values_that_python_cannot_hold_are_one_reject(tmp_path):
    when = pa.array([0, 2**62, 1], pa.int64()).view(pa.timestamp("us"))
    write(tmp_path, {"text": ["a", "b", "c"], "when": when})
    records, (reject,) = read(source("parquet", tmp_path, where={"when": {}}))
    assert [record.text for record in records] == ["a", "c"]
    assert reject.key == "train-00000-1" and reject.reason.startswith("no value: ")
    assert records[0].columns["when"] == datetime.datetime(1970, 1, 1)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"image": [5], "caption": ["x"]}, "images: int is neither bytes nor a path"),
        ({"image": [[[b"x"]]], "caption": ["x"]}, "images: list is neither bytes nor a path"),
        ({"image": ["a\0b"], "caption": ["x"]}, "unsafe name: "),
        ({"image": [b"x"], "caption": [5]}, "not text: the caption is int"),
        ({"text": [b"\xff"]}, "not UTF-8: the caption at byte 0"),
        ({"conversations": ["{"]}, "not JSON: the conversation: "),
        ({"conversations": ["7"]}, "roles: a conversation is a list, not int"),
        ({"conversations": [[{"role": None, "content": "x"}]]}, "roles: 'None' is not one of human, user, gpt"),
    ],
)
def test_rows_that_are_rejected(tmp_path, columns, reason):
    (found,) = reasons(write(tmp_path, columns))
    assert found.startswith(reason)


def test_a_store_that_fails_is_no_damaged_table(monkeypatch, tmp_path):
    write(tmp_path, CAPTIONS)
    memory = files.fsspec.filesystem("memory")
    memory.pipe_file("/tables/0.parquet", (tmp_path / "train-00000.parquet").read_bytes())
    of = source("parquet", "memory://tables")
    units = formats.units(of, 10)

    def denied(self, buffer):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFile, "readinto", denied)
    with pytest.raises(UnreachableError, match="Access Denied"):
        list(formats.records(of, units[0]))
    with pytest.raises(UnreachableError, match="Access Denied"):
        formats.units(of, 10)
    memory.rm("/tables", recursive=True)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_bytes_become_records_and_rejects(tmp_path_factory, changes):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    of = write(folder, CAPTIONS | {"conversations": [LLAVA] * 3}, "whole.parquet", row_group_size=2)
    content = bytearray((folder / "whole.parquet").read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    (folder / "broken.parquet").write_bytes(content)
    records, rejects = read(of)
    assert all(isinstance(one, Record | Reject) for one in [*records, *rejects]) and len(records) >= 3


def test_of_captions_with_a_null_another_is_drawn():
    records, rejects = read(source("parquet", CASES / "captions_with_null"))
    assert not rejects
    first, second, *rest = [record.caption for record in records]
    assert (first, second) == ("a", "a") and rest[2] in ("a", "b", "c") and [*rest[:2], rest[3]] == ["", "", ""]
