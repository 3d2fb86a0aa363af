"""WebDataset tars: whole ones by several writers, and everything that can be wrong with one."""

import bz2
import gzip
import json
import lzma
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from data_pipelines.inputs import entries, formats
from data_pipelines.inputs import tar as tar_reader
from data_pipelines.record import Picture, Record
from janus_dist.inspection.inspect import Reject
from tests.inputs import ENDS, member, read, reasons, source, tar

CASES = Path(__file__).parents[2] / "cases"
META = {"width": 4, "height": 3, "url": "http://x", "exif": {"a": 1}, "caption": "of the JSON"}
THREE = [(f"{key}.{ending}", f"{key}{ending}".encode()) for key in ("000", "001", "002") for ending in ("jpg", "txt")]


def write(tmp_path, content: bytes, name: str = "00012.tar", **values):
    (tmp_path / name).write_bytes(content)
    return source("webdataset", tmp_path / name, **values)


def images(record: Record) -> list[bytes | None]:
    return [picture.content for picture in record.pictures]


# --- what is read ---


@pytest.mark.parametrize("compressed", [False, True])
def test_what_img2dataset_writes(tmp_path, compressed):
    members = [("000120005.jpg", b"jpeg"), ("000120005.json", json.dumps(META).encode()), ("000120005.txt", b"a cat")]
    content = tar(members)
    name = "00012.tar.gz" if compressed else "00012.tar"
    of = write(tmp_path, gzip.compress(content) if compressed else content, name)
    (record,), rejects = read(of)
    place = f"{tmp_path}/{name}:000120005"
    assert not rejects
    assert record == Record(
        key="00012/000120005",
        source=place,
        pictures=(Picture(f"{place}.jpg", b"jpeg"),),
        caption="a cat",
        columns={"width": 4, "height": 3, "url": "http://x"},
    )


def test_a_tar_is_one_unit(tmp_path):
    of = write(tmp_path, tar(THREE))
    (unit,) = formats.units(of, 1)
    assert (unit.path, unit.size, unit.stem) == (
        f"{tmp_path}/00012.tar",
        (tmp_path / "00012.tar").stat().st_size,
        "00012",
    )


def test_what_webdataset_writes(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        for number in range(3):
            values = {"__key__": f"train/{number:03d}", "png": bytes([number]), "txt": f"caption {number}", "cls": 7}
            writer.write(values)
    records, rejects = read(source("webdataset", tmp_path))
    assert not rejects and [record.key for record in records] == [f"0/train%2F{number:03d}" for number in range(3)]
    assert [(images(record), record.caption) for record in records] == [
        ([bytes([number])], f"caption {number}") for number in range(3)
    ]


def test_keys_and_members_are_those_of_webdataset(tmp_path):
    names = ["a.jpg", "a.txt", "dir.v1/b.left.jpg", "dir.v1/b.txt", "./c.JPG", "./c.txt"]
    of = write(tmp_path, tar([(name, name.encode()) for name in names]))
    with (tmp_path / "00012.tar").open("rb") as opened:
        theirs = list(group_by_keys(tar_file_expander([{"url": "it", "stream": opened}])))
    ours = read(of)[0]
    assert [record.source.partition(".tar:")[2] for record in ours] == [
        one["__key__"].removeprefix("./") for one in theirs
    ]
    assert [images(record) for record in ours] == [
        [content for name, content in one.items() if name.endswith("jpg")] for one in theirs
    ]


def test_captions_and_columns_by_name(tmp_path):
    members = [("0.webp", b"x"), ("0.md", "\xe9t\xe9".encode()), ("0.txt", b"not this"), ("0.json", b'{"title": "t"}')]
    of = write(tmp_path, tar(members), columns={"caption": "md"})
    assert read(of)[0][0].caption == "\xe9t\xe9"
    of = write(tmp_path, tar(members), columns={"caption": "title"})
    assert read(of)[0][0].caption == "t"
    of = write(tmp_path, tar([("0.jpg", b"x"), ("0.json", b'{"caption": "c", "image": "../0.jpg"}')]))
    assert (read(of)[0][0].caption, images(read(of)[0][0])) == ("c", [b"x"])


def test_several_images_come_by_their_numbers(tmp_path):
    names = ["k.10.jpg", "k.2.png", "k.jpg", "k.1.webp", f"k.{'9' * 5000}.jpg"]
    of = write(tmp_path, tar([(name, name.encode()) for name in names[:4]]))
    assert images(read(of)[0][0]) == [b"k.jpg", b"k.1.webp", b"k.2.png", b"k.10.jpg"]
    of = write(tmp_path, tar([(name, b"x") for name in names]))
    assert len(images(read(of)[0][0])) == 5


def test_an_image_by_name_leaves_others_out(tmp_path):
    of = write(tmp_path, tar([("0.jpg", b"photo"), ("0.seg.png", b"mask")]), columns={"image": "seg.png"})
    assert images(read(of)[0][0]) == [b"mask"]
    of = write(tmp_path, tar([("0.0.jpg", b"0"), ("0.1.jpg", b"1"), ("0.png", b"mask")]), columns={"image": "jpg"})
    assert images(read(of)[0][0]) == [b"0", b"1"]


@pytest.mark.parametrize("whole", [True, False])
def test_conversations(tmp_path, whole):
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cat."}]
    found = json.dumps(turns if whole else {"conversations": turns, "caption": 5}).encode()
    of = write(tmp_path, tar([("0.json", found), ("0.jpg", b"x"), ("1.json", found)]))
    records, rejects = read(of)
    assert not rejects and [record.turns for record in records] == [(("<image>What?", "A cat."),)] * 2
    assert [images(record) for record in records] == [[b"x"], []], "a conversation needs no image"


def test_an_entry_without_a_caption_is_passed_on(tmp_path):
    (record,), rejects = read(write(tmp_path, tar([("0.jpg", b"x")])))
    assert not rejects and images(record) == [b"x"] and record.caption == ""


def test_members_of_no_use_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_reader, "LONGEST_ENTRY_BYTES", 1000)
    monkeypatch.setattr(entries, "LONGEST_TEXT_BYTES", 100)
    (record,), rejects = read(write(tmp_path, tar([("0.jpg", b"x"), ("0.mp4", bytes(5000)), ("0.txt", b"c")])))
    assert not rejects and record.caption == "c"


def test_folders_and_attributes_are_no_entries(tmp_path):
    attributes = member("", b"19 comment=a words\n", tarfile.XGLTYPE)
    content = attributes + member("dir", kind=tarfile.DIRTYPE) + tar(THREE)
    assert [record.key for record in read(write(tmp_path, content))[0]] == ["00012/000", "00012/001", "00012/002"]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, form):
    long = "x" * 150 + "\xe9"
    with tarfile.open(tmp_path / "00012.tar", "w", format=form) as opened:
        for ending in ("jpg", "txt"):
            info = tarfile.TarInfo(f"{long}.{ending}")
            info.mtime = 1.5
            opened.addfile(info)
    (record,), rejects = read(source("webdataset", tmp_path))
    assert not rejects and record.source.endswith(f":{long}") and len(record.key) == 80


def test_reading_twice_gives_the_same(tmp_path):
    of = write(tmp_path, tar(THREE) + b"rest")
    assert read(of) == read(of)


# --- what is rejected ---


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([member("../0.jpg")], "unsafe name: '../0.jpg'"),
        ([member("/etc/0.jpg")], "unsafe name: '/etc/0.jpg'"),
        ([member("a/../0.jpg")], "unsafe name: 'a/../0.jpg'"),
        ([member("0.jpg", kind=tarfile.SYMTYPE, linkname="/etc/passwd")], "not a file: '0.jpg' is a symbolic link"),
        ([member("0.jpg", kind=tarfile.LNKTYPE, linkname="1.jpg")], "not a file: '0.jpg' is a link"),
        ([member("0.jpg", kind=tarfile.CHRTYPE)], "not a file: '0.jpg' is a device"),
        ([member("0.jpg", kind=tarfile.FIFOTYPE)], "not a file: '0.jpg' is a pipe"),
        ([member("0.jpg", b"x", kind=b"Z")], "not a file: '0.jpg' is of no known type"),
        ([member("README", b"x")], "no key: 'README' has no ending behind a dot"),
        ([member(".0.jpg", b"x")], "no key: '.0.jpg' has no ending behind a dot"),
        ([member("0.jpg", b"x"), member("0.JPG", b"y")], "duplicate key: '0.JPG' occurs twice"),
        ([member("0.txt", b"x"), member("0.mp4", b"y")], "no image: '0' has txt, mp4"),
        ([member("0.jpg", b"x"), member("0.txt", b"ab\xff")], "not UTF-8: '0.txt' at byte 2"),
        ([member("0.jpg", b"x"), member("0.json", b'"\xff"')], "not UTF-8: '0.json' at byte 1"),
        ([member("0.jpg", b"x"), member("0.json", b"{")], "not JSON: '0.json': Expecting property name enclosed"),
        ([member("0.jpg", b"x"), member("0.json", b"[" * 10**5)], "not JSON: '0.json': maximum recursion depth"),
        ([member("0.jpg", b"x"), member("0.json", b"9" * 10**5)], "not JSON: '0.json': Exceeds the limit"),
        ([member("0.jpg", b"x"), member("0.json", b"7")], "roles: a conversation is a list, not int"),
        ([member("0.jpg", b"x"), member("0.json", b'{"caption": {}}')], "not text: the caption is dict"),
        ([member("0\udcff.jpg", b"x")], r"not UTF-8: the name '0\udcff.jpg'"),
    ],
)
def test_an_entry_is_rejected_and_the_others_are_read(tmp_path, members, reason):
    content = tar(THREE)
    good = content[: len(content.rstrip(b"\0")) // 512 * 512 + 512]
    records, (reject,) = read(write(tmp_path, good + b"".join(members) + member("z.jpg", b"z") + ENDS))
    assert [record.key for record in records] == ["00012/000", "00012/001", "00012/002", "00012/z"]
    assert reject.reason.startswith(reason) and reject.key.startswith("00012/")


def test_a_reject_shows_the_first_bytes(tmp_path):
    (reject,) = read(write(tmp_path, tar([("0.jpg", b"x" * 100), ("0.json", b"{")])))[1]
    assert reject.head == b"x" * 64 and reject.source == f"{tmp_path}/00012.tar:0"


def test_an_unusable_member_takes_its_entry_with_it(tmp_path):
    middle = member("000.txt", kind=tarfile.SYMTYPE, linkname="x")
    records, (reject,) = read(write(tmp_path, member("000.jpg", b"x") + middle + member("000.json", b"{}") + ENDS))
    assert not records and (reject.key, reject.reason) == ("00012/000", "not a file: '000.txt' is a symbolic link")


def test_a_key_that_comes_back_is_a_duplicate(tmp_path):
    records, (reject,) = read(write(tmp_path, tar([*THREE, ("000.jpg", b"again")])))
    assert len(records) == 3 and records[0].caption == "000txt"
    assert (reject.key, reject.reason) == ("00012/000", "duplicate key: '000' occurs twice")


def test_large_members_are_rejected_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_reader, "LONGEST_ENTRY_BYTES", 10_000_000)
    members = [("0.jpg", bytes(6_000_000)), ("0.1.jpg", bytes(6_000_000)), ("1.jpg", bytes(50_000_000)), ("2.jpg", b"")]
    of = write(tmp_path, tar(members))
    tracemalloc.start()
    records, rejects = read(of)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [record.key for record in records] == ["00012/2"] and peak < 25_000_000
    assert [reject.reason for reject in rejects] == [
        "too large: '0.1.jpg' has 6000000 bytes after 6000000, at most 10000000 are read",
        "too large: '1.jpg' has 50000000 bytes after 0, at most 10000000 are read",
    ]


def test_long_texts_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "LONGEST_TEXT_BYTES", 100)
    assert reasons(write(tmp_path, tar([("0.jpg", b"x"), ("0.json", bytes(101))]))) == [
        "too large: '0.json' has 101 bytes after 1, at most 100 are read"
    ]


def test_memory_does_not_grow_with_the_tar(tmp_path):
    of = write(tmp_path, tar([(f"{number:03d}.jpg", bytes(1_000_000)) for number in range(60)]))
    (unit,) = formats.units(of, 1)
    tracemalloc.start()
    assert sum(len(images(record)) for record in formats.records(of, unit) if isinstance(record, Record)) == 60
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


# --- damage ---


def cut(tmp_path, content: bytes):
    records, rejects = read(write(tmp_path, content))
    unknown = "; how many records are lost behind that is unknown, 1 is counted"
    return [record.key for record in records], [(reject.key, reject.reason.removesuffix(unknown)) for reject in rejects]


def test_a_tar_that_ends_inside_a_member(tmp_path):
    content = member("000.jpg", b"a") + member("001.txt", b"c") + member("001.jpg", bytes(2000))[:1000]
    assert cut(tmp_path, content) == (
        ["00012/000"],
        [("00012/001", "damaged: the tar ends at byte 3048 inside 001.jpg")],
    )


def test_a_tar_that_ends_inside_a_header(tmp_path):
    content = member("000.jpg", b"a") + member("001.jpg", b"b")[:100]
    assert cut(tmp_path, content) == (
        ["00012/000"],
        [("00012", "damaged: the tar ends at byte 1124 without the block of zeros that ends one")],
    )


def test_a_tar_without_an_end(tmp_path):
    message = "damaged: the tar ends at byte {} without the block of zeros that ends one"
    assert cut(tmp_path, member("000.jpg", b"a")) == (["00012/000"], [("00012", message.format(1024))])
    assert cut(tmp_path, b"") == ([], [("00012", message.format(0))])


def test_a_header_that_is_none(tmp_path):
    keys, ((key, reason),) = cut(tmp_path, member("000.jpg", b"a") + b"x" * 512 + member("002.jpg") + ENDS)
    assert (keys, key) == (["00012/000"], "00012") and reason.startswith("damaged: no member begins at byte 1024: ")


def test_what_follows_the_end(tmp_path):
    keys, ((_, reason),) = cut(tmp_path, tar(THREE) + tar(THREE))
    assert len(keys) == 3 and reason == "damaged: the tar ends at byte 6656, but more than zeros follow"
    assert cut(tmp_path, tar(THREE) + bytes(3_000_000)) == (keys, [])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"0 path=x\n", "a record of 0 bytes"),
        (b"-5 path=x\n", "a record of -5 bytes"),
        (b"99 path=x\n", "a record of 99 bytes"),
        (b"path", "invalid literal"),
        (b"11 size=-5\n", "a size of -5 bytes"),
        (b"11 size=ab\n", "invalid literal"),
    ],
)
def test_attributes_that_are_none(tmp_path, record, reason):
    _, ((_, found),) = cut(tmp_path, member("x", record, tarfile.XHDTYPE) + member("0.jpg", b"a") + ENDS)
    assert found.startswith(f"damaged: no attributes at byte 0: {reason}")


def test_attributes_that_would_fill_memory(tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**33
    _, ((_, reason),) = cut(tmp_path, header.tobuf(tarfile.GNU_FORMAT) + ENDS)
    assert reason == "damaged: the header at byte 0 has 8589934592 bytes, at most 65536 are read"


@pytest.mark.parametrize("info", [{"type": tarfile.GNUTYPE_SPARSE}, {"size": -1024}])
def test_members_without_a_length(tmp_path, info):
    header = tarfile.TarInfo("0.jpg")
    for name, value in info.items():
        setattr(header, name, value)
    _, ((_, reason),) = cut(tmp_path, header.tobuf(tarfile.GNU_FORMAT) + ENDS)
    assert reason == "damaged: the member at byte 0 is sparse, or has no size"


def test_a_size_beyond_the_end(tmp_path):
    header = tarfile.TarInfo("0.jpg")
    header.size = 2**62
    assert cut(tmp_path, header.tobuf(tarfile.GNU_FORMAT) + ENDS)[1] == [
        ("00012/0", "damaged: the tar ends at byte 1536 inside 0.jpg")
    ]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda whole: whole[: len(whole) // 2], "Compressed file ended before the end-of-stream marker was reached"),
        (lambda whole: whole[:-8] + bytes(8), "CRC check failed"),
        (lambda whole: whole[:10] + b"\xff" + whole[11:], "Error -3 while decompressing data"),
        (lambda whole: b"not gzip", "Not a gzipped file"),
    ],
)
def test_damaged_gzip(tmp_path, damage, reason):
    noise = [
        (f"{number}.jpg", bytes((number * 97 + place * place) % 251 for place in range(5000))) for number in range(9)
    ]
    of = write(tmp_path, damage(gzip.compress(tar(noise))), "00012.tgz")
    records, (reject,) = read(of)
    assert reject.reason.startswith("damaged: ") and reason in reject.reason
    assert [record.key for record in records] == [f"00012/{number}" for number in range(len(records))]
    assert all(images(record) == [noise[number][1]] for number, record in enumerate(records))


# --- tars of other makers ---


def test_notes_of_macos_are_left_aside():
    records, rejects = read(source("webdataset", CASES / "tar_appledouble"))
    assert not rejects and len(records) >= 2 and all(len(record.pictures) == 1 and record.caption for record in records)


def test_more_notes_of_macos(tmp_path):
    names = ["0.jpg", "._0.jpg", "a/.DS_Store", "__MACOSX/0.jpg", "__MACOSX/a/._0.txt", "0.txt"]
    (record,), rejects = read(write(tmp_path, tar([(name, name.encode()) for name in names])))
    assert not rejects and (images(record), record.caption) == ([b"0.jpg"], "0.txt")


def test_a_gzipped_tar_is_known_by_its_content(tmp_path):
    records, rejects = read(source("webdataset", CASES / "tar_gz_named_tar"))
    assert records and not rejects
    assert len(read(write(tmp_path, tar(THREE), "plain.tgz"))[0]) == 3


@pytest.mark.parametrize(("compress", "name"), [(bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_another_codec_is_named(tmp_path, compress, name):
    records, (reject,) = read(write(tmp_path, compress(tar(THREE) * 9)))
    assert not records and reject.reason.startswith(f"not a tar: the file is compressed by {name}; decompress it")


def test_members_of_one_key_must_lie_together():
    torn = [reason for reason in reasons(source("webdataset", CASES / "tar_unsorted")) if "torn apart" in reason]
    assert torn and all("members of one key must be adjacent, as `tar --sort=name` writes" in one for one in torn)


@settings(max_examples=300)
@given(st.data())
def test_any_bytes_become_records_and_rejects(tmp_path_factory, data):
    content = bytearray(tar([*THREE, ("003.json", b'{"a": 1}'), ("x" * 120 + ".jpg", b"y")]))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)))):
        content[place] = value
    length = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    of = write(tmp_path_factory.getbasetemp(), bytes(content[:length]), "fuzz.tar")
    records, rejects = read(of)
    assert all(isinstance(one, Record | Reject) for one in [*records, *rejects]) and records + rejects
    if length < len(content.rstrip(b"\0")):
        assert rejects, "no truncation is silent"
