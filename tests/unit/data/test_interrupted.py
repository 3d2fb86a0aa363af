"""A run that breaks off before or after any of its writes, and once more from there: the same samples, each once."""

from pathlib import Path

import pytest

from data_pipelines import stream
from janus_dist.data import manifest as manifests
from janus_dist.data import shard
from janus_dist.data.keys import shard_keys
from janus_dist.data.manifest import ShardSet
from janus_dist.inspection.inspect import quarantine, stats
from janus_dist.storage import fs
from tests.alone import without_ray, work_on
from tests.pipelines.conftest import lines

STRAY = "000000-00-deaddeaddead.tar"
POINTS = {
    "the index of a shard": "write_whole */000001-00-*.index.npy",
    "its tar": "write_whole */000001-00-*.tar",
    "the marker of its job": "create */commits/*.json",
    "the quarantine table": "write_whole */quarantine.parquet",
    "the examples": "write_whole */examples.parquet",
    "the statistics": "write_whole */stats.json",
    "strays that are removed": f"remove */{STRAY}",
    "the table of shards": "write_whole */shards-*.parquet",
    "the manifest": "write_whole */manifest.json",
}


class BrokenOff(Exception):
    """Stands for the end of the process."""


def breaking(patch, point, when):
    """Let the first operation that a point names raise, before or after it is done."""
    asked, pattern = point.split(" ")

    def broken(name, do):
        def call(path, *content, **how):
            hit = name == asked and Path(path).match(pattern)
            if hit and when == "before":
                raise BrokenOff(path)
            done = do(path, *content, **how)
            if hit:
                raise BrokenOff(path)
            return done

        return call

    write = broken("write_whole", fs.write_whole)
    for module in (fs, shard, manifests):
        patch.setattr(module, "write_whole", write)
    for name in ("create", "remove"):
        patch.setattr(fs, name, broken(name, getattr(fs, name)))


def held(of):
    """(digest, keys of all samples, shards on the disk, what was refused, records counted)."""
    found = ShardSet.open(of.folder).manifest
    keys = [key for number in range(len(found.shards)) for key in shard_keys(of.folder, found, number)]
    tars = {path.stem for path in Path(of.folder).glob("*.tar")}
    assert tars == {entry.name for entry in found.shards} and len(set(keys)) == len(keys)
    return found.digest, keys, list(quarantine(of.folder)), (stats(of.folder) or {})["records"]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Work on 20 documents, one of them bad, in three jobs, into a folder of a name; a stray lies in it."""
    without_ray(monkeypatch)
    texts = [{"text": f"text {number:02d}" if number != 3 else " "} for number in range(20)]
    source = lines(tmp_path / "in.jsonl", texts)

    def new(name):
        of = work_on("text", source, tmp_path / name, "pipeline.max_bad_share=0.1")
        fs.write_whole(f"{of.folder}/{STRAY}", b"")
        return of

    return new


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", POINTS)
def test_what_breaks_off_is_finished_by_the_next_run(make, what, when):
    whole, broken = make("whole"), make("broken")
    stream.run(whole)
    with pytest.MonkeyPatch.context() as patch:
        breaking(patch, POINTS[what], when)
        with pytest.raises(BrokenOff):
            stream.run(broken)
    exists = fs.size(f"{broken.folder}/manifest.json") is not None
    assert exists == ((what, when) == ("the manifest", "after")), "the manifest comes last"
    stream.run(broken)
    assert held(broken) == held(whole) and len(held(whole)[1]) == 19
