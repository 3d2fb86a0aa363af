"""Driver, actors, workers and whole nodes killed at random points: what the last run leaves is what one undisturbed
run would have left, on a local disk and in S3."""

import contextlib
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray.cluster_utils import Cluster

from data_pipelines.job import InputWork
from janus_dist.data.manifest import ShardSet
from janus_dist.inspection.lint import Scope, lint
from janus_dist.storage import fs
from tests.moto_s3 import moto_bucket
from tests.pipelines.conftest import MakeWork, lines

KINDS = ("driver", "encoder", "job", "node")
KILLS = int(os.environ.get("JANUS_KILLS", "4"))
"""Of a pipeline on each of disk and S3, the kinds in turn; `make kills` has 20."""
ROOT = Path(__file__).parent.parent.parent
DRIVER = """
import pickle, sys
import ray
from data_pipelines import stream
ray.init(address=sys.argv[1], log_to_driver=False, namespace="janus_dist")
stream.run(pickle.loads(open(sys.argv[2], "rb").read()))
"""

# Ray warns of its own settings and leaves sockets to the garbage collector
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that does no work, and two nodes of one core."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        found.add_node(num_cpus=1)
    yield found
    found.shutdown()


@pytest.fixture
def s3(monkeypatch) -> Iterator[str]:
    with moto_bucket(monkeypatch, "out") as url:
        yield url


def source(folder: Path) -> Path:
    """Captions of 120 photographs of which some are bad, slow enough to be killed in between."""
    folder.mkdir()
    entries = []
    for number in range(120):
        pixels = np.random.default_rng(number).integers(0, 256, (400, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png", compress_level=1)
        entries.append({"image": f"{number:03d}.png", "caption": f"a circle {number}", "score": number % 7})
    for number in (3, 50, 117):
        (folder / f"{number:03d}.png").write_bytes(b"damaged")
    return lines(folder / "captions.jsonl", entries)


class Killer:
    """Runs the driver again and again, and kills something now and then."""

    def __init__(self, cluster: Cluster, seed: int, work: Path):
        self.cluster, self.random, self.work = cluster, random.Random(seed), work
        self.kills: Counter[str] = Counter()
        self.driver: subprocess.Popen | None = None

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "ignore", "-c", DRIVER, self.cluster.address, str(self.work)]
        self.driver = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)

    def until_done(self, most: int) -> None:
        """Until a driver ends by itself; `most` kills at most."""
        while True:
            self.start()
            assert self.driver is not None
            began, next_kill = time.monotonic(), 0.0
            while self.driver.poll() is None:
                time.sleep(0.05)
                assert time.monotonic() - began < 300
                if self.kills.total() >= most or not processes("ray::do_job"):
                    continue  # all is done, or nothing is at work yet
                if not next_kill:
                    next_kill = time.monotonic() + self.random.uniform(0.0, 2.0)
                elif time.monotonic() > next_kill:
                    next_kill = 0.0
                    self.kill()
            if self.driver.returncode == 0:
                return
            if self.driver.returncode != -signal.SIGKILL:
                assert self.driver.stderr is not None
                said = self.driver.stderr.read().decode()
                assert "run the same command again" in said, said  # jobs that were killed too often

    def kill(self) -> None:
        what = KINDS[self.kills.total() % len(KINDS)]
        if what == "driver":
            assert self.driver is not None
            self.driver.kill()
        elif what == "node":
            victim = self.random.choice([node for node in self.cluster.worker_nodes])
            self.cluster.remove_node(victim, allow_graceful=False)
            self.cluster.add_node(num_cpus=1)
        else:
            title = {"encoder": "ray::VqEncoder", "job": "ray::do_job"}[what]
            found = processes(title)
            if not found:
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.random.choice(found), signal.SIGKILL)
        self.kills[what] += 1


def processes(title: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(title.encode()):
                found.append(int(path.parent.name))
    return found


def left(folder: str) -> set[str]:
    return {name for name in fs.names(folder) if name.endswith((".tar", ".npy"))}


@pytest.mark.parametrize("where", ["disk", pytest.param("s3", marks=pytest.mark.long)])
def test_nothing_is_lost_and_nothing_twice(make_work: MakeWork, tmp_path, monkeypatch, request, where):
    root = request.getfixturevalue("s3") if where == "s3" else str(tmp_path / "out")
    cluster: Cluster = request.getfixturevalue("cluster")  # its processes take over the environment of now
    captions = source(tmp_path / "in")
    overrides = ["pipeline.shard_samples=6", "pipeline.max_bad_share=0.1"]
    overrides.append("pipeline.inputs.generation.where={score: {min: 1}}")

    def of(name: str) -> InputWork:
        return make_work("generation", captions, *overrides, f"data.root={root}/{name}")

    pickled = tmp_path / "work.pickle"
    killer = Killer(cluster, seed=7, work=pickled)
    pickled.write_bytes(pickle.dumps(of("undisturbed")))
    killer.until_done(most=0)
    expected = ShardSet.open(of("undisturbed").folder).manifest
    assert (expected.samples, expected.quarantined) == (99, 3)

    rounds = 0
    while killer.kills.total() < KILLS:
        rounds += 1
        work = of(f"round-{rounds}")
        pickled.write_bytes(pickle.dumps(work))
        killer.until_done(most=KILLS)
        shards = ShardSet.open(work.folder)
        assert shards.manifest.digest == expected.digest, "other samples, or the same in another order"
        assert lint(work.folder, shards.manifest, work.tokenizer, None, Scope(deep=True)).faults == []
        names = {f"{entry.name}{ending}" for entry in shards.manifest.shards for ending in (".tar", ".index.npy")}
        assert left(work.folder) == names, "shards of attempts that do not count are gone"
        for table in ("quarantine.parquet", "stats.json"):
            assert table in fs.names(work.folder)
    print(f"{where}: {dict(killer.kills)} in {rounds} rounds")
    assert dict(killer.kills) == dict.fromkeys(KINDS, KILLS // len(KINDS))
