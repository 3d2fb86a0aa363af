"""Interrupted runs: whatever is lost, the next run ends with the same shards, and makes only what is missing."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines import stream, work
from data_pipelines.prepare import stream_job
from tests.pipelines.conftest import captions, conversations, documents

SCRIPT = """
import pickle, sys
import ray
from data_pipelines import stream
from data_pipelines.prepare import stream_job
ray.init(address=sys.argv[1], log_to_driver=False)
recipe, tokenizer, items = pickle.loads(open(sys.argv[2], "rb").read())
stream.run(stream_job("understanding", recipe, tokenizer, items))
"""
ROOT = Path(__file__).parent.parent.parent

# Ray warns of its own settings and leaves sockets to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore")


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in Path(folder).glob("shard-*.tar")}


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("lost", ["commits/shard-00002.json", "shard-00002.tar", "shard-00002.index.npy"])
def test_only_a_lost_shard_is_made_again(make_recipe, tokenizer, photos, lost):
    recipe = make_recipe()
    first = stream.run(stream_job("understanding", recipe, tokenizer, conversations(photos)))
    folder = Path(recipe.data.root) / "understanding"
    before = times(folder)
    (folder / "manifest.json").unlink()
    (folder / lost).unlink()
    again = stream.run(stream_job("understanding", recipe, tokenizer, conversations(photos)))
    assert again == first
    after = times(folder)
    assert [name for name in after if after[name] != before.get(name)] == ["shard-00002.tar"]


@pytest.mark.usefixtures("local_ray")
def test_a_truncated_shard_is_made_again(make_recipe, tokenizer):
    recipe = make_recipe()
    first = stream.run(stream_job("text", recipe, tokenizer, documents(20)))
    path = Path(recipe.data.root) / "text" / "shard-00001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert stream.run(stream_job("text", recipe, tokenizer, documents(20))) == first
    assert path.read_bytes() == whole


@pytest.mark.usefixtures("local_ray")
def test_the_generation_stream_goes_on_too(make_recipe, tokenizer, photos):
    recipe = make_recipe()
    first = stream.run(stream_job("generation", recipe, tokenizer, captions(photos[:20])))
    folder = Path(recipe.data.root) / "generation"
    (folder / "commits/shard-00001.json").unlink()
    assert stream.run(stream_job("generation", recipe, tokenizer, captions(photos[:20]))) == first


@pytest.mark.usefixtures("local_ray")
def test_other_settings_or_items_make_every_shard_again(make_recipe, tokenizer):
    stream.run(stream_job("text", make_recipe(), tokenizer, documents(20)))
    folder = Path(make_recipe().data.root) / "text"
    before = times(folder)
    other = make_recipe("pipeline.text_document_tokens=30")
    manifest = stream.run(stream_job("text", other, tokenizer, documents(20)))
    assert manifest.settings["text_document_tokens"] == 30
    assert all(time_ != before[name] for name, time_ in times(folder).items())
    # fewer, larger shards: those of the old cut are gone, so that a plain tar reader sees every document once
    stream.run(stream_job("text", make_recipe("pipeline.shard_samples=50"), tokenizer, documents(20)))
    assert sorted(times(folder)) == ["shard-00000.tar"]
    assert [path.name for path in (folder / work.COMMITS).iterdir()] == ["shard-00000.json"]


def test_the_cut_covers_every_item_once():
    items = documents(21)
    jobs = work.cut(items, 8, {"a": 1})
    assert [item for job in jobs for item in job.items] == items
    assert [len(job.items) for job in jobs] == [8, 8, 5]
    assert len({job.digest for job in jobs}) == 3
    assert [job.digest for job in work.cut(items, 8, {"a": 2})] != [job.digest for job in jobs]
    assert work.cut(items, 8, {"a": 1}) == jobs


def test_a_killed_run_leaves_no_manifest_and_the_next_one_ends_the_same(local_ray, make_recipe, tokenizer, tmp_path):
    paths = []
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 256, (700, 700, 3), dtype=np.uint8)
        paths.append(tmp_path / f"large-{number}.png")
        Image.fromarray(pixels).save(paths[-1], compress_level=1)
    items = conversations(paths)
    recipe = make_recipe("pipeline.shard_samples=3")
    folder = Path(recipe.data.root) / "understanding"
    (tmp_path / "work.pickle").write_bytes(pickle.dumps((recipe, tokenizer, items)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, local_ray, str(tmp_path / "work.pickle")]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not list(folder.glob("commits/shard-*.json")):
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (folder / "manifest.json").exists()
    assert len(list(folder.glob("commits/shard-*.json"))) < 10

    resumed = stream.run(stream_job("understanding", recipe, tokenizer, items))
    undisturbed = make_recipe("pipeline.shard_samples=3", f"data.root={tmp_path / 'undisturbed'}")
    assert resumed == stream.run(stream_job("understanding", undisturbed, tokenizer, items))
    for entry in resumed.shards:
        one, two = (Path(r.data.root) / "understanding" / f"{entry.name}.tar" for r in (recipe, undisturbed))
        assert one.read_bytes() == two.read_bytes()
