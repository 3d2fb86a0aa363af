"""Shards in an object store, over the real S3 protocol on loopback."""

import numpy as np
import pytest

from data_pipelines.inputs import formats
from data_pipelines.inputs.versions import check_unchanged
from janus_dist.config.pipeline import InputConfig
from janus_dist.data.loader import read_payloads
from janus_dist.data.manifest import ShardSet
from janus_dist.data.sample import decode
from janus_dist.errors import DataError
from janus_dist.inspection import inspect
from janus_dist.inspection.lint import Scope, lint
from janus_dist.storage import fs
from tests import shard_sets
from tests.moto_s3 import moto_bucket
from tests.shard_sets import all_records
from tests.unit.data.test_shard import as_stored, make, open_set

# the S3 client leaves its connections and loops to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def bucket(monkeypatch):
    with moto_bucket(monkeypatch, "shards") as url:
        yield url


@pytest.mark.parametrize("stream", ["understanding", "generation"])
def test_a_shard_set_is_written_and_read(bucket, tmp_path, stream):
    samples = make(stream, 6)
    remote, local = open_set(f"{bucket}/{stream}", stream, samples), open_set(tmp_path, stream, samples)
    assert remote.manifest.digest == local.manifest.digest
    payloads = read_payloads(remote, np.array([5, 0, 3]), all_records(remote)[[5, 0, 3]])
    for place, payload in zip((5, 0, 3), payloads, strict=True):
        assert as_stored(decode(stream, payload)) == as_stored(samples[place][1])


def test_a_shard_set_is_looked_at(bucket, tmp_path):
    words = shard_sets.tokenizer(tmp_path)
    root, stream = f"{bucket}/root", "understanding"
    shard_sets.write_set(f"{root}/{stream}", stream, words, *[shard_sets.several(stream, words, 3)])
    (folder,) = inspect.shard_set_folders(root)
    assert folder == f"{root}/{stream}" and inspect.shard_set_folders(folder) == [folder]
    shards = ShardSet.open(folder)
    assert [found.key for found in inspect.read_samples(shards, [2])] == ["understanding-00002"]
    assert inspect.number_of_key(shards, "understanding-00001") == 1
    assert list(inspect.quarantine(folder)) == [] and inspect.stats(folder) is None
    for scope in (Scope(deep=True), Scope(samples=2)):
        assert lint(folder, shards.manifest, words, None, scope).faults == []
    fs.remove(f"{folder}/shard-00000.tar")
    assert [fault.what for fault in lint(folder, shards.manifest, words, None, Scope()).faults] == [
        "the tar is missing"
    ]


def test_files_of_a_store(bucket):
    path = f"{bucket}/folder/file"
    assert fs.size(path) is None and fs.names(f"{bucket}/folder") == []
    fs.write_whole(path, b"content")
    assert (fs.size(path), fs.read(path), fs.names(f"{bucket}/folder")) == (7, b"content", ["file"])
    with fs.open_binary(path) as file:
        file.seek(3)
        assert file.read(4) == b"tent"
    fs.remove(path)
    assert fs.size(path) is None
    with pytest.raises(FileNotFoundError):
        fs.read(path)


def test_a_source_in_a_store_that_changes_is_named(bucket):
    """What a listing says of a file is what a look at it says, so that nothing seems to change by itself."""
    path = f"{bucket}/in/a.jsonl"
    fs.write_whole(path, b'{"text": "a"}\n')
    (unit,) = formats.units(InputConfig(format="jsonl", path=f"{bucket}/in", stream="text"), 10)
    assert unit.versions == ((path, fs.version(path)),)
    check_unchanged([unit])
    fs.write_whole(path, b'{"text": "a"}\n')
    check_unchanged([unit])
    fs.write_whole(path, b'{"text": "b"}\n')
    with pytest.raises(
        DataError, match=r"s3://shards/in/a\.jsonl has changed since the work was cut: it had 14 bytes, ETag"
    ):
        check_unchanged([unit])
