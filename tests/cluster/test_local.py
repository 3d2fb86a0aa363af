"""The local cluster of two nodes, as docs/cluster.md uses it: a submitted job takes both, nothing is open to others."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from tests.limits import HANG_S

ROOT = Path(__file__).parents[2]
PORT = 27379
LISTENS = "0A"
"""As /proc/net/tcp writes it."""
LOOPBACK = re.compile(r"^(\w{6}7F|0{24}01000000|0{16}FFFF0000\w{6}7F):")
"""127.0.0.0/8, ::1, and the former as addresses of IPv6, as the kernel writes them."""

JOB = """
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

ray.init(address="auto", log_to_driver=False)
where = ray.remote(num_cpus=1)(lambda: ray.get_runtime_context().get_node_id())
nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
found = ray.get([where.options(scheduling_strategy=On(node, soft=False)).remote() for node in nodes], timeout=120)
print("ran on", len(set(found)), "nodes, all of them" if set(found) == nodes else "not all of them")
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shell():
    """Runs a command as a user would who has the cluster's environment."""
    folder = Path(
        tempfile.mkdtemp(prefix="jl-", dir="/tmp")
    )  # short: sockets lie below it, and their paths have a limit
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment = kept | {
        "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "HOME": str(folder / "home"),
        "JANUS_LOCAL": str(folder / "ray"),
        "JANUS_LOCAL_PORT": str(PORT),
    }
    (folder / "home").mkdir()

    def run(command: str) -> subprocess.CompletedProcess[str]:
        line = f'eval "$(cluster/local.sh env)"; {command}'
        return subprocess.run(
            ["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_S
        )

    try:
        up = run("cluster/local.sh up 1")
        assert up.returncode == 0, up.stderr
        yield run
    finally:
        run("cluster/local.sh down")
    assert processes(folder / "ray") == [] and not (folder / "ray").exists()
    assert not (folder / "home" / ".ray").exists()  # no token that later `ray start`s would want
    shutil.rmtree(folder)


def processes(folder: Path) -> list[int]:
    """Processes of the cluster in a folder."""
    mark, found = f"JANUS_LOCAL_NODE={folder}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


def listening(pid: int) -> set[str]:
    """Local addresses, as the kernel writes them, on which a process takes connections; none once it has ended."""
    sockets, found = set(), set()
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                sockets.add(str(link.readlink()))
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            _, local, _, state, *rest = line.split()
            if state == LISTENS and f"socket:[{rest[5]}]" in sockets:
                found.add(local)
    return found


def test_a_submitted_job_runs_on_both_nodes(shell, tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    done = shell(f"ray job submit -- python {tmp_path / 'job.py'}")
    assert done.returncode == 0 and "ran on 2 nodes, all of them" in done.stdout, done.stdout + done.stderr


def test_it_listens_on_loopback_only(shell):
    folder = Path(shell("echo $JANUS_LOCAL").stdout.strip())
    found = {address for pid in processes(folder) for address in listening(pid)}
    assert any(address.endswith(f"0100007F:{PORT:04X}") for address in found)
    assert {address for address in found if not LOOPBACK.match(address)} == set()


def test_without_the_token_nothing_is_submitted(shell):
    wrong = "RAY_AUTH_TOKEN=" + "0" * 64
    for credentials in (f"unset RAY_AUTH_TOKEN_PATH; export {wrong}", "unset RAY_AUTH_TOKEN_PATH RAY_AUTH_MODE"):
        done = shell(f"{credentials}; ray job submit -- echo in")
        assert done.returncode != 0 and "succeeded" not in done.stdout, done.stdout


def test_waiting_says_how_much_room_there_is(shell):
    done = shell("JANUS_WAIT_S=1 python cluster/wait.py jobs/stage2.py cluster.workers=5")
    assert done.returncode == 6, done.stderr
    assert "waiting for nodes: room for 2 of 5 ranks" in done.stdout
    assert "after 1 s the Ray cluster has room for 2 of cluster.workers=5 ranks, 5 at least are needed" in done.stderr


def test_waiting_hands_on_the_exit_code_of_the_job(shell, tmp_path):
    """There is room for both ranks, so the job runs, and ends for want of its tokenizer."""
    settings = f"data.tokenizer=/nowhere run.root={tmp_path} data.root={tmp_path}"
    done = shell(f"python cluster/wait.py jobs/stage2.py {settings}")
    assert done.returncode == 3 and "data.tokenizer=/nowhere cannot be read" in done.stderr, done.stderr


def test_a_second_one_is_refused(shell):
    done = shell("cluster/local.sh up 1")
    assert done.returncode == 6 and "a cluster runs already" in done.stderr


def test_status_names_the_nodes(shell):
    done = shell("cluster/local.sh status")
    assert done.returncode == 0 and done.stdout.count("127.0.0.1") >= 2, done.stdout
