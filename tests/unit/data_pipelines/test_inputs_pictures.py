"""Pictures that records name by their paths: which files of a disk are opened, and which never."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from data_pipelines import stream
from data_pipelines.inputs import formats, pictures
from data_pipelines.inputs.pictures import read_picture
from data_pipelines.record import Picture
from janus_dist.errors import DataError
from janus_dist.inspection.inspect import quarantine
from tests.alone import without_ray, work_on
from tests.images import noise, png
from tests.inputs import read, source, tar
from tests.pipelines.conftest import lines

BAD = ("link out", "broken", "pipe", "device", "socket")
SECRET = b"root:secret-of-another-file"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of pictures beside a file that is not one of them."""
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/a/good.png").write_bytes(png(noise(20, 20)))
    (tmp_path / "secret").write_bytes(SECRET)
    return tmp_path / "in"


def make(path: Path, kind: str) -> None:
    match kind:
        case "link out":
            path.symlink_to(path.parents[2] / "secret")
        case "broken":
            path.symlink_to("nowhere")
        case "circle":
            path.symlink_to(path.name)
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind(os.path.relpath(path))
        case "folder":
            path.mkdir()


REASONS = {
    "link out": "unsafe link: {} leads out of ",
    "broken": "missing: {} is a link to nowhere, which does not exist",
    "circle": "missing: {} is a link to bad.png, which does not exist",
    "pipe": "not a file: {} is a pipe",
    "device": "not a file: {} is a device",
    "socket": "not a file: {} is a socket",
    "folder": "not a file: {} is a folder",
}


@pytest.mark.parametrize("kind", list(REASONS))
def test_what_is_not_a_picture_of_the_folder_is_refused_by_name_and_not_opened(folder, monkeypatch, kind):
    make(folder / "a/bad.png", kind)
    monkeypatch.setattr(pictures.fs, "read", lambda path: pytest.fail(f"{path} was opened"))
    with pytest.raises(DataError) as caught:
        read_picture(Picture(f"{folder}/a/bad.png", root=str(folder)))
    assert caught.value.message.startswith(REASONS[kind].format(folder / "a/bad.png"))


def test_a_picture_of_a_gigabyte_is_refused(folder, monkeypatch):
    monkeypatch.setattr(pictures, "LONGEST_FILE_BYTES", 10)
    with pytest.raises(DataError, match="too large: a file of "):
        read_picture(Picture(f"{folder}/a/good.png", root=str(folder)))


@pytest.mark.parametrize("through", ["file", "folder", "root"])
def test_links_inside_the_folder_are_followed(folder, through):
    root = folder
    if through == "root":
        root = folder.parent / "link"
        root.symlink_to(folder)
    elif through == "file":
        (folder / "b.png").symlink_to("a/good.png")
    else:
        (folder / "b").symlink_to("a")
    name = {"file": "b.png", "folder": "b/good.png", "root": "a/good.png"}[through]
    assert read_picture(Picture(f"{root}/{name}", root=str(root))).content == png(noise(20, 20))


def test_a_link_of_a_folder_out_of_the_folder_is_not_followed(folder):
    (folder / "b").symlink_to(folder.parent)
    with pytest.raises(DataError, match="unsafe link: "):
        read_picture(Picture(f"{folder}/b/secret", root=str(folder)))


def test_the_cache_of_hugging_face_counts_with_its_blobs(tmp_path):
    snapshot = tmp_path / "datasets--x/snapshots/abc"
    (tmp_path / "datasets--x/blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (tmp_path / "datasets--x/blobs/123").write_bytes(b"x")
    (snapshot / "a.png").symlink_to("../../blobs/123")
    assert read_picture(Picture(f"{snapshot}/a.png", root=str(snapshot))).content == b"x"


def test_bad_files_are_a_bad_record_each_and_none_of_their_bytes_is_kept(folder, tmp_path, monkeypatch):
    without_ray(monkeypatch)
    monkeypatch.chdir(folder / "a")
    for kind in BAD:
        make(folder / f"a/{kind}.png", kind)
    lines(folder / "in.jsonl", [{"image": f"a/{name}.png", "caption": "c"} for name in ["good", *BAD]])
    of = work_on("understanding", folder / "in.jsonl", tmp_path / "data", "pipeline.max_bad_share=1")
    manifest = stream.run(of)
    assert (manifest.samples, manifest.quarantined) == (1, 5)
    rejects = list(quarantine(of.folder))
    assert [reject.kind for reject in rejects] == ["unsafe link", "missing", "not a file", "not a file", "not a file"]
    assert all(SECRET[:8] not in reject.head for reject in rejects)


def test_bad_files_in_a_folder_of_classes_are_a_bad_record_each(folder, monkeypatch):
    monkeypatch.chdir(folder / "a")
    for kind in BAD:
        make(folder / f"a/{kind}.png", kind)
    records, rejects = read(source("folders", folder))
    assert len(records) == 6 and not rejects
    kept = []
    for record in records:
        with suppress(DataError):
            kept.append(read_picture(record.pictures[0]).source)
    assert kept == [f"{folder}/a/good.png"]


def test_an_archive_that_is_not_a_file_stops_the_run_before_it_begins(tmp_path):
    (tmp_path / "0.tar").write_bytes(tar([("0.jpg", b"x")]))
    os.mkfifo(tmp_path / "1.tar")
    with pytest.raises(DataError, match=r"1\.tar is a pipe, not a file"):
        formats.units(source("webdataset", tmp_path), 10)


def test_of_a_file_of_records_that_a_link_leads_to_elsewhere_no_bytes_are_shown(folder):
    (folder / "a.jsonl").symlink_to("../secret")
    (folder / "b.jsonl").write_bytes(SECRET)
    _, rejects = read(source("jsonl", folder))
    assert [(reject.key, reject.head) for reject in rejects] == [("a-0", b""), ("b-0", SECRET)]
