"""`janus submit`: run a job on an existing Ray cluster, from any shell that can reach its dashboard.

Invariant: the recipe is checked before anything is sent. Only the repository without data and runs, the command line
and the allowed environment variables are sent, and no secrets.
"""

import asyncio
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, TextIO

import typer

from janus_dist.cli.job import LOCAL_OPTION
from janus_dist.config.load import SUBMITTED_FROM, load_any
from janus_dist.config.settings import OVERRIDE
from janus_dist.config.shipped import tiny
from janus_dist.errors import EXIT_RECORD, RECORD_VARIABLE, ClusterError, ConfigError, PreemptedError
from janus_dist.failures import without_ray_preamble

EXCLUDED = (
    "/data", "/runs", "/weights", "/wandb", "/.git", "/.venv*", "**/__pycache__", "**/.*_cache", "/.hypothesis",
    "/*.egg-info",
)  # fmt: skip
"""Files and folders of the working directory that are not sent, as patterns of .gitignore."""
PASSED = re.compile(r"NCCL_\w+|TORCH_NCCL_\w+|FI_\w+|GLOO_\w+|WANDB_(MODE|PROJECT|ENTITY|BASE_URL)|JANUS_\w+")
"""Names of the shell's environment variables that are passed on to a job; keys and tokens are not among them."""
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
"""Names of environment variables that may hold secrets and are never sent."""
RECORD = re.compile(rf"^{EXIT_RECORD}(\d+)\n", re.MULTILINE)
"""Record of the exit code, the last line of a job that was asked to stop; Ray keeps no exit code of such a job."""
OLD_RECORD = re.compile(r"was asked to stop \(.*\) and saved step \d+ of \d+")
"""Last line of a stopped stage in images older than RECORD (--no-upload); this text is fixed."""
FLAGS = ("--replace",)
"""Options of jobs that take no value."""
DETACHED = 130
"""Exit code after Ctrl-C, which leaves the job running."""
TERMINATED = 143
"""Exit code of a job that was stopped before it saved, or killed because saving took too long."""
LOST_S, AGAIN_S = 60.0, 2.0
"""Seconds without an answer after which a cluster counts as lost, and seconds between two requests."""
LOCAL = "http://127.0.0.1:8265"
"""Address of the dashboard of a cluster on this machine."""
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Environment variables with an address; Ray uses the first that is set, even if a program passes another address."""

TOKEN_FILE = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
"""Environment variables by which Ray finds its token; neither is a secret."""

Job = Annotated[Path, typer.Argument(metavar="jobs/JOB.py", help="The job's script.")]
Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE.yaml ...] [key.path=value ...] [-- OPTION ...]", help="Arguments of the job."),
]
Address = Annotated[
    str | None,
    typer.Option(
        help=f"Address of the dashboard, http://HEAD:8265. Default: ${', $'.join(ADDRESSES)}, otherwise {LOCAL}."
    ),
]
Stop = Annotated[int, typer.Option("--stop-wait-s", min=3, help="Seconds that a stopped job has for saving.")]
Env = Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE for driver and ranks; no secrets.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not follow the log.")]
NoUpload = Annotated[bool, typer.Option("--no-upload", help="Run the code in the cluster's image; send no code.")]
Wait = Annotated[
    bool, typer.Option("--wait-for-nodes", help="Wait for an autoscaler's nodes first, by cluster/wait.py.")
]


def submit_command(
    job: Job,
    arguments: Arguments = None,
    address: Address = None,
    stop_wait_s: Stop = 600,
    env: Env = None,
    no_wait: NoWait = False,
    no_upload: NoUpload = False,
    wait_for_nodes: Wait = False,
) -> int:
    """Submit a job to a Ray cluster, follow its log, and exit with the job's exit code."""
    words = list(arguments or ())
    if not job.is_file():
        raise ConfigError(f"{job} does not exist", "run this in the repository's folder: janus submit jobs/stage2.py")
    if LOCAL_OPTION in words:
        raise ConfigError(
            f"{LOCAL_OPTION} starts a Ray for the job alone, but janus submit runs the job on a cluster",
            f"leave {LOCAL_OPTION} out, or run the job on this machine: python {job} {LOCAL_OPTION}",
        )
    check_recipe(job, words)
    command = ["python", *(["cluster/wait.py"] if wait_for_nodes else []), job.as_posix(), *words]
    environment = variables(os.environ, env or ())
    environment |= {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_wait_s), RECORD_VARIABLE: "1"}
    runtime_env: dict[str, Any] = {"env_vars": environment}
    if not no_upload:
        command = _with_absolute_out(command)
        environment[SUBMITTED_FROM] = str(Path.cwd())
        runtime_env |= {"working_dir": str(Path.cwd()), "excludes": list(EXCLUDED)}
    client, job_id = _submit(_dashboard(address), shlex.join(command), runtime_env)
    ray_job = _ray_job_command(client.get_address())
    print(f"{job_id} on {client.get_address()}: {shlex.join(command)}")
    print(f"  {ray_job} stop {job_id}    # the run saves first")
    if no_wait:
        print(f"  {ray_job} logs --follow {job_id}")
        return 0
    code = _follow(client, job_id, ray_job)
    if code:
        sys.exit(code)
    return code


def check_recipe(job: Path, words: Sequence[str]) -> None:
    """Load the recipe of a job's command line. Raises ConfigError when it is wrong."""
    words = without_options(words)
    files = [Path(word) for word in words if not OVERRIDE.match(word)]
    overrides = [word for word in words if OVERRIDE.match(word)]
    defaults = [path for path in tiny(job.stem, job.parent) if path.is_file()]
    load_any(files or defaults, overrides)


def without_options(words: Sequence[str]) -> list[str]:
    """Return a job's arguments without its own options: `--limit 200`, `--limit=200`, `--replace`."""
    is_value = [False, *(word.startswith("-") and "=" not in word and word not in FLAGS for word in words)]
    return [word for word, skip in zip(words, is_value, strict=False) if not skip and not word.startswith("-")]


def _with_absolute_out(command: Sequence[str]) -> list[str]:
    """Return the command with an absolute folder after `--out`.

    No recipe names that folder, and below the job's copy of the working directory it would be lost.
    """
    previous = ["", *command]
    return [
        str(Path(word).absolute()) if option == "--out" else word
        for option, word in zip(previous, command, strict=False)
    ]


def variables(shell: Any, settings: Sequence[str]) -> dict[str, str]:
    """Return a job's environment: the allowed variables of the shell and the `NAME=VALUE` settings of `--env`.

    Raises ConfigError for secrets, which everyone who sees the dashboard would see.
    """
    environment = {name: value for name, value in shell.items() if PASSED.fullmatch(name) and not SECRET.search(name)}
    environment.pop(SUBMITTED_FROM, None)  # set if the shell is itself a submitted job
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--env takes NAME=VALUE, got {setting!r}", "write --env NCCL_DEBUG=INFO")
        if SECRET.search(name):
            raise ConfigError(
                f"--env {name}: Ray shows a job's environment to everyone who sees its dashboard",
                "set secrets on the cluster's nodes: by a Kubernetes Secret, or in the shell of `ray start`",
            )
        environment[name] = value
    return environment


def _dashboard(address: str | None) -> str:
    """Return the address of the dashboard: `--address`, that of the environment, or LOCAL.

    Removes the addresses in the environment if `--address` is given, because Ray would prefer them. Raises ConfigError
    when the environment requests a local Ray.
    """
    if address is not None:
        for name in ADDRESSES:
            os.environ.pop(name, None)
    if not os.environ.get(ADDRESSES[0]) and os.environ.get(ADDRESSES[1]) == "local":
        raise ConfigError(
            f"{ADDRESSES[1]}=local starts a Ray for the job alone, but janus submit runs the job on a cluster",
            f"unset {ADDRESSES[1]}, or give --address http://HEAD:8265",
        )
    return address or next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), LOCAL)


def _submit(address: str, command: str, runtime_env: dict[str, Any]) -> tuple[Any, str]:
    """Submit a command and return (Ray's client, job id). Raises ClusterError when the cluster does not accept it."""
    # here: Ray takes a second to import, and no other command needs it
    from ray.exceptions import AuthenticationError, RayError  # noqa: TID251
    from ray.job_submission import JobSubmissionClient  # noqa: TID251

    try:
        client = JobSubmissionClient(address)  # turns on Ray's own log lines about packing and connections
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("ray")]:
            logging.getLogger(name).setLevel(logging.ERROR)
        return client, client.submit_job(entrypoint=command, runtime_env=runtime_env)
    except AuthenticationError as error:
        raise ClusterError(
            f"the cluster at {address} requires a token; this shell has no token or a wrong one",
            'for the cluster of cluster/local.sh: eval "$(cluster/local.sh env)"; otherwise export RAY_AUTH_MODE=token '
            "and RAY_AUTH_TOKEN_PATH, the file with its token",
        ) from error
    except (OSError, RuntimeError, RayError) as error:
        raise ClusterError(
            f"the cluster at {address} does not accept jobs: {_shortened(error)}",
            "check that it runs (cluster/local.sh up, or ray start --head, starts one on this machine) and that its "
            "dashboard can be reached (ssh -L 8265:127.0.0.1:8265 HEAD); --address is that of the dashboard, "
            "http://HEAD:8265; RAY_ADDRESS, RAY_API_SERVER_ADDRESS and RAY_AUTH_TOKEN_PATH may belong to a cluster "
            "that no longer exists",
        ) from error


def _ray_job_command(address: str) -> str:
    """Return `ray job` with the variables that it needs in any shell; the shell's own would override `--address`."""
    needed = {ADDRESSES[0]: address} | {name: os.environ[name] for name in TOKEN_FILE if os.environ.get(name)}
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in needed.items()), "ray job"])


def _follow(client: Any, job_id: str, ray_job: str) -> int:
    """Show a job's log until it ends and return its exit code, or DETACHED after Ctrl-C.

    Raises ClusterError when the cluster does not answer for LOST_S.
    """
    from ray.exceptions import RayError  # noqa: TID251

    try:
        return FollowedJob(client, job_id, sys.stdout).exit_code()
    except KeyboardInterrupt:
        print(
            f"the job keeps running; follow it: {ray_job} logs --follow {job_id}\nstop it: {ray_job} stop {job_id}",
            file=sys.stderr,
        )
        return DETACHED
    except (OSError, RuntimeError, RayError) as error:
        raise ClusterError(
            f"the cluster at {client.get_address()} has not answered for {LOST_S:g} s: {_shortened(error)}",
            f"job {job_id} keeps running if the head node does: {ray_job} logs --follow {job_id}; once a cluster runs "
            "again, run the same command again to resume from the last checkpoint",
        ) from error


class FollowedJob:
    """Job whose log is shown until it ends, across broken connections."""

    def __init__(self, client: Any, job_id: str, out: TextIO):
        self.client, self.job_id, self.out = client, job_id, out
        self.shown, self.end = 0, ""
        """Characters of the log shown so far, and the last line of the log if it is incomplete."""
        self.recorded_code: int | None = None
        """Exit code that the job recorded in its log."""

    def exit_code(self) -> int:
        """Return the job's exit code once it has ended.

        Raises the client's error when the cluster does not answer for LOST_S.
        """
        from ray.job_submission import JobStatus  # noqa: TID251

        info = self._ended()
        if info.driver_exit_code is not None:
            return info.driver_exit_code
        if info.status == JobStatus.STOPPED:
            return TERMINATED if self.recorded_code is None else self.recorded_code
        return 0 if info.status == JobStatus.SUCCEEDED else 1

    def _ended(self) -> Any:
        from aiohttp import ClientError  # here: it comes with Ray's client

        last_answer = time.monotonic()
        while True:
            with suppress(OSError, RuntimeError, ClientError):  # a proxy closed the connection, or the head is down
                asyncio.run(self._follow())
            try:
                info = self.client.get_job_info(self.job_id)
            except (OSError, RuntimeError):
                if time.monotonic() - last_answer > LOST_S:
                    raise
            else:
                last_answer = time.monotonic()
                if info.status.is_terminal():
                    return info
            time.sleep(AGAIN_S)

    async def _follow(self) -> None:
        position = 0  # Ray sends a log from its beginning each time
        async for text in self.client.tail_job_logs(self.job_id):
            new, position = text[max(0, self.shown - position) :], position + len(text)
            if new:
                self.shown = position
                output = without_ray_preamble(new)
                print(output, end="", flush=True, file=self.out)
                self._read_record(output)

    def _read_record(self, new: str) -> None:
        lines = self.end + new
        self.end = lines.rpartition("\n")[2]
        if records := RECORD.findall(lines):
            self.recorded_code = int(records[-1])
        elif self.recorded_code is None and OLD_RECORD.search(lines):
            self.recorded_code = PreemptedError.exit_code


def _shortened(error: Exception) -> str:
    return shorten(str(error), 300, placeholder=" ...")
