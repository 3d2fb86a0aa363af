"""Which files an input has, the keys of what is in them, and which paths an entry may name."""

import os
from pathlib import Path
from urllib.parse import unquote

import pytest
from botocore.exceptions import NoCredentialsError
from fsspec.implementations.memory import MemoryFile
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipelines.inputs import files
from data_pipelines.inputs.files import UnreachableError, find, inside
from data_pipelines.inputs.keys import LONGEST_KEY, OUTER_SLASH, record_key, safe_key
from janus_dist.config.pipeline import PipelineConfig
from janus_dist.errors import DataError
from tests.inputs import source

CASES = Path(__file__).parents[2] / "cases"
TEXTS = st.text(st.characters()) | st.text("a/.%~-_", max_size=12)
SAFE = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-/%")


def put(folder: Path, *names: str, content: bytes = b"12345") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def stems(of) -> list[str]:
    return [found.stem for found in find(of, (".tar", ".tar.gz"))]


# --- files ---


def test_brace_patterns_of_webdataset():
    of = source("webdataset", CASES / "brace_pattern" / "{0000..0001}.tar")
    assert [found.stem for found in find(of, (".tar",))] == ["0000", "0001"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{a,b}/{1..2}.tar", ["a/1", "a/2", "b/1", "b/2"]),
        ("{a,b}/1*", ["a/1", "a/10", "b/1"]),
        ("{a,c}", ["a/1", "a/10", "a/2", "c/{1..2}"]),
        ("c/{1..2}.tar", ["{1..2}"]),
    ],
)
def test_choices_and_ranges(tmp_path, pattern, expected):
    put(tmp_path, "a/1.tar", "a/2.tar", "a/10.tar", "b/1.tar", "b/2.tar", "c/{1..2}.tar")
    assert stems(source("webdataset", tmp_path / pattern)) == expected


def test_a_name_of_a_brace_pattern_that_is_not_there_is_told(tmp_path):
    put(tmp_path, "000.tar", "001.tar")
    with pytest.raises(DataError, match=f"nothing at {tmp_path}/002.tar, one of 3 names of") as caught:
        find(source("webdataset", tmp_path / "{000..002}.tar"), (".tar",))
    assert "has 000.tar, no 002.tar" in (caught.value.hint or "") or "001.tar" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("{0..9999999}.tar", "expands to more than 200,000 names"),
        ("{a,b.tar}}", "Unbalanced"),
        ("{0012..0000..}.tar", "its braces are not a pattern"),
        ("{a.tar}", "its braces are not a pattern"),
        ("{a,b}{0..}.tar", "its braces are not a pattern"),
    ],
)
def test_brace_patterns_that_are_refused(tmp_path, pattern, reason):
    with pytest.raises(DataError, match=reason):
        find(source("webdataset", tmp_path / pattern), (".tar",))


def test_folders_are_searched_for_endings_in_the_order_of_paths(tmp_path):
    put(tmp_path, "b/2.tar", "a/10.tar", "a/9.tar.gz", "a/note.txt", ".hidden/1.tar", "a/.part.tar")
    found = find(source("webdataset", tmp_path), (".tar", ".tar.gz"))
    assert [one.path for one in found] == [f"{tmp_path}/a/10.tar", f"{tmp_path}/a/9.tar.gz", f"{tmp_path}/b/2.tar"]
    assert [one.stem for one in found] == ["a/10", "a/9", "b/2"]
    assert {one.size for one in found} == {5} and {one.root for one in found} == {str(tmp_path)}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*/*.tar", ["a/1", "b/1"]),
        ("a/*", ["1", "2"]),
        ("?", ["a/1", "a/2", "b/1"]),  # folders, searched
        ("a/[1-3].tar", ["1"]),
        ("a/1.tar", ["1"]),
        ("**/1.tar", ["a/1", "b/1"]),
    ],
)
def test_patterns(tmp_path, pattern, expected):
    put(tmp_path, "a/1.tar", "a/2.tar.gz", "b/1.tar")
    assert stems(source("webdataset", tmp_path / pattern)) == expected


def test_stems_are_below_what_all_paths_share_and_differ(tmp_path):
    put(tmp_path, "x/one/0.tar", "x/two/0.tar", "x/twofold/0.tar")
    assert stems(source("webdataset", [tmp_path / "x/one", tmp_path / "x/two/*.tar"])) == ["one/0", "two/0"]
    assert stems(source("webdataset", [tmp_path / "x/two", tmp_path / "x/twofold/0.tar"])) == ["two/0", "twofold/0"]
    assert stems(source("webdataset", [tmp_path / "x/one", tmp_path / "x/one/0.tar"])) == ["0"]  # once


def test_stems_of_paths_that_share_nothing(tmp_path):
    put(tmp_path, "0.tar")
    memory = files.fsspec.filesystem("memory")
    memory.pipe_file("/tars/0.tar", b"123")
    found = find(source("webdataset", ["memory://tars", tmp_path]), (".tar",))
    assert len({one.stem for one in found}) == 2
    memory.rm("/tars", recursive=True)


def test_a_name_with_a_pattern_in_it_is_a_name_when_there_is_such_a_file(tmp_path):
    put(tmp_path, "[v1]/0.tar", "v/0.tar")
    assert [one.path for one in find(source("webdataset", tmp_path / "[v1]"), (".tar",))] == [f"{tmp_path}/[v1]/0.tar"]


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    put(tmp_path, "in/0.tar")
    monkeypatch.chdir(tmp_path)
    (found,) = find(source("webdataset", "in"), (".tar",))
    assert found.path == f"{tmp_path}/in/0.tar" and found.stem == "0"


def test_a_named_file_needs_no_ending(tmp_path):
    put(tmp_path, "data.json", "other")
    found = find(source("jsonl", [tmp_path / "data.json", tmp_path / "other"]), (".jsonl",))
    assert [one.stem for one in found] == ["data.json", "other"]


def test_links_to_files_are_followed_and_others_refused(tmp_path):
    put(tmp_path, "blobs/abc", "elsewhere/0.tar")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.tar").symlink_to("../blobs/abc")
    of = source("webdataset", tmp_path / "in")
    assert [(one.path, one.size) for one in find(of, (".tar",))] == [(f"{tmp_path}/in/0.tar", 5)]
    (tmp_path / "in/more").symlink_to("../elsewhere")
    with pytest.raises(DataError, match="in/more is a link to a folder, which is not searched"):
        find(of, (".tar",))
    (tmp_path / "in/more").unlink()
    (tmp_path / "in/gone.tar").symlink_to("nothing")
    with pytest.raises(DataError, match=r"in/gone\.tar is a link to nothing, which does not exist, not a file"):
        find(of, (".tar",))


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("laoin", "{}/ has laion, but no laoin"),
        ("laion", "{}/laion has no file that ends with .tar or .tar.gz: it has a.txt, b.txt, c.txt and 1 more"),
        ("laion/*.tgz", "{}/laion has no *.tgz: it has a.txt, b.txt, c.txt and 1 more"),
        ("what/is/this", "{}/ has no what: it has empty, laion"),
        ("empty", "{}/empty has no file that ends with .tar or .tar.gz: it is empty"),
    ],
)
def test_nothing_there(tmp_path, path, hint):
    put(tmp_path, *(f"laion/{name}.txt" for name in "abcd"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        find(source("webdataset", tmp_path / path), (".tar", ".tar.gz"))
    assert caught.value.message == f"pipeline.inputs: nothing at {tmp_path}/{path}"
    assert caught.value.hint == hint.format(tmp_path).replace("/ has", " has")


def test_files_that_differ_only_by_ending_are_refused(tmp_path):
    put(tmp_path, "0.tar", "0.tar.gz")
    with pytest.raises(DataError, match=r"0\.tar and .*0\.tar\.gz differ only by their endings"):
        find(source("webdataset", tmp_path), (".tar", ".tar.gz"))


def test_a_folder_that_cannot_be_listed_is_not_left_out(tmp_path, monkeypatch):
    put(tmp_path, "a/0.tar", "b/0.tar")
    scan = os.scandir

    def denied(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match=r"cannot be listed: PermissionError: .*/b"):
        find(source("webdataset", tmp_path), (".tar",))


@pytest.mark.parametrize("path", ["nonesuch://bucket/x", "s3://"])
def test_a_store_that_cannot_be_asked(path):
    with pytest.raises(DataError, match=f"pipeline.inputs: {path} cannot be listed: ValueError"):
        find(source("webdataset", path), (".tar",))


def test_a_name_that_stands_for_a_chain_of_files_is_refused(tmp_path):
    put(tmp_path, "zip::0.tar")
    with pytest.raises(DataError, match="'::' separates the parts of a chain of files"):
        find(source("webdataset", tmp_path), (".tar",))


def test_a_store_that_fails_is_no_damaged_data(monkeypatch):
    memory = files.fsspec.filesystem("memory")
    memory.pipe_file("/tars/0.tar", b"123")

    def denied(self, buffer):
        raise PermissionError("Access Denied")

    with files.open_stream("memory://tars/0.tar") as opened:
        assert opened.read() == b"123"
        opened.seek(0)
        monkeypatch.setattr(MemoryFile, "readinto", denied)
        with pytest.raises(UnreachableError, match=r"tars/0\.tar cannot be read: PermissionError: Access Denied"):
            opened.read()

    def none(*_, **__):
        raise NoCredentialsError

    monkeypatch.setattr(type(memory), "open", none)
    with pytest.raises(UnreachableError, match=r"tars/0\.tar cannot be read: NoCredentialsError: Unable to locate"):
        files.open_stream("memory://tars/0.tar")
    monkeypatch.setattr(type(memory), "find", none)
    with pytest.raises(DataError, match="memory://tars cannot be listed: NoCredentialsError"):
        find(source("webdataset", "memory://tars"), (".tar",))
    monkeypatch.undo()
    memory.rm("/tars", recursive=True)


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.open_stream(f"{tmp_path}/gone")


# --- keys ---


@given(TEXTS)
@example("")
@example("../../etc/passwd")
@example("/a//b/")
@example("00012.tar")
@example("\ud800\udcff")
def test_keys_are_safe(text):
    key = safe_key(text)
    assert key and set(key) <= SAFE and len(key) <= LONGEST_KEY
    assert not OUTER_SLASH.search(key), "neither absolute nor with empty names"
    assert safe_key(text) == key


@given(TEXTS.filter(lambda text: 0 < 3 * len(text.encode(errors="surrogatepass")) <= LONGEST_KEY))
def test_a_key_that_need_not_be_shortened_says_its_text(text):
    assert unquote(safe_key(text), errors="surrogatepass") == text


@given(st.lists(st.tuples(st.text("ab/.-", max_size=5), st.text("ab/.-", max_size=5)), unique=True, min_size=2))
def test_keys_of_records_differ(names):
    assert len({record_key(*one) for one in names}) == len(names)


def test_keys_as_they_are_known():
    assert record_key("00012", "000120005") == "00012/000120005"
    assert record_key("a/b", "c/d.e") == "a/b/c%2Fd%2Ee"
    assert safe_key("\xe9 1~") == "%C3%A9%201%7E"
    long = safe_key("x" * 81)
    assert long.startswith("x" * 63 + "-") and len(long) == 80 and long != safe_key("x" * 82)


# --- paths that entries name ---


@pytest.mark.parametrize("folder", ["/data/images", "/data/images/", "s3://bucket/images", "/"])
@pytest.mark.parametrize("name", ["a.jpg", "./sub/a.jpg", "sub/./a b.jpg", "%2E.jpg", "..a.jpg"])
def test_paths_inside(folder, name):
    whole = f"{folder.rstrip('/')}/{name.removeprefix('./').replace('/./', '/')}"
    assert inside(folder, name) == whole
    assert inside(folder, whole) == whole, "one that begins with the folder is in it"


@pytest.mark.parametrize(
    "name",
    [
        "../a.jpg",
        "sub/../../a.jpg",
        "/etc/passwd",
        "/data/imagesque/a.jpg",
        "/data/images/../a.jpg",
        "/data/images",
        "s3://other/a.jpg",
        "http://host/a.jpg",
        "a::b",
        "",
        ".",
        "sub/",
        "a\0b",
    ],
)
def test_paths_outside(name):
    with pytest.raises(DataError, match=r"^unsafe name: .* is not a path inside /data/images$"):
        inside("/data/images", name)


def test_paths_that_no_file_can_have():
    with pytest.raises(DataError, match=r"^unsafe name: 'a{100}\.\.\.' has 256 bytes"):
        inside("/data", "a" * 256)
    with pytest.raises(DataError, match=r"^unsafe name: .* has 1200 bytes"):
        inside("/data", "a/b/" * 299 + "abcd")
    with pytest.raises(DataError, match=r"^not UTF-8: the path '\\ud800'"):
        inside("/data", "\ud800")
    assert inside("/data", "a" * 255)


# --- settings ---


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"format": "webdataset", "columns": {"key": "id"}}, "columns.key has no effect with format=webdataset"),
        ({"format": "folders", "columns": {"caption": "c"}}, "columns.caption has no effect with format=folders"),
        ({"format": "jsonl", "class_names": "x.json"}, "class_names has no effect with format=jsonl"),
    ],
)
def test_settings_that_no_reader_heeds_are_refused(values, fault):
    with pytest.raises(ValidationError, match=f"inputs.generation.{fault}"):
        PipelineConfig.model_validate({"inputs": {"generation": {"path": "x", **values}}})
