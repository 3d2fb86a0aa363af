"""Readers of inputs in an object store, over the real S3 protocol on loopback."""

import gzip
import hashlib
import io
import json
from collections import Counter

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from data_pipelines.inputs import files, formats
from data_pipelines.record import Record
from janus_dist.errors import DataError
from tests.inputs import entries, source, tar
from tests.unit.storage.test_s3 import bucket  # noqa: F401 - a fixture

# the S3 client leaves its connections and loops to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore")

MEMBERS = [(f"{number}.{ending}", f"{ending} {number}".encode()) for number in range(20) for ending in ("jpg", "txt")]
LINES = b"".join(
    json.dumps({"image": f"{number}.jpg", "caption": "x" * number}).encode() + b"\n" for number in range(200)
)


def parquet() -> bytes:
    buffer = io.BytesIO()
    images = [{"bytes": bytes([number]) * 5000, "path": None} for number in range(40)]
    pq.write_table(pa.table({"image": images, "caption": ["c"] * 40}), buffer, row_group_size=8)
    return buffer.getvalue()


FILES = {
    "webdataset": {"a/0.tar": tar(MEMBERS), "b/0.tar.gz": gzip.compress(tar(MEMBERS))},
    "parquet": {"en/0.parquet": parquet(), "de/0.parquet": parquet()},
    "jsonl": {"0.jsonl": LINES, "1.jsonl.gz": gzip.compress(LINES)},
    "folders": {"tench/1.jpg": b"1", "tench/2.jpg": b"2", "great_white_shark/1.jpg": b"3", "note.txt": b""},
}


@pytest.fixture
def folder(bucket, request) -> str:  # noqa: F811
    """Each test's own, since the server keeps its objects."""
    return f"{bucket}/{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}"


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """How often the store was asked for what."""
    counted: Counter[str] = Counter()
    original = s3fs.S3FileSystem._call_s3

    async def counting(self, method, *given, **values):
        counted[method] += 1
        return await original(self, method, *given, **values)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counting)
    return counted


@pytest.mark.parametrize("form", FILES)
def test_a_store_gives_what_a_disk_gives(folder, tmp_path, form):
    for name, content in FILES[form].items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
        fsspec.filesystem("s3").pipe_file(f"{folder}/in/{name}", content)
    local = entries(source(form, tmp_path / "in"), 10)
    remote = entries(source(form, f"{folder}/in"), 10)
    assert len(local) > 3 and sum(isinstance(one, Record) for one in local) >= 3
    assert repr(remote).replace(folder, str(tmp_path)) == repr(local)
    assert entries(source(form, f"{folder}/in/"), 10) == remote


def test_listing_asks_no_file_for_its_size(folder, calls):
    store = fsspec.filesystem("s3")
    store.pipe({f"{folder}/in/{number:05d}.tar": b"12345" for number in range(120)})
    store.pipe_file(f"{folder}/in2/0.tar", b"123")
    calls.clear()
    for path in (f"{folder}/in", f"{folder}/in/*.tar", f"{folder}/i?/0*.tar"):
        units = formats.units(source("webdataset", path), 10)
        assert [(unit.path, unit.size) for unit in units] == [(f"{folder}/in/{n:05d}.tar", 5) for n in range(120)]
        assert sum(calls.values()) <= 6, calls
        calls.clear()


def test_what_is_not_there(folder):
    fsspec.filesystem("s3").pipe_file(f"{folder}/laion/0.tar", b"123")
    with pytest.raises(DataError) as caught:
        formats.units(source("webdataset", f"{folder}/laoin/*.tar"), 10)
    assert caught.value.message == f"pipeline.inputs: nothing at {folder}/laoin/*.tar"
    assert caught.value.hint == f"{folder} has laion, but no laoin"
    with pytest.raises(
        DataError, match="s3://nonesuch/laion cannot be listed: FileNotFoundError: The specified bucket does not exist"
    ):
        formats.units(source("webdataset", "s3://nonesuch/laion"), 10)


def test_a_new_file_is_seen(folder):
    fsspec.filesystem("s3").pipe_file(f"{folder}/in/0.tar", b"123")
    assert len(formats.units(source("webdataset", f"{folder}/in"), 10)) == 1
    key = f"{folder.removeprefix('s3://shards/')}/in/1.tar"
    boto3.client("s3").put_object(Bucket="shards", Key=key, Body=b"12345")  # behind fsspec's back
    assert len(formats.units(source("webdataset", f"{folder}/in"), 10)) == 2


def test_how_much_is_fetched(folder, monkeypatch):
    fetched: list[int] = []
    original = s3fs.S3File._fetch_range

    def counting(self, start, end):
        fetched.append(end - start)
        return original(self, start, end)

    monkeypatch.setattr(s3fs.S3File, "_fetch_range", counting)
    store = fsspec.filesystem("s3")
    store.pipe_file(f"{folder}/in/0.tar", tar([(f"{number}.jpg", bytes(1_000_000)) for number in range(20)]))
    of = source("webdataset", f"{folder}/in")
    assert len(entries(of)) == 20 and len(fetched) <= 4 and sum(fetched) <= 21_000_000

    table = io.BytesIO()
    columns = {"image": [bytes(100_000)], "embedding": [[0.0] * 12_500], "url": ["x" * 100], "caption": ["c"]}
    photos = pa.table({name: 200 * value for name, value in columns.items()})
    pq.write_table(photos, table, row_group_size=50, compression="none", use_dictionary=False)
    store.pipe_file(f"{folder}/in/0.parquet", table.getvalue())
    of = source("parquet", f"{folder}/in")
    fetched.clear()
    units = formats.units(of, 100)
    assert len(units) == 2 and sum(fetched) <= 2 * files.BUFFER_BYTES
    fetched.clear()
    assert len(list(formats.records(of, units[0]))) == 100
    assert sum(fetched) < 18_000_000 and len(fetched) < 20, "half of the images, and nothing of what is not used"

    store.pipe_file(f"{folder}/in/0.jsonl", b'{"text": "0123456789"}\n' * 100_000)
    of = source("jsonl", f"{folder}/in")
    unit = formats.units(of, 1000)[50]
    fetched.clear()
    assert 850 < len(list(formats.records(of, unit))) <= 1000
    assert sum(fetched) < files.BUFFER_BYTES + 2 * unit.size, "not megabytes of what other ranges read"
