"""Folders of classes with their names, and the sources that come with packages."""

import hashlib
import json
import pydoc_data.topics
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from data_pipelines.inputs import formats
from data_pipelines.record import Picture, Record
from janus_dist.data import images
from janus_dist.errors import DataError
from tests.inputs import entries, read, source

CASES = Path(__file__).parents[2] / "cases"
EASY_VQA = "48477c074746e806b4111cc4dde22e4115e00f366c15e4c014ab9694d4507140"
"""sha256 of keys, files, questions in their order and captions, as shards of earlier versions hold them."""


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")


# --- folders ---


def test_names_of_folders_are_captions(tmp_path):
    put(
        tmp_path,
        "great_white_shark/2.JPEG",
        "great_white_shark/1.png",
        "tench/images/1.jpeg",
        "tench/.hidden.jpg",
        "tench/4",
    )
    records, rejects = read(source("folders", tmp_path))
    shark, tench = tmp_path / "great_white_shark", tmp_path / "tench"
    assert not rejects and records == [
        Record(
            "great_white_shark/1%2Epng", f"{shark}/1.png", (Picture(f"{shark}/1.png"),), caption="great white shark"
        ),
        Record(
            "great_white_shark/2%2EJPEG", f"{shark}/2.JPEG", (Picture(f"{shark}/2.JPEG"),), caption="great white shark"
        ),
        Record("tench/4", f"{tench}/4", (Picture(f"{tench}/4"),), caption="tench"),
        Record(
            "tench/images/1%2Ejpeg", f"{tench}/images/1.jpeg", (Picture(f"{tench}/images/1.jpeg"),), caption="tench"
        ),
    ]


def test_units_are_slices_of_one_class(tmp_path):
    put(tmp_path, *(f"a/{number}.jpg" for number in range(5)), "b/0.jpg")
    units = formats.units(source("folders", tmp_path), 2)
    assert [(unit.path, unit.names, unit.records, unit.size) for unit in units] == [
        (f"{tmp_path}/a", ("0.jpg", "1.jpg"), 2, 10),
        (f"{tmp_path}/a", ("2.jpg", "3.jpg"), 2, 10),
        (f"{tmp_path}/a", ("4.jpg",), 1, 5),
        (f"{tmp_path}/b", ("0.jpg",), 1, 5),
    ]


def test_what_is_no_image_is_rejected(tmp_path):
    put(tmp_path, "a/1.jpg", "a/Thumbs.db", "a/x/boxes.txt", "README.md")
    records, rejects = read(source("folders", tmp_path))
    assert len(records) == 1
    assert [(reject.source.removeprefix(f"{tmp_path}/"), reject.key, reject.reason) for reject in rejects] == [
        ("README.md", "README%2Emd", "no class: it is not in the folder of a class"),
        ("a/Thumbs.db", "a/Thumbs%2Edb", "not an image: its name ends with .db"),
        ("a/x/boxes.txt", "a/x/boxes%2Etxt", "not an image: its name ends with .txt"),
    ]


def test_several_roots_with_the_same_classes(tmp_path):
    put(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "val/b/1.jpg", "val/note.txt")
    found = entries(source("folders", [tmp_path / "train", tmp_path / "val"]))
    assert [(one.key, getattr(one, "caption", None)) for one in found] == [
        ("train/a/1%2Ejpg", "a"),
        ("val/note%2Etxt", None),
        ("val/a/1%2Ejpg", "a"),
        ("val/b/1%2Ejpg", "b"),
    ]


def test_a_pattern_chooses_classes(tmp_path):
    put(tmp_path, "n01/1.jpg", "n01/2.jpg", "n02/1.jpg", "x/1.jpg")
    assert [record.caption for record in read(source("folders", tmp_path / "n*"))[0]] == ["n01", "n01", "n02"]


@pytest.mark.parametrize(
    "names",
    [
        json.dumps({"n01": "tench, Tinca tinca", "n02": "great_white_shark", "n03": "unused"}),
        json.dumps({"0": ["n01", "tench"], "1": ["n02", "great_white_shark"]}),
        json.dumps({"n01": [0, "tench"], "n02": [1, "great white shark"]}),
        "n01 tench, Tinca tinca\n\nn02 great white shark, white shark\r\n",
        "n01\ttench\nn02\tgreat white shark",
        "\ufeff" + json.dumps({"n01": "tench", "n02": "great white shark"}),
    ],
)
def test_class_names(tmp_path, names):
    put(tmp_path, "in/n01/1.jpg", "in/n02/1.jpg")
    (tmp_path / "names").write_text(names)
    of = source("folders", tmp_path / "in", class_names=str(tmp_path / "names"))
    assert [record.caption for record in read(of)[0]] == ["tench", "great white shark"]


def test_a_class_without_a_name_stops_the_run(tmp_path):
    put(tmp_path, "in/n01/1.jpg", "in/n02/1.jpg", "in/n03/1.jpg")
    (tmp_path / "names.json").write_text('{"n01": "tench"}')
    with pytest.raises(DataError, match=r"names\.json has no name for 2 of 3 folders, as n02"):
        formats.units(source("folders", tmp_path / "in", class_names=str(tmp_path / "names.json")), 10)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (b"{", "Expecting property name"),
        (b'{"n01": 5}', "no name for n01 in '5'"),
        (b'{"n01": " "}', "no name for n01"),
        (b"n01", "no name for n01"),
        (b"n01 \xff", "can't decode byte 0xff"),
        (None, "No such file"),
    ],
)
def test_class_names_that_cannot_be_read(tmp_path, names, reason):
    put(tmp_path, "in/n01/1.jpg")
    if names is not None:
        (tmp_path / "names").write_bytes(names)
    with pytest.raises(DataError, match=f"class_names={tmp_path}/names cannot be read: .*{reason}") as caught:
        formats.units(source("folders", tmp_path / "in", class_names=str(tmp_path / "names")), 10)
    assert caught.value.hint == "give JSON {folder: name}, or lines `folder name, other name`"


def test_a_folder_without_folders(tmp_path):
    put(tmp_path, "1.jpg")
    with pytest.raises(DataError, match=f"no folders in {tmp_path}"):
        formats.units(source("folders", tmp_path), 10)


def test_images_with_captions_beside_them_are_no_classes(tmp_path):
    """The hint is followed: what it says reads them."""
    shutil.copytree(CASES / "img2dataset_files_layout", tmp_path / "in")
    with pytest.raises(DataError, match="3 of 3 images have a caption in a file of the same name") as caught:
        formats.units(source("folders", tmp_path / "in"), 10)
    command, _, rest = (caught.value.hint or "").partition("`")[2].partition("`")
    subprocess.run(shlex.split(command), check=True)
    records, rejects = read(source("webdataset", rest.partition("path=")[2]))
    assert not rejects and len(records) == 3
    assert [record.caption for record in records] == [
        path.read_text() for path in sorted((tmp_path / "in/00000").glob("*.txt"))
    ]


def test_every_ending_that_is_taken_decodes_and_no_other_is():
    records, rejects = read(source("folders", CASES / "image_formats"))
    for record in records:
        images.load(Path(record.pictures[0].source).read_bytes())
    assert {Path(record.source).suffix for record in records} == {".jfif", ".mpo", ".JPG"}
    assert [reject.reason for reject in rejects] == ["not an image: its name ends with .jp2"]


# --- sources of packages ---


def test_easy_vqa_is_what_it_was():
    digest, of = hashlib.sha256(), source("easy-vqa")
    records = [record for record in entries(of, 300) if isinstance(record, Record)]
    for record in records:
        (picture,) = record.pictures
        assert picture.content is None and picture.source == record.source and Path(picture.source).is_file()
        values = [record.key, "/".join(Path(picture.source).parts[-3:]), record.turns, record.caption]
        digest.update(json.dumps(values).encode() + b"\n")
    assert len(records) == 4000 and digest.hexdigest() == EASY_VQA


def test_pydoc_is_every_topic_by_name():
    topics = sorted(pydoc_data.topics.topics.items())
    assert entries(source("pydoc"), 7) == [
        Record(f"topic-{number:05d}", f"pydoc_data.topics:{name}", text=text)
        for number, (name, text) in enumerate(topics)
    ]


@pytest.mark.parametrize("form", ["easy-vqa", "pydoc"])
def test_slices_of_packages(form):
    of = source(form)
    units = formats.units(of, 30)
    assert [unit.records for unit in units[:-1]] == [30] * (len(units) - 1)
    assert [len(list(formats.records(of, unit))) for unit in units] == [unit.records for unit in units]
    assert sum(unit.size for unit in units) == units[-1].stop
