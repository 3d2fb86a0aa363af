"""A small S3 server that streams ranges of objects and fails as it is told to.

It speaks as much of S3 as reading needs (GetObject with a Range, errors in XML) and keeps a list of what was asked.
Invariant: a request without a fault gets the bytes of the object, so that a test may compare every byte.

    python -m tests.s3_faults --latency-ms 20 --mib 64      # its own process, for measurements: prints its URL
"""

import argparse
import os
import re
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")  # must not be set
ERRORS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "internal": (500, "InternalError", "We encountered an internal error."),
    "bad_gateway": (502, "", "what stands before the store does not speak S3"),
    "denied": (403, "AccessDenied", "Access Denied"),
}
FAULTS = ("ok", "reset", "stall", "stall_body", "trickle", "short", "other_length", "wrong", "whole", *ERRORS)


@dataclass(frozen=True)
class Seen:
    """One request: bytes `start` to `stop` of an object."""

    path: str
    start: int
    stop: int


class FaultyS3:
    """The server, as a context manager; `faults` are used up one a request, in the order of arrival."""

    def __init__(self, objects: dict[str, bytes], latency_s: float = 0.0):
        """`objects`: by `BUCKET/KEY`. `latency_s`: wait before the first byte of each answer."""
        self.objects, self.latency_s = dict(objects), latency_s
        self.faults: deque[str] = deque()
        self.requests: list[Seen] = []
        self.lock = threading.Lock()
        self.released = threading.Event()  # ends all stalls
        owner = self

        class Handler(_Handler):
            s3 = owner

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that hung up is what these tests are about."""

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self._thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "FaultyS3":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
        self._thread.join()

    def fail(self, *faults: str) -> None:
        """What the next requests meet; `ok` for one that is answered well."""
        assert set(faults) <= set(FAULTS), faults
        self.faults.extend(faults)

    @property
    def environment(self) -> dict[str, str]:
        """What a client must have in its environment."""
        return {"AWS_ENDPOINT_URL": self.url, **CREDENTIALS}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 65_536
    s3: FaultyS3

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        name = self.path.lstrip("/").split("?")[0]
        content = self.s3.objects.get(name)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(content or b""))
        with self.s3.lock:
            self.s3.requests.append(Seen(f"s3://{name}", start, stop))
            fault = self.s3.faults.popleft() if self.s3.faults else "ok"
        if fault == "stall":
            self.s3.released.wait(60)
        time.sleep(self.s3.latency_s)
        if fault in ERRORS:
            self._error(*ERRORS[fault])
        elif content is None:
            self._error(404, "NoSuchKey", "The specified key does not exist.")
        elif start >= len(content):
            self._error(416, "InvalidRange", "The requested range is not satisfiable")
        else:
            self._answer(content, start, min(stop, len(content)), fault)

    def _answer(self, content: bytes, start: int, stop: int, fault: str) -> None:
        body = content[start:stop]
        if fault == "wrong":
            body = bytes(byte ^ 0xFF for byte in body)
        if fault == "other_length":  # consistent in itself, but less than the range says
            body = body[: len(body) // 2]
        if fault == "whole":
            self.send_response(200)
            body = content
        else:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0"')
        self.end_headers()
        if fault not in ("reset", "short", "stall_body", "trickle"):
            self.wfile.write(body)
            return
        half = len(body) // 2
        self.wfile.write(body[:half])
        self.wfile.flush()
        if fault == "stall_body":
            self.s3.released.wait(60)
        elif fault == "trickle":
            for byte in body[half:]:
                if self.s3.released.wait(0.05):
                    break
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
        elif fault == "reset":  # RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        self.close_connection = True

    def _error(self, status: int, code: str, message: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        if not code:
            body = f"<html><p>{message}<hr></html>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def noise(num_bytes: int, seed: int = 0) -> bytes:
    """Bytes of which no two pieces are alike."""
    return np.random.default_rng(seed).bytes(num_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description="serve one object s3://shards/shard of random bytes")
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--mib", type=int, default=64)
    given = parser.parse_args()
    with FaultyS3({"shards/shard": noise(given.mib << 20)}, given.latency_ms / 1e3) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
