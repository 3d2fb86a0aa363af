"""Which Ray a job joins: the one that was named, one that answers, or a local one of its own; and how long it waits."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._private import services

from janus_dist.errors import ClusterError, ConfigError
from janus_dist.launch import session
from tests import limits

SILENT = "import time; time.sleep(600)"


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Addresses that were joined, and `local` for a local Ray that was started, on a machine where none runs."""
    found: list[str] = []

    def init(address: str, **settings: Any) -> None:
        found.append(address)
        signal.signal(signal.SIGTERM, lambda *_: None)  # as Ray does

    monkeypatch.setattr(session.ray, "init", init)
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session, "_start_local", lambda _: found.append("local"))
    monkeypatch.setattr(session.tokens, "maybe_enable_token_auth_if_token_available", lambda **_: False)
    monkeypatch.setattr(services, "find_gcs_addresses", frozenset)
    monkeypatch.setattr(services, "resolve_ip_for_localhost", lambda host: host)
    monkeypatch.setattr(session, "POLL_S", 0.05)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(session.tempfile, "tempdir", str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)
    yield found
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that were started."""
    started, popen = [], session.subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(session.subprocess, "Popen", start)
    return started


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def dead() -> str:
    """An address at which nothing listens any more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def record(folder: Path, address: str) -> None:
    """Write the file that `ray start` writes."""
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(address)


def child(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a script stand in for ray_process.py."""
    monkeypatch.setattr(session, "CHILD", (sys.executable, "-c", script))


def test_without_any_a_local_one_is_started(joined, children, caplog):
    session.connect()
    assert joined == ["local"] and not children and not caplog.messages


def test_a_jobs_own_way_to_end_is_kept(monkeypatch, joined, tmp_path, dead):
    child(monkeypatch, 'print(\'{"nodes": [{"CPU": 2.0}]}\')')
    record(tmp_path, dead)
    signal.signal(signal.SIGTERM, mine := lambda *_: None)
    session.connect()
    assert joined == [dead] and signal.getsignal(signal.SIGTERM) is mine


def test_the_address_of_one_that_was_killed_is_not_waited_for(joined, tmp_path, dead, caplog):
    record(tmp_path, dead)
    session.connect()
    assert joined == ["local"]
    assert len(caplog.messages) == 1 and f"the Ray at {dead} does not answer (ConnectionRefused" in caplog.text
    assert "a local Ray is started" in caplog.text


def test_one_that_takes_connections_and_does_not_answer_is_left(
    monkeypatch, joined, children, tmp_path, silent, caplog
):
    monkeypatch.setattr(session, "PROBE_TIMEOUT_S", 1.0)
    record(tmp_path, silent)
    session.connect()
    assert joined == ["local"] and all(each.poll() is not None for each in children)
    assert len(caplog.messages) == 1 and f"the Ray at {silent} does not answer (no reply within" in caplog.text


def test_the_address_that_ray_will_use_is_the_one_that_is_asked(monkeypatch, joined, tmp_path, silent, caplog):
    """Ray takes loopback for the machine's address on its network, where a Ray on loopback does not listen."""
    port = silent.split(":")[1]
    monkeypatch.setattr(services, "resolve_ip_for_localhost", lambda _: "127.0.0.2")
    record(tmp_path, silent)
    session.connect()
    assert joined == ["local"] and f"the Ray at 127.0.0.2:{port} does not answer (ConnectionRefused" in caplog.text


def test_one_that_wants_another_token_is_left(monkeypatch, joined, tmp_path, dead, caplog):
    child(monkeypatch, 'print(\'{"fault": "AuthenticationError: no", "is_refused": true}\')')
    record(tmp_path, dead)
    session.connect()
    assert joined == ["local"] and caplog.messages == [f"the Ray at {dead} wants another token: a local Ray is started"]


def test_one_that_answers_is_joined(monkeypatch, joined, tmp_path, dead, caplog):
    child(monkeypatch, 'print(\'{"nodes": [{"CPU": 2.0}]}\')')
    record(tmp_path, dead)
    session.connect()
    assert joined == [dead] and not caplog.messages
    assert session.resources() == [{"CPU": 2.0}]


@pytest.mark.parametrize("kind", ["silent", "dead"])
def test_one_that_was_named_is_joined_or_the_job_ends(monkeypatch, joined, children, request, kind):
    address = request.getfixturevalue(kind)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(session, "ATTACH_TIMEOUT_S", 1.0)
    for start in (session.connect, session.join):
        with pytest.raises(ClusterError, match=f"RAY_ADDRESS={address} cannot be reached, tried for 1 s: ") as caught:
            start()
        assert "RAY_ADDRESS=local" in (caught.value.hint or "")
    assert not joined and children and all(each.poll() is not None for each in children)
    monkeypatch.setattr(session, "PROBE_TIMEOUT_S", 1.0)
    with pytest.raises(ClusterError, match="cannot be reached"):
        session.resources()


def test_one_that_was_named_is_tried_until_it_answers(monkeypatch, joined, tmp_path, dead):
    count = f"import pathlib; path = pathlib.Path({str(tmp_path / 'count')!r})\npath.open('a').write('x')\n"
    fault = '{"fault": "ConnectionRefusedError", "is_refused": false}'
    child(monkeypatch, f"{count}print({fault!r} if path.stat().st_size < 3 else '{{\"nodes\": []}}')")
    monkeypatch.setenv("RAY_ADDRESS", dead)
    session.connect()
    assert joined == [dead] and (tmp_path / "count").stat().st_size == 3


def test_a_token_that_is_refused_is_not_tried_again(monkeypatch, joined, children, dead):
    child(monkeypatch, 'print(\'{"fault": "AuthenticationError: no", "is_refused": true}\')')
    monkeypatch.setenv("RAY_ADDRESS", dead)
    with pytest.raises(ClusterError, match=f"RAY_ADDRESS={dead} wants a token, and this shell has none or another"):
        session.connect()
    assert len(children) == 1 and not joined


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://head:10001", "head"])
def test_what_is_no_address_of_a_cluster_is_refused(monkeypatch, joined, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    for look in (session.connect, session.join, session.resources):
        with pytest.raises(ConfigError, match=f"RAY_ADDRESS={address} is not "):
            look()
    assert not joined


def test_a_local_one_that_was_asked_for_is_started_beside_any_other(monkeypatch, joined, children, tmp_path, silent):
    record(tmp_path, silent)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    session.connect()
    assert joined == ["local"] and session.resources() is None and not children
    with pytest.raises(ConfigError, match="RAY_ADDRESS=local asks for a Ray of the job's own"):
        session.join()


def test_the_wait_ends_when_a_signal_comes(monkeypatch, joined, children, silent):
    """Ray's own wait is in C++ code, where signals are not handled."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("RAY_ADDRESS", silent)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            session.connect()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not joined and all(each.poll() is not None for each in children)


FAILURES = {
    "a fault": ('print(\'{"fault": "Exception: timed out during startup", "is_refused": false}\')', "timed out during"),
    "an abort": ("import os; os.write(2, b'a check failed'); os.abort()", "ended with -6"),
    "no answer": (SILENT, "it was not up after 1 s"),
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_local_one_that_does_not_start_ends_the_job(monkeypatch, children, tmp_path, how):
    script, said = FAILURES[how]
    child(monkeypatch, script)
    monkeypatch.setattr(session, "START_TIMEOUT_S", 1.0)
    monkeypatch.setattr(session, "POLL_S", 0.05)
    monkeypatch.setattr(session.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session.tokens, "enable_token_auth_by_default", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(ClusterError, match=f"a local Ray did not start: .*{said}") as caught:
        session.connect()
    assert caught.value.exit_code == 6 and [each.poll() is None for each in children] == [False]
    logs = list(tmp_path.glob("janus-ray-*.log"))
    assert [str(path) in (caught.value.hint or "") for path in logs] == [True] * (how == "an abort")


def test_a_local_one_ends_with_the_job(monkeypatch, children, tmp_path):
    begun, ended = [], []
    child(monkeypatch, 'import sys; print(\'{"address": "127.0.0.1:9"}\', flush=True); sys.stdin.read()')
    monkeypatch.setattr(session.ray, "init", lambda address, **_: begun.append(address))
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session.ray, "shutdown", lambda: ended.append(True))
    monkeypatch.setattr(session.tokens, "enable_token_auth_by_default", lambda: False)
    monkeypatch.setattr(session.atexit, "register", lambda do, process: ended.append((do, process)))
    monkeypatch.setattr(session.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    session.connect()
    assert begun == ["127.0.0.1:9"] and children[0].poll() is None
    (do, process) = ended[0]
    do(process)
    assert ended[1:] == [True] and process.poll() == 0


STUCK = """
import ctypes, sys
from janus_dist.launch import ray_watch, session
from janus_dist.cli.job import SigtermHandler

libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
says = ["joining"]

def lock_twice(**_):
    while True:
        try:
            while says:
                print(says.pop(), flush=True)
            libc.pthread_mutex_lock(mutex)
        except KeyboardInterrupt:  # the signal came before this was stuck
            pass

session.ray.init = lock_twice
ray_watch.JOIN_TIMEOUT_S, ray_watch.SIGNAL_GRACE_S = float(sys.argv[1]), 0.2
SigtermHandler()
session._attach("192.0.2.1:6379")
"""
"""Joins a Ray in C code that waits for ever, whatever signals come."""


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [
        (None, 6, "the Ray at 192.0.2.1:6379 answers, but this node's part of it did not within 0 s"),
        (signal.SIGINT, 130, "the job was asked to stop while it joined Ray"),
        (signal.SIGTERM, 75, "the job was asked to stop while it joined Ray"),
    ],
)
def test_joining_ends_although_ray_waits_for_ever(sent, code, said):
    command = [sys.executable, "-c", STUCK, "0.2" if sent is None else "600"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "joining\n"
    if sent is not None:
        process.send_signal(sent)
    _, printed = process.communicate(timeout=limits.HANG_S)
    assert (process.returncode, printed.splitlines()[:1]) == (code, [said])


LEFT_ALONE = """
import sys, time
from types import SimpleNamespace
from janus_dist.launch import ray_watch, session
session.ray.init = lambda **_: None
session.ray.is_initialized = lambda: True
session.ray.get_runtime_context = lambda: SimpleNamespace(gcs_address=sys.argv[1 + (len(sys.argv) > 2)])
ray_watch.HEAD_POLL_S, ray_watch.HEAD_LOST_TIMEOUT_S = 0.05, 0.2
session._attach(sys.argv[1])
print("joined", flush=True)
time.sleep(600 if len(sys.argv) == 2 else 1)
"""


def test_a_job_ends_when_its_head_is_gone():
    """Ray itself would end it with 1, a minute later and in its own words."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        command = [sys.executable, "-c", LEFT_ALONE, address]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "joined\n"
        for _ in range(10):
            head.accept()[0].close()
        assert process.poll() is None, "a head that answers is not given up"
    _, printed = process.communicate(timeout=limits.HANG_S)
    assert process.returncode == 6, printed
    assert f"the head of the Ray cluster at {address} has not answered" in printed


def test_a_ray_that_was_left_for_another_is_not_watched():
    """Its head may end, and the process goes about its work with the other."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
    command = [sys.executable, "-c", LEFT_ALONE, address, "127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limits.HANG_S)
    assert (done.returncode, done.stdout) == (0, "joined\n"), done.stderr
