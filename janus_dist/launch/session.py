"""Ray: find the cluster that a job is to join, or start a local one; join it and leave it.

Invariant: the address that is asked is the one that Ray will use, and it is asked by another process (ray_process.py)
within a time, so that SIGTERM and Ctrl-C end the wait. A cluster that was named is joined or the job ends: no local Ray
takes its place.
"""

import atexit
import json
import logging
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep CUDA_VISIBLE_DEVICES of a process without GPUs

import ray
from ray._private import services
from ray._private.authentication import authentication_token_setup as tokens

from janus_dist.errors import ClusterError, ConfigError
from janus_dist.failures import one_line
from janus_dist.launch.capacity import Resources
from janus_dist.launch.ray_watch import ended_if_stuck, watch_head

PROBE_TIMEOUT_S = 20.0
"""Seconds within which a Ray must answer."""
ATTACH_TIMEOUT_S = 60.0
"""Seconds for which a cluster that was named is tried again."""
START_TIMEOUT_S = 180.0
"""Seconds within which a local Ray must be up; Ray itself gives its node 30."""
STOP_TIMEOUT_S = 30.0
"""Seconds that a local Ray may take to end."""
POLL_S = 1.0
SETTINGS: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "janus_dist"}
"""How every driver joins Ray."""
RAY_TOKEN = Path.home() / ".ray" / "auth_token"
"""Where Ray keeps a token of this user."""
ADDRESS, LOCAL = "RAY_ADDRESS", "local"
"""The variable that names a cluster, and its value for a local Ray."""
CHILD = (sys.executable, "-P", "-W", "ignore", str(Path(__file__).with_name("ray_process.py")))
TOKEN_HINT = (
    'for the cluster of cluster/local.sh: eval "$(cluster/local.sh env)"; else export RAY_AUTH_MODE=token and '
    "RAY_AUTH_TOKEN_PATH, the file with its token"
)

log = logging.getLogger("janus_dist")


class NoAnswerError(Exception):
    """A Ray does not answer; `is_refused` where it does, and refuses this shell's token."""

    def __init__(self, fault: str, is_refused: bool = False):
        super().__init__(fault)
        self.is_refused = is_refused


class RayLog:
    """A file for what Ray prints while it is looked for or started; it stays only where `keep` was called."""

    def __enter__(self) -> "RayLog":
        handle, name = tempfile.mkstemp(prefix="janus-ray-", suffix=".log")
        self.file, self.path, self.is_kept = os.fdopen(handle, "w"), Path(name), False
        return self

    def keep(self) -> str:
        """Keep the file; return what says where it is, and nothing when Ray printed nothing."""
        self.is_kept = self.path.stat().st_size > 0
        return f"; what Ray printed is in {self.path}" if self.is_kept else ""

    def __exit__(self, *exception: object) -> None:
        self.file.close()
        if not self.is_kept:
            self.path.unlink(missing_ok=True)


def connect() -> None:
    """Join the running Ray cluster (that of the submitted job, or of this machine), or start a local one.

    Raises ClusterError when the cluster that RAY_ADDRESS names does not answer within ATTACH_TIMEOUT_S, and when a
    local Ray does not start; ConfigError when RAY_ADDRESS is no address of a cluster.
    """
    if ray.is_initialized():
        return
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    logging.getLogger("ray").setLevel(logging.ERROR)
    with RayLog() as noise:
        if is_local_wanted():
            _start_local(noise)
        elif named_address():
            _join_named(noise)
        elif not _join_found(noise):
            _start_local(noise)


def join() -> None:
    """Join a running Ray cluster, the one that RAY_ADDRESS names or that of this machine. Starts none: ClusterError
    when none answers within ATTACH_TIMEOUT_S."""
    if is_local_wanted():
        raise ConfigError(
            f"{ADDRESS}={LOCAL} asks for a Ray of the job's own, and this waits for the nodes of a cluster",
            f"unset {ADDRESS}, or run the job itself: python jobs/stage2.py --local",
        )
    with RayLog() as noise:
        _join_named(noise)


def resources() -> list[Resources] | None:
    """Return the resources of each node of the Ray cluster that a job would join; None where the job would start a
    local Ray. Starts and joins none.

    Raises ClusterError when the cluster that RAY_ADDRESS names does not answer.
    """
    if is_local_wanted():
        return None
    with RayLog() as noise:
        try:
            return nodes_at(find_address(), PROBE_TIMEOUT_S, noise)
        except NoAnswerError as error:
            if named_address():
                _fail_named(error, PROBE_TIMEOUT_S, noise)
            return None


def is_local_wanted() -> bool:
    """Return whether RAY_ADDRESS asks for a local Ray, as `--local` does."""
    return os.environ.get(ADDRESS) == LOCAL


def named_address() -> str | None:
    """Return what RAY_ADDRESS names, None where it is absent, empty or `local`."""
    return None if is_local_wanted() else os.environ.get(ADDRESS) or None


def find_address() -> str:
    """Return HOST:PORT of the cluster that Ray would join: the one that RAY_ADDRESS names, else one of this machine.

    Ray takes a host that is this machine, as 127.0.0.1, for this machine's address on its network. Raises NoAnswerError
    where none runs here, ConfigError when RAY_ADDRESS is no address.
    """
    named = named_address()
    if named and "://" in named:
        raise ConfigError(
            f"{ADDRESS}={named} is not the address of a cluster's head; it should be HOST:PORT, as HEAD:6379",
            f"submit the job to the dashboard (janus submit JOB --address http://HEAD:8265), or unset {ADDRESS}",
        )
    getattr(services.find_gcs_addresses, "cache_clear", lambda: None)()  # one that was found before may be gone
    try:
        address = services.canonicalize_bootstrap_address("auto")
    except ConnectionError as error:
        raise NoAnswerError("no Ray runs on this machine") from error
    except ValueError as error:
        raise ConfigError(f"{ADDRESS}={named} is not HOST:PORT", f"write {ADDRESS}=HEAD:6379, or unset it") from error
    assert address is not None, "only `local` has no address"
    return address


def nodes_at(address: str, timeout_s: float, noise: RayLog) -> list[Resources]:
    """Return the resources of each node of the Ray at an address. Raises NoAnswerError."""
    origin = "named" if named_address() else "found"
    command = [*CHILD, "nodes", address, origin]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noise.file, start_new_session=True, text=True)
    try:
        out, _ = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"no reply within {timeout_s:.0f} s") from None
    finally:
        _kill(child)
    return _answer(out, child)["nodes"]


def _answer(line: str, child: "subprocess.Popen[str]") -> dict[str, Any]:
    """Return what a process answered. Raises NoAnswerError when that is a fault, or nothing."""
    try:
        found = json.loads(line)
    except ValueError:
        raise NoAnswerError(f"the process that asked it ended with {child.wait()}") from None
    if "fault" in found:
        raise NoAnswerError(found["fault"], found["is_refused"])
    return found


def _join_named(noise: RayLog) -> None:
    """Join the cluster that is to be there; tried again for ATTACH_TIMEOUT_S."""
    deadline, is_told = time.monotonic() + ATTACH_TIMEOUT_S, False
    while True:
        left = deadline - time.monotonic()
        try:
            address = find_address()
            nodes_at(address, max(POLL_S, min(left, PROBE_TIMEOUT_S)), noise)
            break
        except NoAnswerError as error:
            if error.is_refused or left < POLL_S:
                _fail_named(error, ATTACH_TIMEOUT_S, noise)
            if not is_told:
                log.info("%s does not answer yet (%s); trying for %.0f s", _target(), error, ATTACH_TIMEOUT_S)
                is_told = True
        time.sleep(POLL_S)
    try:
        _attach(address)
    except Exception as error:  # a border: Ray raises errors of many kinds, plain Exception among them
        _fail_named(NoAnswerError(one_line(error)), ATTACH_TIMEOUT_S, noise)


def _target() -> str:
    """Return name the cluster that a job is to join."""
    named = named_address()
    if named is None:
        return "a Ray cluster on this machine"
    with suppress(ConfigError, NoAnswerError):
        if (address := find_address()) != named:
            return f"the Ray cluster at {ADDRESS}={named}, which is {address} to Ray,"
    return f"the Ray cluster at {ADDRESS}={named}"


def _fail_named(error: NoAnswerError, waited_s: float, noise: RayLog) -> NoReturn:
    """Raise ClusterError for a cluster that is to be there."""
    if error.is_refused:
        raise ClusterError(f"{_target()} wants a token, and this shell has none or another", TOKEN_HINT) from error
    raise ClusterError(
        f"{_target()} cannot be reached, tried for {waited_s:.0f} s: {error}",
        "see that it runs (`ray status`) and that this machine is one of its nodes; --local, or "
        f"{ADDRESS}={LOCAL}, starts a Ray of the job's own{noise.keep()}",
    ) from error


def _join_found(noise: RayLog) -> bool:
    """Join the Ray of this machine; False where there is none, or it is of no use, which is said in one line."""
    try:
        address = find_address()
    except NoAnswerError:
        return False
    try:
        nodes_at(address, PROBE_TIMEOUT_S, noise)
        tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        _attach(address)
    except NoAnswerError as error:
        why = "wants another token" if error.is_refused else f"does not answer ({error})"
    except Exception as error:  # a border, as above
        why = f"cannot be joined ({one_line(error)})"
    else:
        return True
    log.warning("the Ray at %s %s: a local Ray is started%s", address, why, noise.keep())
    return False


def _attach(address: str) -> None:
    """Join the Ray at an address, which answers; what a failure leaves is undone."""
    with _sigterm_kept(), ended_if_stuck(address):
        try:
            ray.init(address=address, **SETTINGS)
        except BaseException:
            with suppress(Exception):
                ray.shutdown()
            raise

    def is_joined() -> bool:
        return ray.is_initialized() and ray.get_runtime_context().gcs_address == address

    threading.Thread(target=watch_head, args=(address, is_joined), name="ray head", daemon=True).start()


def _start_local(noise: RayLog) -> None:
    """Start a local Ray and join it."""
    # A token of its own: Ray would write one to ~/.ray/auth_token, and from then on `ray start` would demand it of a
    # `ray job submit` that does not send it. Where there is that file, other processes of this user know its token.
    if not RAY_TOKEN.exists() and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    tokens.enable_token_auth_by_default()
    child = subprocess.Popen(
        [*CHILD, "start"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=noise.file,
        start_new_session=True,  # or Ctrl-C would end Ray before the run has saved
        text=True,
    )
    try:
        address = _answer(_first_line(child, START_TIMEOUT_S), child)["address"]
        _attach(address)
    except Exception as error:  # a border, as above
        _kill(child)
        raise ClusterError(
            f"a local Ray did not start: {one_line(error)}",
            "see that there is memory, room in /dev/shm and in RAY_TMPDIR (/tmp), and that this machine can reach its "
            f"own address; the same command tries again{noise.keep()}",
        ) from error
    except BaseException:
        _kill(child)
        raise
    atexit.register(_end_local, child)  # before Ray's own, which was registered first


def _first_line(child: "subprocess.Popen[str]", timeout_s: float) -> str:
    """Return the first line that a process prints, empty if it ends before. Raises NoAnswerError after a time."""
    assert child.stdout is not None
    deadline = time.monotonic() + timeout_s
    while not select.select([child.stdout], [], [], POLL_S)[0]:
        if time.monotonic() > deadline:
            raise NoAnswerError(f"it was not up after {timeout_s:.0f} s")
    return child.stdout.readline()


def _end_local(child: "subprocess.Popen[str]") -> None:
    """Leave a local Ray and end it."""
    with suppress(Exception):
        ray.shutdown()
    with suppress(OSError, subprocess.TimeoutExpired):
        assert child.stdin is not None
        child.stdin.close()
        child.wait(STOP_TIMEOUT_S)
    _kill(child)


def _kill(child: "subprocess.Popen[str]") -> None:
    """End a process; those of a local Ray end with it."""
    if child.poll() is None:
        child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the job's own way to end by SIGTERM, which Ray replaces when it is joined."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
