"""Manifests: their identity, and shard sets that do not match them."""

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest

from janus_dist.data.manifest import Manifest, ShardSet, ShardTable
from janus_dist.errors import DataError
from tests.shard_sets import all_records
from tests.unit.data.test_shard import make, open_set


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
    assert len(all_records(found)) == 8 and found.manifest.shards.first_samples.tolist() == [0, 5, 8]
    assert found.shard_of(np.arange(8)).tolist() == [0] * 5 + [1] * 3
    assert found.path(1) == f"{folder}/shard-00001.tar"
    assert int(all_records(found)["tokens"].sum()) == found.manifest.tokens


def test_no_manifest(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json does not exist") as caught:
        ShardSet.open(tmp_path / "nothing")
    assert caught.value.hint is not None and "jobs/prepare.py" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has version None, this program reads 2"),
        ('{"version": 1}', "has version 1, this program reads 2"),
        ('{"version": 2, "shards": []}', "is not a manifest of version 2"),
        ('{"version": 2}', "is not a manifest of version 2"),
    ],
)
def test_a_file_that_is_no_manifest(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=message):
        Manifest.load(tmp_path)


def test_a_table_comes_back(folder):
    table = Manifest.load(folder).shards
    again = ShardTable.from_parquet(table.to_parquet())
    assert again == table and list(again) == list(table) == [table[0], table[1]]
    assert table[1].samples == 3 and table[1].block_tokens == (table[1].tokens,)
    with pytest.raises(IndexError):
        table[2]


def test_blocks_end_with_their_shard(tmp_path):
    found = open_set(tmp_path, "text", make("text", 600), make("text", 256), make("text", 1))
    assert found.blocks.samples.tolist() == [256, 256, 88, 256, 1]
    records = all_records(found)
    bounds = np.cumsum([0, *found.blocks.samples.tolist()])
    assert found.blocks.tokens.tolist() == [int(records["tokens"][a:b].sum()) for a, b in pairwise(bounds)]
    numbers, some = found.records(np.array([4, 2]))
    assert numbers.tolist() == [856, *range(512, 600)]
    assert (some == records[numbers]).all()


def test_a_missing_table(folder):
    next(folder.glob("shards-*.parquet")).unlink()
    message = r"shards-[0-9a-f]{12}\.parquet does not exist, but the manifest in its folder names it"
    with pytest.raises(DataError, match=message):
        ShardSet.open(folder)


def test_a_table_of_another_run(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    open_set(other, "text", make("text", 4))
    next(folder.glob("shards-*.parquet")).write_bytes(next(other.glob("shards-*.parquet")).read_bytes())
    with pytest.raises(DataError, match=r"has sha256 [0-9a-f]{12}, the manifest says [0-9a-f]{12}"):
        ShardSet.open(folder)


def test_a_file_that_is_no_table(folder):
    next(folder.glob("shards-*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is not a table of shards"):
        ShardSet.open(folder)


def test_counts_that_do_not_add_up(folder):
    dataclasses.replace(Manifest.load(folder), samples=9).save(folder)
    with pytest.raises(DataError, match=r"says 9 samples of \d+ tokens, its shards hold 8 of"):
        ShardSet.open(folder)


def test_a_missing_index(folder):
    (folder / "shard-00001.index.npy").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.index\.npy"):
        all_records(ShardSet.open(folder))


def test_an_index_with_other_bytes(folder):
    path = folder / "shard-00000.index.npy"
    index = np.load(path)
    index["offset"][0] += 4
    np.save(path, index)
    with pytest.raises(DataError, match=r"shard-00000\.index\.npy does not match the manifest") as caught:
        all_records(ShardSet.open(folder))
    assert caught.value.hint is not None and "make this shard again" in caught.value.hint
