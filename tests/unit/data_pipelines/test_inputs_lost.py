"""What a damage costs: one reject stands for all records behind it, and a run is judged by their number."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import stream
from janus_dist.errors import DataError
from janus_dist.inspection.inspect import quarantine
from janus_dist.inspection.lint import Scope, lint
from tests.alone import without_ray, work_on
from tests.images import noise, png
from tests.inputs import ENDS, member, read, source

TEXTS = [np.random.default_rng(row).bytes(1_500).hex() for row in range(100)]
LENIENT = "pipeline.max_bad_share=1"
PAIR = ("png", "txt")
DAMAGED_GROUPS = [{0}, {0, 2}]


def parquet(folder, damaged):
    """100 rows in four groups, of which some are damaged at their beginning."""
    path = folder / "a.parquet"
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=25, write_page_checksum=True, **options)
    content = bytearray(path.read_bytes())
    for group in damaged:
        place = pq.read_metadata(path).row_group(group).column(0).data_page_offset
        content[place + 5000 : place + 5010] = bytes(10)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("damaged", DAMAGED_GROUPS)
def test_a_row_group_is_counted(tmp_path, damaged):
    parquet(tmp_path, damaged)
    records, rejects = read(source("parquet", tmp_path))
    assert len(records) == 100 - 25 * len(damaged)
    assert [reject.records for reject in rejects] == [25] * len(damaged)


def test_a_file_without_a_footer_stands_for_as_many_rows_as_others_have(tmp_path):
    content = parquet(tmp_path, ()).read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[: len(content) // 2])
    (tmp_path / "c.parquet").write_bytes(b"")
    records, rejects = read(source("parquet", tmp_path))
    assert len(records) == 100 and [reject.records for reject in rejects] == [100, 100]


def tarred(number):
    return b"".join(member(f"{place:03d}.jpg", bytes(2_000)) for place in range(number))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tarred(30) + b"x" * 512 + tarred(10) + ENDS, 10),
        (tarred(30) + ENDS + tarred(60) + ENDS, 60),
        (tarred(30), 1),
        (b"x" * 250_000, 5),
        (b"", 1),
    ],
    ids=["header", "two tars", "no end", "no tar", "nothing"],
)
def test_the_rest_of_a_tar_is_reckoned_by_what_came_before(tmp_path, content, expected):
    (tmp_path / "a.tar").write_bytes(content)
    _, rejects = read(source("webdataset", tmp_path))
    assert rejects[-1].records == pytest.approx(expected, abs=1)


def test_other_faults_of_a_tar_stand_for_one(tmp_path):
    (tmp_path / "a.tar").write_bytes(member("../0.jpg", b"a") + tarred(30) + ENDS)
    records, (reject,) = read(source("webdataset", tmp_path))
    assert len(records) == 30 and reject.records == 1


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_tar_that_was_cut_is_reckoned_by_the_size_of_the_others(tmp_path, ending):
    rng = np.random.default_rng(0)
    for number in range(3):
        content = b"".join(member(f"{place:03d}.jpg", rng.bytes(2_000)) for place in range(100)) + ENDS
        content = gzip.compress(content) if ending == "tar.gz" else content
        (tmp_path / f"{number}.{ending}").write_bytes(content[: len(content) // (1 if number else 3)])
    records, (reject,) = read(source("webdataset", tmp_path))
    assert reject.records == pytest.approx(300 - len(records), abs=2) and not reject.at_least
    assert "lost by the mean size of the other files" in reject.reason


def test_tars_whose_writer_left_out_the_end_are_not_taken_for_cut_ones(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(tarred(10 + 40 * number))
    records, rejects = read(source("webdataset", tmp_path))
    assert len(records) == 150 and [(reject.records, reject.at_least) for reject in rejects] == [(1, True)] * 3


def test_a_tar_that_was_cut_is_counted_by_the_statistics_of_img2dataset(tmp_path):
    (tmp_path / "00000.tar").write_bytes(tarred(30)[:30_000])
    (tmp_path / "00000_stats.json").write_text(json.dumps({"count": 40, "successes": 30}))
    records, (reject,) = read(source("webdataset", tmp_path))
    assert len(records) + reject.records == 30 and not reject.at_least


def test_a_tar_that_was_cut_alone_says_that_nothing_tells_how_much_is_lost(tmp_path, monkeypatch, caplog):
    without_ray(monkeypatch)
    photo = png(noise(20, 20))
    content = b"".join(member(f"{place}.{end}", photo if end == "png" else b"c") for place in range(9) for end in PAIR)
    (tmp_path / "00000.tar").write_bytes(content[: len(content) // 2])
    of = work_on("understanding", tmp_path / "00000.tar", tmp_path / "data", LENIENT, form="webdataset")
    manifest = stream.run(of)
    (reject,) = quarantine(of.folder)
    assert manifest.quarantined == reject.records == 1
    assert reject.reason.endswith("how many records are lost behind that is unknown, 1 is counted")
    assert "understanding: 1 files end too early and lack an unknown number of records" in caplog.text


def test_a_gzipped_file_of_lines_that_was_cut_is_reckoned_by_the_size_of_the_others(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        text = b"".join(json.dumps({"text": rng.bytes(500).hex()}).encode() + b"\n" for _ in range(200))
        content = gzip.compress(text)
        (tmp_path / f"{number}.jsonl.gz").write_bytes(content[: len(content) // (1 if number else 3)])
    records, (reject,) = read(source("jsonl", tmp_path))
    assert len(records) + reject.records == pytest.approx(600, abs=9)


@pytest.mark.parametrize("form", ["jsonl", "webdataset"])
def test_the_rest_of_a_compressed_file_is_reckoned_by_what_came_before(tmp_path, form):
    number, rng = 400, np.random.default_rng(0)
    if form == "jsonl":
        parts = [json.dumps({"text": rng.bytes(1_000).hex()}).encode() + b"\n" for _ in range(number)]
        path = tmp_path / "a.jsonl.gz"
    else:
        parts = [member(f"{place:03d}.jpg", rng.bytes(1_000)) for place in range(number)]
        path = tmp_path / "a.tar.gz"
    first, second = (gzip.compress(b"".join(half)) for half in (parts[: number // 2], parts[number // 2 :]))
    path.write_bytes(first + b"x" * len(second))
    records, rejects = read(source(form, path))
    assert 0 < len(records) < number
    assert len(records) + sum(reject.records for reject in rejects) == pytest.approx(number, rel=0.05)


def test_a_compressed_file_that_is_none_is_reckoned_by_usual_lines(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"<html>" * 5_000)
    assert [reject.records for reject in read(source("jsonl", tmp_path))[1]] == [pytest.approx(30, abs=9)]


def test_a_run_is_judged_by_the_records_that_are_lost(tmp_path, monkeypatch):
    without_ray(monkeypatch)
    path = parquet(tmp_path, {1})
    with pytest.raises(DataError, match=r"text: 25 of \d+ records are bad, more than pipeline\.max_bad_share=0\.24"):
        stream.run(work_on("text", path, tmp_path / "data", "pipeline.max_bad_share=0.24", form="parquet"))
    of = work_on("text", path, tmp_path / "data", "pipeline.max_bad_share=0.25", form="parquet")
    manifest = stream.run(of)
    assert manifest.quarantined == 25
    (reject,) = quarantine(of.folder)
    assert reject.records == 25 and reject.kind == "damaged"
    assert lint(of.folder, manifest, of.tokenizer, None, Scope()).faults == []
