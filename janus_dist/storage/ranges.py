"""Bytes of one range from where it is stored: a local file, or an object by one S3 request, tried until it is there.

Invariant: `Fetcher.fetch` gives exactly the bytes from `start` to `stop`, or to the object's end when that comes first,
or raises DataError. Every request ends: it has a time limit, and only this module retries (s3fs and botocore are told
to try once), so that attempts never multiply.
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
CONNECT_TIMEOUT_S = 5.0
SLOWEST_BYTES_PER_S = 1_000_000  # a body that trickles slower than this has stalled, though bytes still come
# A late request is asked for a second time. "Late" is 3 times the median, a robust stand-in for the 99th percentile
# that needs few observations and does not grow when more than one in a hundred requests stalls.
LATE_MEDIANS = 3.0
LATE_FLOOR_S = 0.1  # below this a pause of our own process looks like a late answer
LATE_COLD_S = 1.0  # before `PACE_SAMPLES` answers were seen
PACE_SAMPLES, PACE_WINDOW = 16, 256
# Second requests may be this share of all, so that a store that is slow everywhere is not asked twice for everything.
HEDGE_SHARE, HEDGE_ALLOWANCE = 0.05, 10
FIRST_BYTE_BYTES = 4 << 20  # bytes that take about as long to send as the first byte to come: 80 ms at 50 MB/s

RESUME = "the store or the network is at fault; when it is well again, the same command resumes the run"
TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "InternalError"}
TRANSIENT_ERRORS = (
    HTTPClientError,
    IncompleteReadError,
    CredentialRetrievalError,  # those that a node has by its role: whoever gives them did not answer
    MetadataRetrievalError,
    StoreConnectionError,
    ResponseParserError,
    aiohttp.ClientError,
)


@dataclass
class ReadCounters:
    """What reading took so far, in this process."""

    requests: int = 0
    """Requests to the store or reads of local files, second ones and repeated ones counted."""
    bytes_fetched: int = 0
    bytes_asked: int = 0
    pages_hit: int = 0
    """Pages that the node's cache gave."""
    pages_missed: int = 0
    retries: int = 0
    hedges: int = 0
    """Second requests for late answers."""
    wait_s: float = 0.0
    """Seconds that callers spent in `read`, summed over threads."""


class Tally:
    """Counters that threads add to."""

    def __init__(self) -> None:
        self._counters, self._lock = ReadCounters(), threading.Lock()

    def add(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                setattr(self._counters, name, getattr(self._counters, name) + amount)

    def now(self) -> ReadCounters:
        with self._lock:
            return replace(self._counters)


class FailureError(Exception):
    """One attempt failed: why, whether another may succeed, and what a user can do."""

    def __init__(self, cause: str, transient: bool, hint: str):
        super().__init__(cause)
        self.cause, self.transient, self.hint = cause, transient, hint


class Store(Protocol):
    """Where objects are."""

    def get(self, path: str, start: int, stop: int) -> bytes:
        """One attempt: the bytes up to `stop` or the object's end; FailureError otherwise."""
        ...

    def close(self) -> None: ...


class Fetcher:
    """Ranges from any store, with retries. Threads may share it; `close` ends the pauses of those that wait."""

    def __init__(self, timeout_s: float, threads: int, patience_s: float, tally: Tally):
        """A request with no answer for `timeout_s` has failed; none is begun anew after `patience_s`."""
        self.patience_s, self.tally = patience_s, tally
        self._closing = threading.Event()
        self._stores: dict[str, Store] = {"file": LocalStore(tally), "s3": S3Store(timeout_s, threads, tally)}

    def fetch(self, path: str, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`, fewer only where the object ends; DataError when patience ends."""
        store, began, attempt = self._stores[protocol(path)], time.monotonic(), 1
        while True:
            try:
                content = store.get(path, start, stop)
                self.tally.add(bytes_fetched=len(content))
                return content
            except FailureError as failure:
                tried_s, pause = time.monotonic() - began, pause_s(attempt)
                again = failure.transient and tried_s + pause < self.patience_s
                if not again or self._closing.wait(pause):
                    tried = f"attempt {attempt}, after {tried_s:.1f} s"
                    final = "" if failure.transient else "; not tried again, as it would fail again"
                    raise DataError(
                        f"{path} cannot be read, bytes {start} to {stop - 1}: {failure.cause} ({tried}){final}",
                        failure.hint,
                    ) from failure
            attempt += 1
            self.tally.add(retries=1)

    def close(self) -> None:
        self._closing.set()
        for store in self._stores.values():
            store.close()


def protocol(path: str) -> str:
    """`file` or `s3`; DataError for what is neither."""
    name = fsspec.core.split_protocol(path)[0]
    if name in (None, "file", "local"):
        return "file"
    if name in ("s3", "s3a"):
        return "s3"
    raise DataError(f"{path} cannot be read: it is neither local nor in S3", "use a local path or s3://BUCKET/KEY")


def is_local(path: str) -> bool:
    """Whether a path is a file of this machine, network disks included; DataError as of `protocol`."""
    return protocol(path) == "file"


def pause_s(attempt: int) -> float:
    """Seconds to wait after a failed attempt (counted from 1): doubling, half of it random so that ranks spread."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)


class LocalStore:
    """Local files. Each is opened for one read and closed, so as many are open as threads read."""

    def __init__(self, tally: Tally):
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
            raise FailureError("there is no such file", False, REMAKE_MISSING) from error
        except (PermissionError, IsADirectoryError) as error:
            raise FailureError(str(error.strerror), False, "check the path and who may read it") from error
        except OSError as error:  # a network disk: stale handle, time-out, an error that passes
            raise FailureError(f"{error.strerror} (errno {error.errno})", True, "check the disk and its log") from error

    def close(self) -> None:
        """Nothing is open."""


def pread(file: int, start: int, stop: int) -> bytes:
    """Bytes of an open file up to `stop` or its end, without moving a position that threads would share."""
    parts = []
    while start < stop and (part := os.pread(file, stop - start, start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


class Pace:
    """How long requests take of late, and how many second ones may be sent. Used by one thread, the event loop's."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=PACE_WINDOW)
        self._requests = self._hedges = 0

    def add(self, num_bytes: int, seconds: float) -> None:
        self._seconds.append(seconds / self._weight(num_bytes))

    def late_s(self, num_bytes: int) -> float:
        """Seconds after which a request for so many bytes is late."""
        if len(self._seconds) < PACE_SAMPLES:
            return LATE_COLD_S * self._weight(num_bytes)
        return max(LATE_FLOOR_S, LATE_MEDIANS * statistics.median(self._seconds)) * self._weight(num_bytes)

    def request(self) -> None:
        self._requests += 1

    def hedge(self) -> bool:
        """Whether one more second request may be sent; it is counted."""
        allowed = self._hedges < HEDGE_ALLOWANCE + HEDGE_SHARE * self._requests
        self._hedges += allowed
        return allowed

    @staticmethod
    def _weight(num_bytes: int) -> float:
        return 1 + num_bytes / FIRST_BYTE_BYTES


class S3Store:
    """Objects of S3 or what speaks its protocol. Requests run on fsspec's event loop, whichever thread asks."""

    def __init__(self, timeout_s: float, threads: int, tally: Tally):
        self.timeout_s, self.threads, self.tally, self.pace = timeout_s, threads, tally, Pace()
        self._files: Any = None
        self._lock = threading.Lock()

    def get(self, path: str, start: int, stop: int) -> bytes:
        files = self._connect()
        limit_s = self.timeout_s + (stop - start) / SLOWEST_BYTES_PER_S
        running = asyncio.run_coroutine_threadsafe(self._get(files, path, start, stop, limit_s), files.loop)
        try:
            # the limit is kept on the loop; the longer one here is for a loop that died or is blocked
            return running.result(2 * limit_s + CONNECT_TIMEOUT_S)
        except TimeoutError as error:
            running.cancel()
            raise FailureError(f"no whole answer within {limit_s:.1f} s", True, RESUME) from error
        except (ClientError, BotoCoreError, aiohttp.ClientError, OSError) as error:
            raise explained(error) from error

    def close(self) -> None:
        with self._lock:
            files, self._files = self._files, None
        if files is None:
            return
        with suppress(OSError):  # its connections are idle, or break when the process ends
            sync(files.loop, self._disconnect, files, timeout=CONNECT_TIMEOUT_S)

    @staticmethod
    async def _disconnect(files: Any) -> None:
        client = await files.set_session()
        await client.close()

    def _connect(self) -> Any:
        """The s3fs file system; it alone knows endpoint, credentials and region."""
        with self._lock:
            if self._files is None:
                theirs = conf.get("s3", {}).get("config_kwargs", {})
                ours = {
                    "connect_timeout": min(CONNECT_TIMEOUT_S, self.timeout_s),
                    "read_timeout": self.timeout_s,
                    "retries": {"total_max_attempts": 1, "mode": "standard"},
                    "max_pool_connections": 2 * self.threads,  # each may be asked for twice
                }
                self._files = fsspec.filesystem("s3", skip_instance_cache=True, config_kwargs={**theirs, **ours})
            return self._files

    async def _get(self, files: Any, path: str, start: int, stop: int, limit_s: float) -> bytes:
        await files.set_session()  # once; not part of the time limit, as reading botocore's models takes a second
        self.pace.request()
        async with asyncio.timeout(limit_s):
            return await self._first_answer(lambda: self._request(files, path, start, stop), stop - start)

    async def _first_answer(self, request: Callable[[], Awaitable[bytes]], num_bytes: int) -> bytes:
        """The answer to a request; when it is late, it is sent a second time and the first answer counts."""
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
                answer.cancel()  # closes its connection, which has bytes in flight

    async def _request(self, files: Any, path: str, start: int, stop: int) -> bytes:
        bucket, key, _ = files.split_path(path)
        client = await files.get_s3(bucket)
        self.tally.add(requests=1)
        began = time.monotonic()
        wanted = f"bytes={start}-{stop - 1}"
        answer = await client.get_object(Bucket=bucket, Key=key, Range=wanted, **files.req_kw)
        try:
            expected = answered_bytes(answer, start, stop)
            content = await answer["Body"].read()
        finally:
            answer["Body"].close()
        if len(content) != expected:
            raise FailureError(f"{len(content)} bytes came instead of {expected}", True, RESUME)
        self.pace.add(len(content), time.monotonic() - began)
        return content


def answered_bytes(answer: dict[str, Any], start: int, stop: int) -> int:
    """How many bytes the answer to a range request must have, by the object's size; FailureError for another range."""
    header = answer.get("ContentRange", "")  # bytes 100-199/146515
    try:
        first, size = int(header.split()[1].split("-")[0]), int(header.rpartition("/")[2])
    except (IndexError, ValueError) as error:
        hint = "the store must support range requests (HTTP 206)"
        raise FailureError("the store answered with more than the range", False, hint) from error
    if first != start:
        raise FailureError(f"the store answered from byte {first}", True, RESUME)
    return min(stop, size) - start


def explained(error: BaseException) -> FailureError:
    """What an error of the S3 client means for another attempt and for the user."""
    if isinstance(error, ClientError):
        return _refused(error)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return FailureError(
            str(error), False, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the node a role"
        )
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, (*TRANSIENT_ERRORS, OSError)):
        return FailureError(f"the connection failed ({said})", True, RESUME)
    return FailureError(said, False, "check AWS_ENDPOINT_URL, region and credentials")


def _refused(error: ClientError) -> FailureError:
    said = error.response.get("Error", {})
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = said.get("Code", "")
    cause = f"the store answered {status} {code} ({said.get('Message', '')})"
    if status >= 500 or status == 429 or code in TRANSIENT_CODES:
        return FailureError(cause, True, RESUME)
    hints = {
        404: f"it was removed or never written: {REMAKE_MISSING}",
        403: "check the credentials, AWS_ENDPOINT_URL, and what the bucket's policy allows",
        416: f"the object is shorter than its index says; {REMAKE_SHARD}",
    }
    return FailureError(cause, False, hints.get(status, "check AWS_ENDPOINT_URL, region and credentials"))
