"""Lines of JSON: conversations, captions, interleaved texts and documents; ranges of files; what is no record."""

import gzip
import json
import subprocess
import sys
import tracemalloc
from itertools import pairwise

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFile
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.inputs import entries, files, formats, jsonl
from data_pipelines.inputs.files import UnreachableError
from data_pipelines.record import Picture, Record, Unit
from janus_dist.errors import DataError
from janus_dist.inspection.inspect import Reject
from tests.inputs import entries as all_entries
from tests.inputs import read, source

ASKED, ANSWERED = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}
LLAVA = {"id": "7", "image": "coco/1.jpg", "conversations": [ASKED, ANSWERED]}


def lines(*values) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def zstd(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as opened:
        opened.write(content)
    return buffer.getvalue().to_pybytes()


def write(folder, content: bytes, name: str = "data.jsonl", **values):
    (folder / name).write_bytes(content)
    return source("jsonl", folder / name, **values)


# --- what is read ---


def test_conversations_of_llava(tmp_path):
    no_image = {"id": "8", "conversations": [ASKED | {"value": "Hello?"}, ANSWERED], "model": "x", "length": 2}
    two = LLAVA | {
        "image": ["a.jpg", "b.jpg"],
        "conversations": [{"from": "system", "value": "Be brief."}, ASKED, ANSWERED],
    }
    first, second, third = read(write(tmp_path, lines(LLAVA, no_image, two)))[0]
    assert first == Record(
        key="data-0",
        source=f"{tmp_path}/data.jsonl:0",
        pictures=(Picture(f"{tmp_path}/coco/1.jpg"),),
        turns=(("<image>\nWhat?", "A cat."),),
        columns={"id": "7"},
    )
    assert (second.pictures, second.turns) == ((), (("Hello?", "A cat."),))
    assert second.columns == {"id": "8", "model": "x", "length": 2}
    assert [one.source for one in third.pictures] == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
    assert third.system == "Be brief." and len(third.turns) == 1


def test_messages_of_openai(tmp_path):
    image = {"type": "image_url", "image_url": {"url": "a.jpg"}}
    parts = [image, {"type": "text", "text": "What? "}, {"type": "image", "image": "b.jpg"}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ]
    listed = ({"messages": messages, "images": images} for images in (["./a.jpg", "b.jpg"], ["x/a.jpg", "b.jpg"]))
    of = write(tmp_path, lines({"messages": messages}, *listed))
    (first, second), (reject,) = read(of)
    assert first.turns == (("<image>What? <image>", "A cat."), ("Sure?", "Yes.")) and first.system == "Be brief."
    assert [one.source for one in first.pictures] == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
    assert [one.source for one in second.pictures] == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"], (
        "a list of its own counts"
    )
    assert reject.reason.startswith("images: the record lists x/a.jpg, ")


def test_interleaved_texts_captions_and_documents(tmp_path):
    of = write(
        tmp_path,
        lines(
            {"text": "One <image> two <image>", "images": ["1.jpg", "2.jpg"]},
            {"image": "3.jpg", "caption": "a dog", "score": 0.5, "tags": ["x"]},
            {"text": "A document."},
        ),
    )
    interleaved, captioned, document = read(of)[0]
    assert interleaved.text == "One <image> two <image>" and len(interleaved.pictures) == 2
    assert (captioned.caption, captioned.text, captioned.columns) == ("a dog", "", {"score": 0.5})
    assert (document.text, document.pictures) == ("A document.", ())


def test_names_of_columns(tmp_path):
    value = {"pic": "1.jpg", "words": "c", "body": "t", "talk": [ASKED, ANSWERED], "image": "no.jpg", "uid": 5}
    columns = {"image": "pic", "caption": "words", "text": "body", "turns": "talk", "key": "uid"}
    (record,), _ = read(write(tmp_path, lines(value), columns=columns, images="s3://photos/"))
    assert [one.source for one in record.pictures] == ["s3://photos/1.jpg"]
    assert (record.caption, record.text, record.key, len(record.turns)) == ("c", "t", "5", 1)


def test_rules_may_be_on_what_a_record_is_made_of(tmp_path):
    of = write(tmp_path, lines({"text": "x", "content": "y"}), where={"content": {}})
    assert read(of)[0][0].columns == {"content": "y"}


def test_blank_lines_line_ends_and_a_mark_of_byte_order(tmp_path):
    of = write(tmp_path, b'\xef\xbb\xbf{"text": "a"}\r\n\r\n   \n{"text": "b"}\n{"text": "c"}')
    records, rejects = read(of)
    assert not rejects and [(record.text, record.key) for record in records] == [
        ("a", "data-0"),
        ("b", "data-24"),
        ("c", "data-38"),
    ]


@pytest.mark.parametrize(
    ("ending", "compress"), [("jsonl.gz", gzip.compress), ("jsonl.zst", zstd), ("json.gz", gzip.compress)]
)
def test_compressed_files_are_one_unit_each(tmp_path, ending, compress):
    texts = [f"text {number}" for number in range(1000)]
    half = len(texts) // 2
    parts = [lines(*({"text": text} for text in some)) for some in (texts[:half], texts[half:])]
    write(tmp_path, b"".join(map(compress, parts)), f"a.{ending}")  # of two members or frames
    of = source("jsonl", tmp_path)
    (unit,) = formats.units(of, 10)
    assert (unit.start, unit.stop, unit.size) == (0, None, (tmp_path / f"a.{ending}").stat().st_size)
    records, rejects = read(of)
    assert not rejects and [record.text for record in records] == texts
    assert [record.key for record in records] == [f"a-{number}" for number in range(1000)]


def test_files_of_all_kinds_in_one_folder(tmp_path):
    write(tmp_path, gzip.compress(lines({"text": "a"})), "a.jsonl.gz")
    write(tmp_path, lines(*({"text": "b" * 90} for _ in range(100))), "b.jsonl")
    of = source("jsonl", tmp_path)
    assert len(formats.units(of, 50)) == 1 + 3, "the mean line is that of the first plain file"
    assert len(read(of, 50)[0]) == 101


# --- ranges ---


def test_ranges_hold_about_a_shard(tmp_path):
    of = write(tmp_path, lines(*({"text": f"{number:06d}"} for number in range(1000))))
    units = formats.units(of, 100)
    counts = [len(list(formats.records(of, unit))) for unit in units]
    assert sum(counts) == 1000 and max(counts) <= 100 and min(counts[:-1]) >= 85
    assert units[0].start == 0 and units[-1].stop == (tmp_path / "data.jsonl").stat().st_size
    assert all(unit.stop == after.start for unit, after in pairwise(units))
    assert sum(unit.size for unit in units) == units[-1].stop


TEXT = st.text("a\xe9\r ", max_size=8)


@settings(max_examples=200)
@given(st.lists(TEXT, min_size=1, max_size=8), st.integers(1, 60), st.booleans())
def test_each_line_is_in_exactly_one_range(tmp_path_factory, texts, size, ends):
    content = b"\n".join(json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts) + b"\n" * ends
    path = tmp_path_factory.getbasetemp() / "ranges.jsonl"
    path.write_bytes(content)
    of = source("jsonl", path)
    units = [
        Unit(str(path), size, start, min(start + size, len(content)), stem="x")
        for start in range(0, len(content), size)
    ]
    found = [record for unit in units for record in formats.records(of, unit)]
    assert [record.text for record in found if isinstance(record, Record)] == texts
    starts = [0]
    for line in content.split(b"\n")[: len(texts) - 1]:
        starts.append(starts[-1] + len(line) + 1)
    assert [record.key for record in found] == [f"x-{start}" for start in starts]


def test_a_line_that_spans_many_ranges_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BUFFER_BYTES", 1000)
    content = lines({"text": "x" * 200_000}, {"text": "end"})
    of = write(tmp_path, content)
    asked = []
    original = files._InputStream.readinto
    monkeypatch.setattr(
        files._InputStream, "readinto", lambda self, buffer: asked.append(len(buffer)) or original(self, buffer)
    )
    units = [Unit(of.path, 2000, start, start + 2000, stem="x") for start in range(0, len(content), 2000)]
    found = [record for unit in units for record in formats.records(of, unit)]
    assert [len(record.text) for record in found if isinstance(record, Record)] == [200_000, 3]
    assert sum(asked) < 4 * len(content), "each range looks for the end of the line in itself only"


# --- what is rejected ---


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON: the line: Expecting property name enclosed"),
        (b"[1]", "not JSON: a line is an object, not list"),
        (b'{"text": "\xff"}', "not UTF-8: the line at byte 10"),
        (b"[" * 10**5, "not JSON: the line: maximum recursion depth exceeded"),
        (lines({"text": 5}), "not text: the caption is int"),
        (lines({"image": "../1.jpg"}), "unsafe name: '../1.jpg' is not a path inside"),
        (lines({"image": "/etc/passwd"}), "unsafe name: '/etc/passwd' is not a path inside"),
        (lines({"image": {"a": 1}}), "images: dict is neither bytes nor a path"),
        (lines({"image": 5}), "images: int is neither bytes nor a path"),
        (lines({"image": "\ud800.jpg"}), r"not UTF-8: the path '\ud800.jpg'"),
        (lines({"conversations": "x"}), "not JSON: the conversation"),
        (lines({"conversations": {"a": 1}}), "roles: a conversation is a list, not dict"),
        (lines({"conversations": ["x"]}), "roles: a message is an object, not str"),
        (lines({"conversations": [ASKED]}), "roles: user; user and assistant must take turns, the user first"),
        (lines({"conversations": [ANSWERED, ASKED]}), "roles: assistant, user; user and assistant must take turns"),
        (lines({"conversations": [ASKED, ASKED, ANSWERED, ANSWERED]}), "roles: user, user, assistant, assistant;"),
        (lines({"messages": [{"role": "tool", "content": ""}]}), "roles: 'tool' is not one of human, user, gpt"),
        (lines({"messages": [{"role": ["user"], "content": ""}]}), "roles: \"['user']\" is not one of"),
        (lines({"messages": [{"role": "user", "content": 5}]}), "not text: a message is int"),
        (
            lines({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}),
            "audio: a part of a message is audio; Janus reads text and images",
        ),
        (lines({"messages": [{"role": "user", "content": [5]}]}), "roles: a part of a message is neither"),
    ],
)
def test_a_line_is_rejected_and_the_others_are_read(tmp_path, line, reason):
    good = lines({"text": "good"})
    records, (reject,) = read(write(tmp_path, good + line.rstrip() + b"\n" + good))
    assert len(records) == 2 and reject.reason.startswith(reason)
    assert (reject.key, reject.source) == (f"data-{len(good)}", f"{tmp_path}/data.jsonl:{len(good)}")
    assert reject.head == line.rstrip()[:64] and len(reject.reason) < 300


def test_a_path_that_begins_with_the_images_folder_is_inside(tmp_path):
    of = write(tmp_path, lines({"image": "/photos/a/1.jpg"}, {"image": "/other/1.jpg"}), images="/photos")
    (record,), (reject,) = read(of)
    assert record.pictures[0].source == "/photos/a/1.jpg" and reject.reason.startswith("unsafe name: ")


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_long_lines_are_rejected_without_being_held(tmp_path, ending):
    content = lines({"text": "a"}) + b'{"text": "' + b"x" * 40_000_000 + b'"}\n' + lines({"text": "b"})
    (tmp_path / f"data.{ending}").write_bytes(gzip.compress(content, 1) if ending.endswith("gz") else content)
    of = source("jsonl", tmp_path)
    unit = Unit(f"{tmp_path}/data.{ending}", len(content), 0, None, stem="data")
    tracemalloc.start()
    first, reject, last = formats.records(of, unit)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(first, Record) and isinstance(last, Record) and (first.text, last.text) == ("a", "b")
    assert isinstance(reject, Reject) and peak < 2.5 * entries.LONGEST_TEXT_BYTES
    assert reject.reason == "too long: a line of 40000013 bytes, at most 16777216 are read"


def test_keys_of_a_column(tmp_path):
    of = write(
        tmp_path, lines(*({"text": "x"} | one for one in ({"id": "a/b.c"}, {"id": 1}, {"id": "1"}, {}, {"id": [1]})))
    )
    records, rejects = read(of.model_copy(update={"columns": {"key": "id"}}))
    assert [record.key for record in records] == ["a/b%2Ec", "1"]
    assert [reject.reason for reject in rejects] == [
        "duplicate key: '1' occurs twice",
        "no key: id is absent",
        "no key: id is list",
    ]


@pytest.mark.parametrize(
    ("damage", "name", "reason"),
    [
        (
            lambda whole: gzip.compress(whole)[:-20],
            "a.jsonl.gz",
            "Compressed file ended before the end-of-stream marker",
        ),
        (lambda whole: gzip.compress(whole)[:-8] + bytes(8), "a.jsonl.gz", "CRC check failed"),
        (lambda whole: gzip.compress(whole) + b"rest", "a.jsonl.gz", "Not a gzipped file"),
        (lambda whole: whole, "a.jsonl.gz", "Not a gzipped file"),
        (lambda whole: zstd(whole)[:-20], "a.jsonl.zst", "Truncated compressed stream"),
        (lambda whole: whole, "a.jsonl.zst", "Unknown frame descriptor"),
        (lambda whole: b"", "a.jsonl.zst", None),
        (lambda whole: b"", "a.jsonl.gz", None),
    ],
)
def test_damaged_compression(tmp_path, damage, name, reason):
    texts = [f"text {number * 7919 % 1009}" for number in range(1000)]
    (tmp_path / name).write_bytes(damage(lines(*({"text": text} for text in texts))))
    records, rejects = read(source("jsonl", tmp_path))
    assert [record.text for record in records] == texts[: len(records)]
    if reason is None:
        assert not records and not rejects
    else:
        (reject,) = rejects
        assert (
            reject.reason.startswith(f"damaged: the file ends after {len(records)} lines: ") and reason in reject.reason
        )


def test_a_json_array_is_refused_with_the_way_out(tmp_path):
    of = write(tmp_path, b" \n" + json.dumps([LLAVA], indent=1).encode(), "llava.json")
    with pytest.raises(DataError) as caught:
        formats.units(of, 10)
    assert caught.value.message == f"{tmp_path}/llava.json is one JSON array, which cannot be read in pieces"
    assert caught.value.hint and caught.value.hint.endswith("< llava.json > llava.jsonl")
    program = caught.value.hint.partition("python -c '")[2].partition("'")[0]
    with (tmp_path / "llava.json").open("rb") as stdin:
        out = subprocess.run([sys.executable, "-c", program], stdin=stdin, capture_output=True, check=True).stdout
    assert out == lines(LLAVA)


def test_a_folder_with_an_array_only_says_so(tmp_path):
    write(tmp_path, b"[]", "llava.json")
    with pytest.raises(DataError) as caught:
        formats.units(source("jsonl", tmp_path), 10)
    assert caught.value.hint and caught.value.hint.endswith(".json.zst: it has llava.json")


def test_an_empty_file_has_no_records(tmp_path):
    assert read(write(tmp_path, b"")) == ([], [])
    assert read(write(tmp_path, b"\n\n")) == ([], [])


@pytest.mark.parametrize(
    ("name", "compress"), [("0.jsonl", bytes), ("0.jsonl.gz", gzip.compress), ("0.jsonl.zst", zstd)]
)
def test_a_store_that_fails_is_no_damaged_file(monkeypatch, name, compress):
    memory = files.fsspec.filesystem("memory")
    memory.pipe_file(f"/lines/{name}", compress(lines({"text": "a"})))
    of = source("jsonl", "memory://lines")
    (unit,) = formats.units(of, 10)
    assert len(list(formats.records(of, unit))) == 1

    def denied(self, buffer):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFile, "readinto", denied)
    with pytest.raises(UnreachableError, match="Access Denied"):
        list(formats.records(of, unit))
    memory.rm("/lines", recursive=True)


@settings(max_examples=300)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.sampled_from(["user", "assistant", "image"]),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["image", "text", "caption", "conversations", "messages", "role", "content", "from", "type", "x"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_any_value_becomes_a_record_or_a_reject(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "values.jsonl"
    path.write_bytes(lines({}, value))
    found = all_entries(source("jsonl", path))
    assert len(found) == 2 and all(isinstance(one, Record | Reject) for one in found)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from(["f.jsonl", "f.jsonl.gz", "f.jsonl.zst"]))
def test_any_bytes_become_records_and_rejects(tmp_path_factory, content, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(b"{}\n" + content)
    assert jsonl.units(source("jsonl", path), 3)
    read(source("jsonl", path))
