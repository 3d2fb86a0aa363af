"""Manifests: their identity, and shard sets that do not agree with them."""

import dataclasses
import json

import numpy as np
import pytest

from janus_dist.data.manifest import Manifest, ShardSet
from janus_dist.errors import DataError
from tests.unit.test_shard import make, open_set


@pytest.fixture
def folder(tmp_path):
    open_set(tmp_path, "text", make("text", 5, seed=1), make("text", 3, seed=2))
    return tmp_path


def test_a_manifest_comes_back(folder):
    manifest = Manifest.load(folder)
    assert (manifest.samples, manifest.stream, manifest.settings) == (8, "text", {"a": 1})
    manifest.save(folder / "copy")
    assert Manifest.load(folder / "copy") == manifest
    assert (folder / "copy/manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()


def test_the_digest_follows_the_content_and_not_the_layout(folder):
    manifest = Manifest.load(folder)
    path = folder / "manifest.json"
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert Manifest.load(folder).digest == manifest.digest
    assert dataclasses.replace(manifest, samples=9).digest != manifest.digest


def test_records_of_all_shards_stand_one_behind_the_other(folder):
    found = ShardSet.open(folder)
    assert len(found.records) == 8 and found.first_samples.tolist() == [0, 5]
    assert [found.shard_of(sample) for sample in range(8)] == [0] * 5 + [1] * 3
    assert found.path(1) == f"{folder}/shard-00001.tar"
    assert int(found.records["tokens"].sum()) == found.manifest.tokens


def test_no_manifest(tmp_path):
    with pytest.raises(DataError, match=r"no .*manifest\.json") as caught:
        ShardSet.open(tmp_path / "nothing")
    assert caught.value.hint is not None and "jobs/tokenize.py" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has version None, this program reads 1"),
        ('{"version": 2}', "has version 2, this program reads 1"),
        ('{"version": 1, "shards": []}', "is no manifest of version 1"),
        ('{"version": 1}', "is no manifest of version 1"),
    ],
)
def test_a_file_that_is_no_manifest(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=message):
        Manifest.load(tmp_path)


def test_a_missing_index(folder):
    (folder / "shard-00001.index.npy").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.index\.npy cannot be read"):
        ShardSet.open(folder)


def test_an_index_of_another_run(folder):
    (folder / "shard-00001.index.npy").write_bytes((folder / "shard-00000.index.npy").read_bytes())
    with pytest.raises(DataError, match=r"holds 5 samples .* the manifest says 3"):
        ShardSet.open(folder)


def test_an_index_with_the_right_counts_and_other_bytes(folder):
    path = folder / "shard-00000.index.npy"
    index = np.load(path)
    index["offset"][0] += 4
    np.save(path, index)
    with pytest.raises(DataError, match="has sha256"):
        ShardSet.open(folder)


def test_a_pickled_index_is_not_loaded(folder):
    np.save(folder / "shard-00000.index.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        ShardSet.open(folder)
