"""Scripts under cluster/: the Slurm job against commands that stand in for Slurm and Ray, leaving a node, waiting."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from cluster import wait
from janus_dist.errors import ClusterError
from tests.limits import HANG_S

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "cluster").glob("*.sh"))

# Each writes down how it was called. `ray start` stays, as with --block, and leaves its process id.
FAKES = {
    "scontrol": 'echo "scontrol $*" >>"$LOG"; if [ "$1" = show ]; then printf "%s\\n" $NODES; fi',
    "srun": 'echo "srun $*" >>"$LOG"; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "ray": """
        echo "ray $* mode=$RAY_AUTH_MODE token=${#RAY_AUTH_TOKEN}" >>"$LOG"
        case $1 in
            health-check) [ -e "$LOG.head" ] ;;
            start)
                [ -z "${BROKEN:-}" ] || exit 1
                echo $$ >>"$LOG.pids"
                case " $* " in *" --head "*) touch "$LOG.head" ;; esac
                exec /bin/sleep 300 ;;
        esac""",
    "python": """
        until [ "$(grep -c '^ray start' "$LOG")" = "$STARTS" ]; do /bin/sleep 0.02; done    # as cluster/wait.py does
        trap 'echo asked >>"$LOG"; exit ${STOPPED:-75}' TERM
        echo "python $* address=$RAY_ADDRESS" >>"$LOG"
        [ -z "${STAY:-}" ] || for i in $(seq 600); do /bin/sleep 0.1; done
        exit "$CODE" """,
    "squeue": '[ "$*" = "--noheader --jobs=$SLURM_JOB_ID --format=%L" ] && echo 0:10:00',
    "sleep": "exec /bin/sleep 0.1",
}


class Allocation:
    """What sbatch would give the script, with commands that stand in."""

    def __init__(self, folder: Path, nodes: str = "node1 node2 node3", **environment: str):
        self.log, self.folder = folder / "log", folder
        commands = folder / "venv" / "bin"
        commands.mkdir(parents=True)
        for name, body in FAKES.items():
            (commands / name).write_text(f"#!/bin/bash\n{body}\n")
            (commands / name).chmod(0o755)
        slurm = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_CPUS_PER_TASK": "72"}
        kept = {"PATH": os.environ["PATH"], "LOG": str(self.log), "NODES": nodes, "CODE": "0"}
        kept["STARTS"] = str(min(2, len(nodes.split())))
        self.environment = kept | slurm | {"SLURM_GPUS_ON_NODE": "8", "JANUS_VENV": str(folder / "venv")} | environment

    def start(self) -> subprocess.Popen[str]:
        command = ["bash", str(ROOT / "cluster" / "slurm.sh"), "jobs/stage2.py", "base.yaml", "cluster.workers=24"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, **pipes)

    def run(self) -> int:
        with self.start() as job:
            self.said, _ = job.communicate(timeout=HANG_S)
        return job.returncode

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + HANG_S
        while not any(line.startswith(text) for line in self.lines):
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.05)

    @property
    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def was_requeued(self) -> bool:
        return "scontrol requeue 41234" in self.lines


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, script], check=True)


def test_slurm_starts_head_workers_and_the_job(tmp_path):
    allocation = Allocation(tmp_path)
    assert allocation.run() == 0, allocation.said
    head, workers = (line for line in allocation.lines if line.startswith("srun"))
    assert "--nodes=1 --nodelist=node1 ray start --block" in head and head.endswith("--dashboard-host=127.0.0.1")
    ports = {f"--{name}={28936 + n}" for n, name in enumerate(("port", "ray-client-server-port", "dashboard-port"))}
    assert ports <= set(head.split()) and "--dashboard-agent-listen-port=28939" in head.split()
    assert "--nodes=2 --exclude=node1 ray start --block" in workers and workers.endswith("--address=node1:28936")
    assert "--dashboard-agent-listen-port=28939" in workers.split()
    assert all("--num-cpus=72 --num-gpus=8" in line and "--cpus-per-task=72" in line for line in (head, workers))
    assert "python cluster/wait.py jobs/stage2.py base.yaml cluster.workers=24 address=node1:28936" in allocation.lines
    starts = [line for line in allocation.lines if line.startswith("ray start")]
    assert len(starts) == 2 and all(line.endswith("mode=token token=64") for line in starts)
    for pid in Path(f"{allocation.log}.pids").read_text().split():  # Ray ends with the job
        assert not Path(f"/proc/{pid}").exists()


def test_slurm_jobs_beside_each_other_have_ports_of_their_own(tmp_path):
    """On one node, with neighbouring numbers; none is Ray's own for workers or one that the system gives out."""
    seen: list[int] = []
    for number in (2999, 3000, 3001, 41234):
        allocation = Allocation(tmp_path / str(number), nodes="node1", SLURM_JOB_ID=str(number))
        assert allocation.run() == 0, allocation.said
        (head,) = (line for line in allocation.lines if line.startswith("srun"))
        seen += [int(word.partition("=")[2]) for word in head.split() if "port=" in word]
    assert len(seen) == len(set(seen)) == 16 and all(19_999 < port < 32_768 for port in seen)


def test_slurm_ends_with_6_when_the_head_of_ray_dies(tmp_path):
    """Within the grace, whatever the driver waits for."""
    allocation = Allocation(tmp_path, nodes="node1", STAY="1", JANUS_HEAD_GRACE_S="1")
    with allocation.start() as job:
        allocation.wait_for("python")
        for pid in Path(f"{allocation.log}.pids").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        said, _ = job.communicate(timeout=HANG_S)
    assert job.returncode == 6 and "the head of Ray ended: the job is given 1 s to end" in said, said
    assert allocation.was_requeued, "as a cluster that failed"


def test_slurm_on_one_node_starts_no_workers(tmp_path):
    allocation = Allocation(tmp_path, nodes="node1")
    assert allocation.run() == 0, allocation.said
    assert len([line for line in allocation.lines if line.startswith("srun")]) == 1


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 75, 130, 137])
def test_slurm_requeues_on_75_and_6_only(tmp_path, code):
    allocation = Allocation(tmp_path, CODE=str(code))
    assert allocation.run() == code, allocation.said
    assert allocation.was_requeued == (code in (6, 75))


def test_slurm_gives_up_on_a_cluster_that_fails_again_and_again(tmp_path):
    """Of the failures of the cluster only: a run of weeks is requeued whenever its time is up."""
    for turn, code in enumerate([75] * 3 + [6, 75, 6]):
        allocation = Allocation(tmp_path / str(turn), CODE=str(code), SLURM_RESTART_COUNT="20", JANUS_REQUEUES="1")
        allocation.folder = tmp_path
        assert allocation.run() == code, allocation.said
        assert allocation.was_requeued == (turn < 5), allocation.said
    assert "the cluster has failed 2 times" in allocation.said
    assert not (tmp_path / "janus-41234.failures").exists()  # a job that is queued again by hand counts anew


@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_requeues_what_was_stopped_before_it_had_begun(tmp_path, sent, requeued):
    allocation = Allocation(tmp_path, STAY="1", STOPPED="143")
    with allocation.start() as job:
        allocation.wait_for("python")
        job.send_signal(sent)
        said, _ = job.communicate(timeout=HANG_S)
    assert job.returncode == 143, said
    assert allocation.was_requeued == requeued


def test_slurm_requeues_when_ray_does_not_start(tmp_path):
    allocation = Allocation(tmp_path, BROKEN="1")
    assert allocation.run() == 6 and allocation.was_requeued
    assert not any(line.startswith("python") for line in allocation.lines)


@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_asks_the_run_to_stop_and_waits_for_it(tmp_path, sent, requeued):
    """USR1 is the time that is nearly up, TERM is `scancel --signal=TERM --batch`."""
    allocation = Allocation(tmp_path, STAY="1")
    with allocation.start() as job:
        allocation.wait_for("python")
        job.send_signal(sent)
        said, _ = job.communicate(timeout=HANG_S)
    assert job.returncode == 75, said
    assert "asked" in allocation.lines and allocation.was_requeued == requeued
    assert f"{sent.name[3:]}: asking the run to save and stop; the job has 0:10:00 left" in said, "not why, but what"


def test_slurm_says_what_is_missing(tmp_path):
    environment = Allocation(tmp_path).environment
    done = subprocess.run(["bash", "cluster/slurm.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "JOB is missing" in done.stderr


class Node:
    """Processes on one node, and cluster/leave.sh with names of its own for them: those of others here stay."""

    def __init__(self, folder: Path):
        self.folder, self.name, self.started = folder, folder.name, []

    def stand_in(self, name: str, on_term: str) -> subprocess.Popen:
        """A process that `ps` shows by this name and that does this on SIGTERM."""
        ready = self.folder / f"ready-{len(self.started)}"
        script = f"trap '{on_term}' TERM; touch {ready}; while :; do sleep 0.1; done"
        process = self.start("bash", "-c", f"exec -a '{name}' bash -c \"{script}\"")
        deadline = time.monotonic() + HANG_S
        while not ready.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process

    def leave(self, limit_s: int = 30) -> subprocess.Popen:
        text = (ROOT / "cluster" / "leave.sh").read_text()
        own = text.replace("jobs/stage", f"{self.name}/jobs/stage").replace("RayTrainWorker", f"Rank {self.name}")
        (self.folder / "leave.sh").write_text(own)
        return self.start("bash", str(self.folder / "leave.sh"), str(self.folder / "notice"), str(limit_s))

    def start(self, *command: str) -> subprocess.Popen:
        with (self.folder / "said").open("a") as said:
            self.started.append(subprocess.Popen(command, stdout=said, stderr=said))
        return self.started[-1]

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()


@pytest.fixture
def going(tmp_path):
    """A node that goes."""
    node = Node(tmp_path)
    yield node
    node.end()


@pytest.mark.parametrize("runner", ["python", "/opt/venv/bin/python3.11 -u", "python cluster/wait.py"])
def test_leaving_stops_the_driver_and_waits_for_it(going, runner):
    driver = going.stand_in(f"{runner} {going.name}/jobs/stage2.py a.yaml", "sleep 1; exit 75")
    assert going.leave().wait(HANG_S) == 0
    assert driver.wait(HANG_S) == 75
    assert (going.folder / "notice").exists()


def test_leaving_waits_for_ranks_without_touching_them(going):
    rank = going.stand_in(f"ray::Rank {going.name}", "exit 1")
    leaving = going.leave()
    time.sleep(1.5)
    assert leaving.poll() is None and rank.poll() is None
    rank.kill()
    rank.wait()
    assert leaving.wait(HANG_S) == 0


def test_leaving_gives_up_and_says_on_what(going):
    rank = going.stand_in(f"ray::Rank {going.name}", "")
    assert going.leave(limit_s=1).wait(HANG_S) == 6
    assert f"still running after 1 s: {rank.pid}" in (going.folder / "said").read_text()


@pytest.mark.parametrize("command", ["/venv/bin/python /venv/bin/ray job submit -- python", "/bin/sh -c python"])
def test_leaving_spares_whoever_only_names_the_job(going, command):
    """`ray job submit`, and the shell in which Ray runs a job, which must be there to tell the driver's exit code."""
    bystander = going.stand_in(f"{command} {going.name}/jobs/stage2.py", "exit 1")
    assert going.leave().wait(HANG_S) == 0
    time.sleep(0.3)
    assert bystander.poll() is None


@pytest.fixture
def asked(monkeypatch):
    """What cluster/wait.py asks of the autoscaler of a cluster that has no node."""
    requests: list[list] = []
    monkeypatch.setattr(wait, "_connected", nullcontext)
    monkeypatch.setattr(wait, "request_resources", lambda bundles: requests.append(bundles))
    monkeypatch.setattr(wait, "resources", list)
    monkeypatch.setattr(sys, "argv", ["wait.py", "jobs/stage2.py"])
    before = signal.getsignal(signal.SIGTERM)
    yield requests
    signal.signal(signal.SIGTERM, before)


def test_a_wait_that_is_over_keeps_no_nodes(asked, monkeypatch):
    monkeypatch.setattr(wait, "LIMIT_S", 0.0)
    monkeypatch.setattr(wait, "POLL_S", 0.01)
    with pytest.raises(ClusterError, match="after 0 s the Ray cluster has room for 0"):
        wait.main()
    assert asked == [[{"CPU": 1}] * 2, []]


@pytest.mark.parametrize("answer", [None, ClusterError("the Ray cluster cannot be reached")])
def test_a_head_that_dies_during_the_wait_ends_it_with_6(asked, monkeypatch, answer):
    answers = [[], answer, [], answer, None]  # the first that is missed is asked for again; the last: nothing to give

    def resources():
        found = answers.pop(0)
        if len(answers) == 2:
            monkeypatch.setattr(wait, "LOST_TIMEOUT_S", 0.0)
        if isinstance(found, ClusterError):
            raise found
        return found

    monkeypatch.setattr(wait, "resources", resources)
    monkeypatch.setattr(wait, "POLL_S", 0.01)
    with pytest.raises(ClusterError, match=r"does not answer any more|cannot be reached") as ended:
        wait.main()
    assert ended.value.exit_code == 6 and answers == [] and asked[1:] == []


@pytest.mark.parametrize(("sent", "ends_by"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_wait_that_is_stopped_keeps_no_nodes(asked, monkeypatch, sent, ends_by):
    monkeypatch.setattr(wait.time, "sleep", lambda _s: signal.raise_signal(sent))
    with pytest.raises(ends_by) as caught:
        wait.main()
    assert asked == [[{"CPU": 1}] * 2, []]
    assert caught.value.args == ((143,) if sent == signal.SIGTERM else ())


def test_a_job_that_sigterm_ended_ends_with_143(asked, monkeypatch, tmp_path):
    """As a shell says it."""
    (tmp_path / "stage2.py").write_text("import signal; signal.raise_signal(signal.SIGTERM)")
    monkeypatch.setattr(wait, "resources", lambda: [{"CPU": 2.0}])
    monkeypatch.setattr(sys, "argv", ["wait.py", str(tmp_path / "stage2.py")])
    assert wait.main() == 143
    assert asked[-1] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["jobs/prepare.py"], "runs stage1.py, stage2.py, stage3.py, got 'jobs/prepare.py'"),
        ([], "python cluster/wait.py jobs/stage2.py"),
        (["jobs/stage2.py", "cluster.worker=3"], "did you mean 'workers'?"),
    ],
)
def test_waiting_first_reads_the_command_line(arguments, said):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "cluster/wait.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 2 and said in done.stderr, done.stderr


def test_the_local_cluster_says_how_it_is_used():
    done = subprocess.run(["cluster/local.sh"], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 2
    assert "cluster/local.sh down" in done.stderr and "set -euo" not in done.stderr


def local_environment(folder):
    return subprocess.run(
        ["cluster/local.sh", "env"],
        cwd=ROOT,
        env=os.environ | {"JANUS_LOCAL": str(folder), "JANUS_LOCAL_PORT": "27000"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


def test_the_local_cluster_is_named_by_its_environment(tmp_path):
    (tmp_path / "token").write_text("0")
    said = local_environment(tmp_path).stdout
    assert "export RAY_ADDRESS=127.0.0.1:27000\n" in said
    assert f"export RAY_AUTH_TOKEN_PATH={tmp_path}/token\n" in said


def test_a_local_cluster_that_does_not_run_has_no_environment(tmp_path):
    done = local_environment(tmp_path)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr == "no cluster runs here; cluster/local.sh up starts one\n"
