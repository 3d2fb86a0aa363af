"""A Ray cluster of several nodes on one machine, an S3 server, a run on them, and what can be done to all three.

Invariant: the run is only ever looked at from outside (its metrics, its console, its checkpoints), as its user would.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from janus_dist.checkpoint import commits
from janus_dist.config.recipe import StageRecipe
from janus_dist.storage import fs
from janus_dist.storage.json_lines import read_records
from tests.chaos.driver import DRIVER_NODE
from tests.limits import HANG_S
from tests.moto_s3 import Server

ROOT = Path(__file__).parents[2]
POLL_S = 0.02
LONGEST_RUN_S = 1.0
"""A few steps, or the longer half of what lies between two checkpoints."""
KILLS = ("rank", "rank_while_writing", "driver_killed", "node", "node_back", "damaged")
"""The faults that kill -9 something while it trains."""
DRIVER = "from tests.chaos.driver import main; main()"
LOST = re.compile(r"a rank was lost: ")


@dataclass(frozen=True)
class Fault:
    """One thing that was done to a run, and what it took."""

    kind: str
    at_step: int
    """Steps that were recorded when it was done."""
    from_step: int
    """The step that the run went on from."""
    recovered_s: float
    """Until a step was recorded that was not before, or until what failed was there again."""
    ranks: int
    """That trained afterwards."""

    @property
    def steps_lost(self) -> int:
        return max(0, self.at_step - self.from_step)


class Arena:
    """One run, and the means to disturb it."""

    def __init__(self, recipe: StageRecipe, cluster: Cluster, server: Server | None, seed: int):
        self.recipe, self.cluster, self.server, self.random = recipe, cluster, server, random.Random(seed)
        self.root, self.saved_in = Path(recipe.run.root), recipe.run.saved_in
        self.log = self.root / "console.log"
        self.driver: subprocess.Popen[bytes] | None = None
        self.faults: list[Fault] = []
        self.struck_at = 0
        """The step that was recorded when the newest fault was done."""

    # What can be seen of the run.

    @property
    def step(self) -> int:
        """Steps that are recorded."""
        lines = read_records(self.recipe.run.dir / "metrics.jsonl")
        return int(lines[-1]["step"]) if lines else 0

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def ranks(self) -> list[int]:
        """Processes of the ranks."""
        return processes("ray::_RayTrainWorker") or processes("ray::RayTrainWorker")

    def wait(self, for_what: Callable[[], Any], what: str) -> None:
        """Until something is true; the console's text when it never is, or when the driver ends meanwhile."""
        assert self.driver is not None
        end_s = time.monotonic() + HANG_S
        while not for_what():
            code = self.driver.poll()
            assert code is None, f"waiting for {what}: the driver ended with {code}\n{self.said[-4000:]}"
            assert time.monotonic() < end_s, f"waiting for {what}, step {self.step}\n{self.said[-4000:]}"
            time.sleep(POLL_S)

    def other_node(self) -> Any:
        """A node with a rank that is not the driver's."""
        own = (self.root / DRIVER_NODE).read_text()
        return self.random.choice([node for node in self.cluster.worker_nodes if node.node_id != own])

    # What a user does.

    def start(self) -> None:
        """Start the driver, as the same command again."""
        path = self.root / "recipe.json"
        path.write_text(self.recipe.model_dump_json())
        environment = os.environ | {"RAY_ADDRESS": self.cluster.address, "OMP_NUM_THREADS": "1"}
        with self.log.open("a") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", DRIVER, str(path)],
                cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def ends(self, code: int) -> None:
        """Wait for the driver's end, by an exit code, as long as steps are added."""
        assert self.driver is not None
        found, before = None, -1
        while found is None and self.step > before:
            before = self.step
            with contextlib.suppress(subprocess.TimeoutExpired):
                found = self.driver.wait(timeout=HANG_S)
        assert found == code, f"the driver ended with {found}, not {code}\n{self.said[-4000:]}"

    # Faults. Each returns when the run goes on.

    def do(self, kind: str) -> Fault:
        """Do it, wait until the run has recovered, and note what it took."""
        self.struck_at, read, began = self.step, len(self.said), time.monotonic()
        getattr(self, kind)()
        before = self.struck_at
        if kind != "s3_away":
            self.wait(lambda: "resuming run at step" in self.said[read:], f"a resume after {kind}")
            resumed = re.findall(r"resuming run at step (\d+)", self.said[read:])
            self.wait(lambda: self.step > max(before, int(resumed[-1])), f"a new step after {kind}")
        text = self.said[read:]
        (*_, first) = [0 if kind != "s3_away" else before, *map(int, re.findall(r"resuming run at step (\d+)", text))]
        ranks = re.findall(r"^(\d+) ranks? on", self.said, flags=re.MULTILINE)
        fault = Fault(kind, before, first, time.monotonic() - began, int(ranks[-1]))
        self.faults.append(fault)
        return fault

    def let_run(self) -> None:
        """For a while that ends anywhere in a step or a save: a kill at the beginning of a step loses the least."""
        time.sleep(self.random.uniform(0, LONGEST_RUN_S))
        self.struck_at = self.step

    def rank(self) -> None:
        """kill -9 of a rank, at any moment."""
        self.let_run()
        kill(self.random.choice(self.ranks()))

    def rank_while_writing(self) -> None:
        """kill -9 of a rank while a checkpoint has files and no marker."""
        self.wait(lambda: any(not commits.is_marked(path) for path in commits.folders(self.saved_in)), "a save")
        kill(self.random.choice(self.ranks()))

    def driver_killed(self) -> None:
        """kill -9 of the driver, at any moment; the same command again."""
        assert self.driver is not None
        self.let_run()
        os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()
        self.start()

    def node(self) -> None:
        """A node with a rank goes without a word, at any moment; the run goes on with fewer ranks."""
        self.let_run()
        self.cluster.remove_node(self.other_node(), allow_graceful=False)

    def node_back(self) -> None:
        """A new node; it is taken when ranks are started the next time."""
        self.cluster.add_node(num_cpus=1)
        self.rank()

    def drained(self) -> None:
        """Notice that a node will go: the run saves, ends with 75, and is started again on another node."""
        node = self.other_node()
        drain(self.cluster.address, node.node_id)
        self.ends(75)
        self.cluster.remove_node(node, allow_graceful=False)
        self.cluster.add_node(num_cpus=1)
        self.start()

    def stopped(self) -> None:
        """SIGTERM to the driver, as `ray job stop` does: the run saves and ends with 75; the same command again."""
        assert self.driver is not None
        self.driver.send_signal(signal.SIGTERM)
        self.ends(75)
        self.start()

    def damaged(self) -> None:
        """The newest checkpoint loses a bit and the driver is killed, at any moment: the one before is taken."""
        assert self.driver is not None
        self.wait(lambda: len(commits.committed(self.saved_in)) > 1, "two checkpoints")
        self.let_run()
        os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()
        end_s = time.monotonic() + HANG_S
        while self.ranks() and time.monotonic() < end_s:
            time.sleep(POLL_S)  # until they have seen that their driver is gone, they may save
        newest = commits.latest_committed(self.saved_in)
        assert newest is not None
        damage(f"{newest}/__0_0.distcp")
        self.start()
        self.wait(lambda: f"passed over {newest}" in self.said, "the damage to be seen")

    def s3_away(self) -> None:
        """Nobody answers where checkpoints go: saves fail and are reported, and training continues."""
        assert self.server is not None
        read = len(self.said)
        self.server.stop()
        self.wait(lambda: "could not be written: " in self.said[read:], "a failed save")
        before = self.step
        self.wait(lambda: self.step > before + 2, "training that goes on")
        self.server.start()
        self.wait(lambda: "saved s3://" in self.said[read:].partition("could not be written: ")[2], "a save")


def processes(title: str) -> list[int]:
    """Processes by the beginning of their title."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(title.encode()):
                found.append(int(path.parent.name))
    return sorted(found)


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def drain(address: str, node_id: str) -> None:
    """`ray drain-node`, for a preemption in ten minutes."""
    subprocess.run(
        [
            str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address, "--node-id", node_id,
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test",
            "--deadline-remaining-seconds", "600",
        ],
        check=True, capture_output=True, timeout=HANG_S,
    )  # fmt: skip


def damage(path: str) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(fs.read(path))
    content[len(content) // 2] ^= 1
    fs.write_whole(path, bytes(content))


@contextmanager
def ray_nodes(number: int) -> Iterator[Cluster]:
    """A head that does no work, and nodes of one CPU."""
    os.environ["PYTHONPATH"] = str(ROOT)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(number):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()
