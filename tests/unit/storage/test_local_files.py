"""Files and folders that are complete or absent: their content after a write, and after an interrupted write."""

import os

import pytest

from janus_dist.storage.local import temporary_file, whole_folder, write_whole


def listed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_is_written_with_its_folder_and_over_an_older_one(tmp_path):
    path = tmp_path / "a/b/file"
    for content, expected in (("caf\u00e9\r\n", b"caf\xc3\xa9\r\n"), (b"\xff", b"\xff")):
        write_whole(path, content)
        assert path.read_bytes() == expected
    assert listed(tmp_path) == ["a", "a/b", "a/b/file"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_whole(tmp_path / "file", "old")

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "file", "new")
    assert listed(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


def test_two_writers_of_a_name_have_different_temporary_files(tmp_path):
    with temporary_file(tmp_path / "file", b"1") as first, temporary_file(tmp_path / "file", b"2") as second:
        assert (first.read_bytes(), second.read_bytes()) == (b"1", b"2")
    assert listed(tmp_path) == []


def test_a_folder_appears_with_all_that_was_written_into_it(tmp_path):
    target = tmp_path / "a/folder"
    with whole_folder(target) as temporary:
        (temporary / "file").write_text("new")
        assert not target.exists() and temporary.parent == target.parent
    assert listed(tmp_path) == ["a", "a/folder", "a/folder/file"]


def test_a_folder_that_is_not_empty_is_only_replaced_where_that_is_asked_for(tmp_path):
    target = tmp_path / "folder"
    write_whole(target / "old", "old")
    with pytest.raises(OSError, match="not empty"), whole_folder(target) as temporary:
        (temporary / "new").write_text("new")
    assert listed(tmp_path) == ["folder", "folder/old"]
    with whole_folder(target, replace=True) as temporary:
        (temporary / "new").write_text("new")
    assert listed(tmp_path) == ["folder", "folder/new"]


def test_an_interrupted_folder_leaves_the_old_one_and_no_other(tmp_path):
    target = tmp_path / "folder"
    write_whole(target / "old", "old")
    with pytest.raises(KeyboardInterrupt), whole_folder(target, replace=True) as temporary:
        (temporary / "new").write_text("new")
        raise KeyboardInterrupt
    assert listed(tmp_path) == ["folder", "folder/old"]
