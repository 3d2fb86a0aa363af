"""Reading of one range from a local file, or from an object by one S3 request, with retries.

Invariant: `Fetcher.fetch` returns exactly the bytes from `start` to `stop`, or to the object's end when that comes
first, or raises DataError. Every request has a time limit, and only this module retries (s3fs and botocore are set to
one attempt), so attempts never multiply.
"""

import asyncio
import os
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import aiohttp
import fsspec
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as StoreConnectionError
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync
from fsspec.config import conf

from janus_dist.errors import DataError
from janus_dist.storage.repair import REMAKE_MISSING, REMAKE_SHARD

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 20.0
"""First and longest pause between two attempts, in seconds."""
CONNECT_TIMEOUT_S = 5.0
"""Seconds within which a connection to the store must be made."""
SLOWEST_BYTES_PER_S = 1_000_000
"""Rate in bytes per second below which an answer counts as stalled, even when bytes still arrive."""
LATE_MEDIANS = 3.0
"""Multiple of the median time after which a request is late and is sent a second time: a robust substitute for the 99th
percentile that needs few observations and does not grow when more than one in a hundred requests stalls."""
LATE_FLOOR_S = 0.1
"""Seconds below which no request is late, because a pause of this process would look like a late answer."""
LATE_COLD_S = 1.0
"""Seconds after which a request is late before `PACE_SAMPLES` answers have arrived."""
PACE_SAMPLES, PACE_WINDOW = 16, 256
"""Answers needed for a median, and answers over which it is computed."""
HEDGE_SHARE, HEDGE_ALLOWANCE = 0.05, 10
"""Share of all requests that may be second requests, and their number at the start: a store that is slow everywhere
must not get every request twice."""
FIRST_BYTE_BYTES = 4 << 20
"""Bytes that take about as long to send as the first byte takes to arrive: 80 ms at 50 MB/s."""

RESUME = "the store or the network failed; when it works again, run the same command again to resume the run"
"""Hint for failures that another attempt may not have."""
TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "InternalError"}
TRANSIENT_ERRORS = (
    HTTPClientError,
    IncompleteReadError,
    CredentialRetrievalError,  # credentials of the node's role: the service that provides them did not answer
    MetadataRetrievalError,
    StoreConnectionError,
    ResponseParserError,
    aiohttp.ClientError,
)


@dataclass
class ReadCounters:
    """Counters of all reads of this process so far."""

    requests: int = 0
    """Requests to the store and reads of local files, second and repeated ones included."""
    bytes_fetched: int = 0
    """Bytes that the store or local files returned."""
    bytes_asked: int = 0
    """Bytes that callers of `read` received."""
    pages_hit: int = 0
    """Pages read from the node's cache."""
    pages_missed: int = 0
    """Pages fetched from the store because the node's cache did not have them."""
    retries: int = 0
    """Attempts after a failed one."""
    hedges: int = 0
    """Second requests for late answers."""
    wait_s: float = 0.0
    """Seconds that callers spent in `read`, summed over threads."""


class ReadTally:
    """Read counters that several threads increase."""

    def __init__(self) -> None:
        self._counters, self._lock = ReadCounters(), threading.Lock()

    def add(self, **amounts: float) -> None:
        """Increase counters by their name."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self._counters, name, getattr(self._counters, name) + amount)

    def now(self) -> ReadCounters:
        """Return a copy of the counters."""
        with self._lock:
            return replace(self._counters)


class AttemptError(Exception):
    """Failure of one attempt: its cause, whether another attempt may succeed, and a hint for the user."""

    def __init__(self, cause: str, transient: bool, hint: str):
        super().__init__(cause)
        self.cause, self.transient, self.hint = cause, transient, hint


class Store(Protocol):
    """A source of objects or files."""

    def get(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop` or the object's end by one attempt; raise AttemptError."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


class Fetcher:
    """Reader of ranges from any store, with retries. Threads may share it; `close` ends their pauses."""

    def __init__(self, timeout_s: float, threads: int, patience_s: float, tally: ReadTally):
        """Create a fetcher whose requests fail after `timeout_s` without an answer and are retried for `patience_s`."""
        self.patience_s, self.tally = patience_s, tally
        self._closing = threading.Event()
        self._stores: dict[str, Store] = {"file": LocalStore(tally), "s3": S3Store(timeout_s, threads, tally)}

    def fetch(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, fewer only where the object ends.

        Raises DataError when the attempts fail for longer than `patience_s`, or a retry would fail again.
        """
        store, began, attempt = self._stores[protocol(path)], time.monotonic(), 1
        while True:
            try:
                content = store.get(path, start, stop)
                self.tally.add(bytes_fetched=len(content))
                return content
            except AttemptError as failure:
                tried_s, pause = time.monotonic() - began, pause_s(attempt)
                is_retried = failure.transient and tried_s + pause < self.patience_s
                if not is_retried or self._closing.wait(pause):
                    tried = f"attempt {attempt}, after {tried_s:.1f} s"
                    final = "" if failure.transient else "; not retried, because it would fail again"
                    raise DataError(
                        f"{path} cannot be read, bytes {start} to {stop - 1}: {failure.cause} ({tried}){final}",
                        failure.hint,
                    ) from failure
            attempt += 1
            self.tally.add(retries=1)

    def close(self) -> None:
        """End the pauses between attempts and close all stores."""
        self._closing.set()
        for store in self._stores.values():
            store.close()


def protocol(path: str) -> str:
    """Return `file` or `s3`, the kind of a path; raise DataError when it is neither."""
    name = fsspec.core.split_protocol(path)[0]
    if name in (None, "file", "local"):
        return "file"
    if name in ("s3", "s3a"):
        return "s3"
    raise DataError(f"{path} cannot be read: it is neither local nor in S3", "use a local path or s3://BUCKET/KEY")


def is_local(path: str) -> bool:
    """Return whether a path is on a disk of this machine, network disks included; raise DataError as `protocol`."""
    return protocol(path) == "file"


def pause_s(attempt: int) -> float:
    """Return the seconds to wait after a failed attempt (from 1): doubling, and half random to spread ranks."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)


class LocalStore:
    """Store of local files. Each file is opened for one read and closed, so each reading thread has one open file."""

    def __init__(self, tally: ReadTally):
        self.tally = tally

    def get(self, path: str, start: int, stop: int) -> bytes:
        self.tally.add(requests=1)
        try:
            file = os.open(fsspec.core.split_protocol(path)[1], os.O_RDONLY | os.O_CLOEXEC)
            try:
                return pread(file, start, stop)
            finally:
                os.close(file)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise AttemptError("the file does not exist", False, REMAKE_MISSING) from error
        except (PermissionError, IsADirectoryError) as error:
            raise AttemptError(str(error.strerror), False, "check the path and its permissions") from error
        except OSError as error:  # a network disk: stale handle, time-out or another transient error
            raise AttemptError(f"{error.strerror} (errno {error.errno})", True, "check the disk and its log") from error

    def close(self) -> None:
        """Do nothing: no file is open between reads."""


def pread(file: int, start: int, stop: int) -> bytes:
    """Return the bytes of an open file from `start` to `stop` or its end; its position, shared by threads, stays."""
    parts = []
    while start < stop and (part := os.pread(file, stop - start, start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


class LatencyTracker:
    """Recent durations of requests, and the allowance of second requests. Used only by the event loop's thread."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=PACE_WINDOW)
        self._requests = self._hedges = 0

    def add(self, num_bytes: int, seconds: float) -> None:
        """Record the duration of a request for `num_bytes` bytes."""
        self._seconds.append(seconds / self._weight(num_bytes))

    def late_s(self, num_bytes: int) -> float:
        """Return the seconds after which a request for `num_bytes` bytes is late."""
        if len(self._seconds) < PACE_SAMPLES:
            return LATE_COLD_S * self._weight(num_bytes)
        return max(LATE_FLOOR_S, LATE_MEDIANS * statistics.median(self._seconds)) * self._weight(num_bytes)

    def request(self) -> None:
        """Count a first request."""
        self._requests += 1

    def hedge(self) -> bool:
        """Return whether one more second request may be sent, and count it if so."""
        is_allowed = self._hedges < HEDGE_ALLOWANCE + HEDGE_SHARE * self._requests
        self._hedges += is_allowed
        return is_allowed

    @staticmethod
    def _weight(num_bytes: int) -> float:
        """Return the expected duration of a request relative to that of its first byte."""
        return 1 + num_bytes / FIRST_BYTE_BYTES


class S3Store:
    """Store of objects in S3 or a compatible service. Requests of all threads run on fsspec's event loop."""

    def __init__(self, timeout_s: float, threads: int, tally: ReadTally):
        self.timeout_s, self.threads, self.tally, self.pace = timeout_s, threads, tally, LatencyTracker()
        self._files: Any = None
        self._lock = threading.Lock()

    def get(self, path: str, start: int, stop: int) -> bytes:
        files = self._connect()
        limit_s = self.timeout_s + (stop - start) / SLOWEST_BYTES_PER_S
        running = asyncio.run_coroutine_threadsafe(self._get(files, path, start, stop, limit_s), files.loop)
        try:
            # the loop enforces the limit; the longer one here covers a loop that died or is blocked
            return running.result(2 * limit_s + CONNECT_TIMEOUT_S)
        except TimeoutError as error:
            running.cancel()
            raise AttemptError(f"no complete answer within {limit_s:.1f} s", True, RESUME) from error
        except (ClientError, BotoCoreError, aiohttp.ClientError, OSError) as error:
            raise explained(error) from error

    def close(self) -> None:
        with self._lock:
            files, self._files = self._files, None
        if files is None:
            return
        with suppress(OSError):  # open connections are idle, or break when the process ends
            sync(files.loop, self._disconnect, files, timeout=CONNECT_TIMEOUT_S)

    @staticmethod
    async def _disconnect(files: Any) -> None:
        client = await files.set_session()
        await client.close()

    def _connect(self) -> Any:
        """Return the s3fs file system, which holds endpoint, credentials and region."""
        with self._lock:
            if self._files is None:
                user_options = conf.get("s3", {}).get("config_kwargs", {})
                limits = {
                    "connect_timeout": min(CONNECT_TIMEOUT_S, self.timeout_s),
                    "read_timeout": self.timeout_s,
                    "retries": {"total_max_attempts": 1, "mode": "standard"},
                    "max_pool_connections": 2 * self.threads,  # each thread may have a second request
                }
                self._files = fsspec.filesystem(
                    "s3", skip_instance_cache=True, config_kwargs={**user_options, **limits}
                )
            return self._files

    async def _get(self, files: Any, path: str, start: int, stop: int, limit_s: float) -> bytes:
        await files.set_session()  # once; outside the time limit, since reading botocore's models takes a second
        self.pace.request()
        async with asyncio.timeout(limit_s):
            return await self._first_answer(lambda: self._request(files, path, start, stop), stop - start)

    async def _first_answer(self, request: Callable[[], Awaitable[bytes]], num_bytes: int) -> bytes:
        """Return the answer to a request; a late request is sent a second time, and the first answer is used."""
        waiting: set[asyncio.Future[bytes]] = {asyncio.ensure_future(request())}
        failures: list[BaseException] = []
        try:
            done, _ = await asyncio.wait(waiting, timeout=self.pace.late_s(num_bytes))
            if not done and self.pace.hedge():
                self.tally.add(hedges=1)
                waiting.add(asyncio.ensure_future(request()))
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                failures += [failure for answer in done if (failure := answer.exception())]
                for answer in done:
                    if answer.exception() is None:
                        return answer.result()
            raise failures[0]
        finally:
            for answer in waiting:
                answer.cancel()  # closes its connection, on which bytes still arrive

    async def _request(self, files: Any, path: str, start: int, stop: int) -> bytes:
        bucket, key, _ = files.split_path(path)
        client = await files.get_s3(bucket)
        self.tally.add(requests=1)
        began = time.monotonic()
        byte_range = f"bytes={start}-{stop - 1}"
        answer = await client.get_object(Bucket=bucket, Key=key, Range=byte_range, **files.req_kw)
        try:
            expected = answered_bytes(answer, start, stop)
            content = await answer["Body"].read()
        finally:
            answer["Body"].close()
        if len(content) != expected:
            raise AttemptError(f"received {len(content)} bytes instead of {expected}", True, RESUME)
        self.pace.add(len(content), time.monotonic() - began)
        return content


def answered_bytes(answer: dict[str, Any], start: int, stop: int) -> int:
    """Return the bytes that the answer to a range request must have, given the object's size.

    Raises AttemptError when the answer is for another range.
    """
    header = answer.get("ContentRange", "")  # bytes 100-199/146515
    try:
        first, size = int(header.split()[1].split("-")[0]), int(header.rpartition("/")[2])
    except (IndexError, ValueError) as error:
        hint = "the store must support range requests (HTTP 206)"
        raise AttemptError("the store answered with more than the range", False, hint) from error
    if first != start:
        raise AttemptError(f"the store answered from byte {first}", True, RESUME)
    return min(stop, size) - start


def explained(error: BaseException) -> AttemptError:
    """Return the failure for an error of the S3 client: whether it is transient, and a hint for the user."""
    if isinstance(error, ClientError):
        return _refused(error)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return AttemptError(
            str(error), False, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the node a role"
        )
    cause = f"{type(error).__name__}: {error}"
    if isinstance(error, (*TRANSIENT_ERRORS, OSError)):
        return AttemptError(f"the connection failed ({cause})", True, RESUME)
    return AttemptError(cause, False, "check AWS_ENDPOINT_URL, region and credentials")


def _refused(error: ClientError) -> AttemptError:
    """Return the failure for an error answer of the store."""
    details = error.response.get("Error", {})
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = details.get("Code", "")
    cause = f"the store answered {status} {code} ({details.get('Message', '')})"
    if status >= 500 or status == 429 or code in TRANSIENT_CODES:
        return AttemptError(cause, True, RESUME)
    hints = {
        404: f"it was removed or never written: {REMAKE_MISSING}",
        403: "check the credentials, AWS_ENDPOINT_URL, and what the bucket's policy allows",
        416: f"the object is shorter than its index says; {REMAKE_SHARD}",
    }
    return AttemptError(cause, False, hints.get(status, "check AWS_ENDPOINT_URL, region and credentials"))
