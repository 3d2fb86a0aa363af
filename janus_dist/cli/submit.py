"""`janus submit`: a job on a running Ray cluster, from a shell that need not be on it.

Invariant: the recipe is checked before anything is sent; nothing is sent but the repository without data and runs, the
command line, and the environment that is named; no secret is among it.
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
"""Of the working directory, in the way of .gitignore."""
PASSED = re.compile(r"NCCL_\w+|TORCH_NCCL_\w+|FI_\w+|GLOO_\w+|WANDB_(MODE|PROJECT|ENTITY|BASE_URL)|JANUS_\w+")
"""Names of the shell's variables that a job gets; keys and tokens are not among them."""
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
RECORD = re.compile(rf"^{EXIT_RECORD}(\d+)\n", re.MULTILINE)
"""The exit code that a job which was asked to stop writes last; Ray keeps none of a job that was stopped."""
OLD_RECORD = re.compile(r"was asked to stop \(.*\) and saved step \d+ of \d+")
"""What stages of images without RECORD say last when they have saved (--no-upload); that text changes no more."""
FLAGS = ("--replace",)
"""Options of jobs that take no value."""
DETACHED = 130
TERMINATED = 143
"""Stopped before anything was saved, or killed because that took too long."""
LOST_S, AGAIN_S = 60.0, 2.0
"""How long a cluster may not answer before it counts as lost, and how often it is asked."""
LOCAL = "http://127.0.0.1:8265"
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray takes the first of these that the environment has, whatever address a program gives it."""

TOKEN_FILE = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
"""Where Ray finds its token; neither is a secret."""

Job = Annotated[Path, typer.Argument(metavar="jobs/JOB.py", help="The job, as `python` would run it.")]
Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE.yaml ...] [key.path=value ...] [-- OPTION ...]", help="What the job is given."),
]
Address = Annotated[
    str | None,
    typer.Option(help=f"Of the dashboard, http://HEAD:8265. Without: ${', $'.join(ADDRESSES)}, else {LOCAL}."),
]
Stop = Annotated[int, typer.Option("--stop-wait-s", min=3, help="Seconds that a stopped job gets to save.")]
Env = Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE for driver and ranks; no secrets.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not follow the log.")]
NoUpload = Annotated[bool, typer.Option("--no-upload", help="Run what the cluster's image has, send no code.")]
Wait = Annotated[bool, typer.Option("--wait-for-nodes", help="By cluster/wait.py, for an autoscaler's nodes.")]


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
    """Submit a job to a Ray cluster, follow its log, and end with its exit code."""
    words = list(arguments or ())
    if not job.is_file():
        raise ConfigError(f"there is no job {job}", "run this in the repository's folder: janus submit jobs/stage2.py")
    if LOCAL_OPTION in words:
        raise ConfigError(
            f"{LOCAL_OPTION} starts a Ray of the job's own, and janus submit runs the job on a cluster",
            f"leave {LOCAL_OPTION} out, or run the job here: python {job} {LOCAL_OPTION}",
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
    code = _run(address, shlex.join(command), runtime_env, no_wait)
    if code:
        sys.exit(code)
    return code


def check_recipe(job: Path, words: Sequence[str]) -> None:
    """Raise ConfigError when the recipe of a job's command line is wrong."""
    words = without_options(words)
    files = [Path(word) for word in words if not OVERRIDE.match(word)]
    given = [word for word in words if OVERRIDE.match(word)]
    defaults = [path for path in tiny(job.stem, job.parent) if path.is_file()]
    load_any(files or defaults, given)


def without_options(words: Sequence[str]) -> list[str]:
    """A job's command line without its own options: `--limit 200`, `--limit=200`, `--replace`."""
    is_value = [False, *(word.startswith("-") and "=" not in word and word not in FLAGS for word in words)]
    return [word for word, skip in zip(words, is_value, strict=False) if not skip and not word.startswith("-")]


def _with_absolute_out(command: Sequence[str]) -> list[str]:
    """The command with the folder behind `--out`, which no recipe names, outside of the job's copy, where it would be
    lost."""
    before = ["", *command]
    return [str(Path(word).absolute()) if at == "--out" else word for at, word in zip(before, command, strict=False)]


def variables(shell: Any, given: Sequence[str]) -> dict[str, str]:
    """What the job gets of the shell's environment, and what `--env` names; ConfigError at secrets, which everyone who
    sees the dashboard would see."""
    found = {name: value for name, value in shell.items() if PASSED.fullmatch(name) and not SECRET.search(name)}
    found.pop(SUBMITTED_FROM, None)  # of a job that submits another
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--env takes NAME=VALUE, got {one!r}", "write --env NCCL_DEBUG=INFO")
        if SECRET.search(name):
            raise ConfigError(
                f"--env {name}: Ray shows a job's environment to everyone who sees its dashboard",
                "give secrets to the cluster's nodes: a Secret of Kubernetes, or the shell of `ray start`",
            )
        found[name] = value
    return found


def _run(address: str | None, command: str, runtime_env: dict[str, Any], no_wait: bool) -> int:
    # here: Ray takes a second to import, and no other command needs it
    from ray.exceptions import AuthenticationError, RayError  # noqa: TID251
    from ray.job_submission import JobSubmissionClient  # noqa: TID251

    if address is not None:
        for name in ADDRESSES:
            os.environ.pop(name, None)
    if not os.environ.get(ADDRESSES[0]) and os.environ.get(ADDRESSES[1]) == "local":
        raise ConfigError(
            f"{ADDRESSES[1]}=local asks for a Ray of the job's own, and janus submit runs the job on a cluster",
            f"unset {ADDRESSES[1]}, or give --address http://HEAD:8265",
        )
    asked = address or next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), LOCAL)
    try:
        client = JobSubmissionClient(asked)  # which turns Ray's logs on: what is packed, when a connection closes
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("ray")]:
            logging.getLogger(name).setLevel(logging.ERROR)
        job_id = client.submit_job(entrypoint=command, runtime_env=runtime_env)
    except AuthenticationError as error:
        raise ClusterError(
            f"the cluster at {asked} wants a token, and this shell has none or another",
            'for the cluster of cluster/local.sh: eval "$(cluster/local.sh env)"; else export RAY_AUTH_MODE=token and '
            "RAY_AUTH_TOKEN_PATH, the file with its token",
        ) from error
    except (OSError, RuntimeError, RayError) as error:
        raise ClusterError(
            f"the cluster at {asked} does not take jobs: {_in_short(error)}",
            "see that it runs (cluster/local.sh up, or ray start --head, starts one here) and its dashboard can be "
            "reached (ssh -L 8265:127.0.0.1:8265 HEAD); --address is that of the dashboard, http://HEAD:8265; "
            "RAY_ADDRESS, RAY_API_SERVER_ADDRESS and RAY_AUTH_TOKEN_PATH may be those of a cluster that is gone",
        ) from error
    used = client.get_address()
    # an --address would be overruled by the shell's variables; another shell may have none of them
    needed = {ADDRESSES[0]: used} | {name: os.environ[name] for name in TOKEN_FILE if os.environ.get(name)}
    ray_job = " ".join([*(f"{name}={shlex.quote(value)}" for name, value in needed.items()), "ray job"])
    print(f"{job_id} on {used}: {command}")
    print(f"  {ray_job} stop {job_id}    # the run saves first")
    if no_wait:
        print(f"  {ray_job} logs --follow {job_id}")
        return 0
    try:
        return Followed(client, job_id, sys.stdout).exit_code()
    except KeyboardInterrupt:
        print(
            f"the job goes on; follow it: {ray_job} logs --follow {job_id}\nstop it: {ray_job} stop {job_id}",
            file=sys.stderr,
        )
        return DETACHED
    except (OSError, RuntimeError, RayError) as error:
        raise ClusterError(
            f"the cluster at {used} has not answered for {LOST_S:g} s: {_in_short(error)}",
            f"job {job_id} goes on if its head does: {ray_job} logs --follow {job_id}; the same command, once there is "
            "a cluster again, goes on from the last checkpoint",
        ) from error


class Followed:
    """A job whose log is shown until it ends, also over connections that break."""

    def __init__(self, client: Any, job_id: str, out: TextIO):
        self.client, self.job_id, self.out = client, job_id, out
        self.shown, self.end = 0, ""
        """Characters of the log so far, and the beginning of a line whose end has not come."""
        self.recorded_code: int | None = None
        """Exit code that the job recorded in its log."""

    def exit_code(self) -> int:
        """The job's exit code, once it has ended. What the client raises when the cluster does not answer for
        LOST_S."""
        from ray.job_submission import JobStatus  # noqa: TID251

        info = self._ended()
        if info.driver_exit_code is not None:
            return info.driver_exit_code
        if info.status == JobStatus.STOPPED:
            return TERMINATED if self.recorded_code is None else self.recorded_code
        return 0 if info.status == JobStatus.SUCCEEDED else 1

    def _ended(self) -> Any:
        from aiohttp import ClientError  # here: it comes with Ray's client

        answered = time.monotonic()
        while True:
            with suppress(OSError, RuntimeError, ClientError):  # a proxy that ended, a head that is away
                asyncio.run(self._follow())
            try:
                info = self.client.get_job_info(self.job_id)
            except (OSError, RuntimeError):
                if time.monotonic() - answered > LOST_S:
                    raise
            else:
                answered = time.monotonic()
                if info.status.is_terminal():
                    return info
            time.sleep(AGAIN_S)

    async def _follow(self) -> None:
        place = 0  # Ray tells a log from its beginning each time
        async for text in self.client.tail_job_logs(self.job_id):
            new, place = text[max(0, self.shown - place) :], place + len(text)
            if new:
                self.shown = place
                said = without_ray_preamble(new)
                print(said, end="", flush=True, file=self.out)
                self._read_record(said)

    def _read_record(self, new: str) -> None:
        lines = self.end + new
        self.end = lines.rpartition("\n")[2]
        if records := RECORD.findall(lines):
            self.recorded_code = int(records[-1])
        elif self.recorded_code is None and OLD_RECORD.search(lines):
            self.recorded_code = PreemptedError.exit_code


def _in_short(error: Exception) -> str:
    return shorten(str(error), 300, placeholder=" ...")
