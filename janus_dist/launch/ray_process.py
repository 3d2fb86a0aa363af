"""A process beside a job that talks to a Ray which may not answer: it asks for nodes, or starts a local Ray.

    python -P ray_process.py nodes HOST:PORT {found|named}    # does it answer, and what do its nodes have
    python -P ray_process.py start                            # a local Ray; it ends when stdin is closed

Invariant: the answer is a line of JSON on stdout, what Ray prints goes to stderr. Ray waits for minutes in C++ code,
where no signal of Python is handled and a failed check aborts the process; a job that waits for this process instead
can be interrupted, and kills it when the time is up.
"""

import json
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

CONNECT_TIMEOUT_S = 5.0
"""Seconds within which a host must accept a connection."""
RPC_TIMEOUT_S = 15.0
"""Seconds within which a Ray that was connected to must answer a request."""


def main(arguments: list[str]) -> None:
    """Do what the command line asks for; exit code 1 after a fault, which is told on stdout."""
    out = sys.stdout
    sys.stdout = sys.stderr  # Ray's own prints

    def answer(**values: Any) -> None:
        out.write(json.dumps(values) + "\n")
        out.flush()

    what, *given = arguments
    try:
        if what == "start":
            _start(answer)
        else:
            _ask(answer, *given)
    except Exception as error:  # a border: whatever Ray raises, plain Exception among it, is told to the job
        is_refused = any(kind.__name__ == "AuthenticationError" for kind in type(error).__mro__)
        _fail(answer, error, is_refused)


def _ask(answer: Callable[..., None], address: str, origin: str) -> None:
    """Answer with the resources of the living nodes of the Ray at an address."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    from ray._private.authentication import authentication_token_setup as tokens
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]

    if origin == "found":  # as ray.init does: a token of this user goes with an address that nobody named
        tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    tokens.ensure_token_if_auth_enabled({}, create_token_if_missing=False)
    answer(nodes=_living(GcsClient(address=address).get_all_node_info(timeout=RPC_TIMEOUT_S)))


def _living(nodes: Mapping[Any, Any]) -> list[dict[str, float]]:
    """Return the resources of each living node, by Ray's names."""
    return [dict(node.resources_total) for node in nodes.values() if node.state == node.ALIVE]


def _start(answer: Callable[..., None]) -> None:
    """Start a local Ray, answer with its address, and end it when the job is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the job ends this process when it is ready to
    from ray._private import node, parameter
    from ray._private.authentication import authentication_token_setup as tokens

    tokens.enable_token_auth_by_default()
    tokens.ensure_token_if_auth_enabled({}, create_token_if_missing=True)
    # Ray's processes die with this one (fate sharing by the kernel), also when it is killed.
    local = node.Node(
        ray_params=parameter.RayParams(),
        head=True,
        shutdown_at_exit=False,
        spawn_reaper=True,
        ray_init_cluster=True,
    )
    try:
        answer(address=local.gcs_address)
        sys.stdin.read()
    finally:
        local.kill_all_processes(check_alive=False, allow_graceful=True)


def _fail(answer: Callable[..., None], error: Exception, is_refused: bool) -> NoReturn:
    """Tell a fault and end."""
    text = " ".join(str(error).split())
    answer(fault=f"{type(error).__name__}: {text}"[:400], is_refused=is_refused)
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
