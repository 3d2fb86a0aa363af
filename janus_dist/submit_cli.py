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
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from janus_dist.config.load import load_any
from janus_dist.config.settings import OVERRIDE
from janus_dist.errors import ClusterError, ConfigError, PreemptedError

EXCLUDED = (
    "/data", "/runs", "/weights", "/wandb", "/.git", "/.venv*", "**/__pycache__", "**/.*_cache", "/.hypothesis",
    "/*.egg-info",
)  # fmt: skip
"""Of the working directory, in the way of .gitignore."""
PASSED = re.compile(r"NCCL_\w+|TORCH_NCCL_\w+|FI_\w+|GLOO_\w+|WANDB_(MODE|PROJECT|ENTITY|BASE_URL)|JANUS_\w+")
"""Names of the shell's variables that a job gets; keys and tokens are not among them."""
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
RAYS_OWN = re.compile(
    r"^.*(job_manager\.py:\d+ -- Runtime env is setting up\.|Running entrypoint for job raysubmit_.*)\n", re.MULTILINE
)
"""What Ray says at the beginning of each job's log."""
DETACHED = 130

Job = Annotated[Path, typer.Argument(metavar="jobs/JOB.py", help="The job, as `python` would run it.")]
Arguments = Annotated[list[str] | None, typer.Argument(metavar="[RECIPE.yaml ...] [key.path=value ...]")]
Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="RAY_ADDRESS",
        help="Of the cluster's dashboard: http://HEAD:8265. RAY_API_SERVER_ADDRESS goes before RAY_ADDRESS.",
    ),
]
Stop = Annotated[int, typer.Option("--stop-wait-s", min=3, help="Seconds that a stopped job gets to save.")]
Env = Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE for driver and ranks; no secrets.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not follow the log.")]
NoUpload = Annotated[bool, typer.Option("--no-upload", help="Run what the cluster's image has, send no code.")]
Wait = Annotated[bool, typer.Option("--wait-for-nodes", help="By cluster/wait.py, for an autoscaler's nodes.")]


def submit_command(
    job: Job,
    arguments: Arguments = None,
    address: Address = "http://127.0.0.1:8265",
    stop_wait_s: Stop = 600,
    env: Env = None,
    no_wait: NoWait = False,
    no_upload: NoUpload = False,
    wait_for_nodes: Wait = False,
) -> int:
    """Submit a job to a Ray cluster, follow its log, and end with its exit code."""
    if not job.is_file():
        raise ConfigError(f"there is no job {job}", "run this in the repository's folder: janus submit jobs/stage2.py")
    words = [*(arguments or ()), *paths(job, arguments or ())]
    command = ["python", *(["cluster/wait.py"] if wait_for_nodes else []), job.as_posix(), *words]
    environment = variables(os.environ, env or ()) | {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_wait_s)}
    runtime_env: dict[str, Any] = {"env_vars": environment}
    if not no_upload:
        runtime_env |= {"working_dir": str(Path.cwd()), "excludes": list(EXCLUDED)}
    code = _run(address, shlex.join(command), runtime_env, no_wait)
    if code:
        sys.exit(code)
    return code


def paths(job: Path, arguments: Sequence[str]) -> list[str]:
    """Overrides that make the recipe's folders absolute: a job runs in a copy of the working directory, and what it
    wrote there would be lost. ConfigError when the recipe is wrong."""
    files = [Path(word) for word in arguments if not OVERRIDE.match(word)]
    given = [word for word in arguments if OVERRIDE.match(word)]
    tiny = job.parent / "recipes" / "tiny"  # what jobs take without a recipe
    defaults = [path for path in (tiny / "base.yaml", tiny / f"{job.stem}.yaml") if path.is_file()]
    recipe = load_any(files or defaults, given).recipe
    found = {"run.root": recipe.run.root, "data.root": recipe.data.root}
    if recipe.run.checkpoints is not None:
        found["run.checkpoints"] = recipe.run.checkpoints
    return [
        f"{name}={Path(value).absolute()}"
        for name, value in found.items()
        if "://" not in value and not Path(value).is_absolute()
    ]


def variables(shell: Any, given: Sequence[str]) -> dict[str, str]:
    """What the job gets of the shell's environment, and what `--env` names; ConfigError at secrets, which everyone who
    sees the dashboard would see."""
    found = {name: value for name, value in shell.items() if PASSED.fullmatch(name) and not SECRET.search(name)}
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


def _run(address: str, command: str, runtime_env: dict[str, Any], no_wait: bool) -> int:
    # here: Ray takes a second to import, and no other command needs it
    from ray.exceptions import AuthenticationError  # noqa: TID251
    from ray.job_submission import JobStatus, JobSubmissionClient  # noqa: TID251

    try:
        client = JobSubmissionClient(address)  # which turns Ray's logs on: what is packed, when a connection closes
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("ray")]:
            logging.getLogger(name).setLevel(logging.ERROR)
        job_id = client.submit_job(entrypoint=command, runtime_env=runtime_env)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        raise ClusterError(
            f"the cluster at {address} does not take jobs: {' '.join(str(error).split())[:300]}",
            "see that it runs and its dashboard can be reached (ssh -L 8265:127.0.0.1:8265 HEAD), or give --address; "
            "RAY_ADDRESS, RAY_API_SERVER_ADDRESS and RAY_AUTH_TOKEN_PATH may be those of a cluster that is gone",
        ) from error
    shown = shlex.quote(address)
    print(f"{job_id}: {command}")
    print(f"  ray job stop --address {shown} {job_id}    # the run saves first")
    if no_wait:
        print(f"  ray job logs --follow --address {shown} {job_id}")
        return 0
    try:
        asyncio.run(_follow(client, job_id))
    except KeyboardInterrupt:
        print(f"the job goes on; stop it with: ray job stop --address {shown} {job_id}", file=sys.stderr)
        return DETACHED
    info = client.get_job_info(job_id)
    if info.driver_exit_code is not None:
        return info.driver_exit_code
    if info.status == JobStatus.STOPPED:
        return PreemptedError.exit_code
    return 0 if info.status == JobStatus.SUCCEEDED else 1


async def _follow(client: Any, job_id: str) -> None:
    async for text in client.tail_job_logs(job_id):
        print(RAYS_OWN.sub("", text), end="", flush=True)
