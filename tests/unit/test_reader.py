"""The reader against a store that fails: exact bytes or a DataError that says why; how few requests it takes."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import fsspec
import pytest
from aiobotocore.session import AioSession
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from janus_dist.config.data import ReadConfig
from janus_dist.data import cache, fetch, reader
from janus_dist.data.reader import Range, Reader, joined
from janus_dist.errors import DataError
from tests.s3_faults import FaultyS3, noise
from tests.unit.test_s3 import bucket  # noqa: F401

# the S3 client leaves its connections and loops to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
SIZE = 40_000
DATA = noise(SIZE)
PATH = "s3://shards/a.tar"
PAGE = 1_024
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small pages and short pauses; nothing is late unless a test says so, however slow the machine."""
    monkeypatch.setattr(reader, "PAGE_BYTES", PAGE)
    monkeypatch.setattr(reader, "SPAN_BYTES", 16 * PAGE)
    monkeypatch.setattr(fetch, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(fetch, "LATE_COLD_S", 60.0)
    monkeypatch.setattr(fetch, "LATE_FLOOR_S", 60.0)


@pytest.fixture(scope="module")
def session() -> AioSession:
    """The models of S3's protocol, which take half a second to read, for all tests."""
    return AioSession()


@pytest.fixture
def s3(monkeypatch, session) -> Iterator[FaultyS3]:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"session": session})
    with FaultyS3({"shards/a.tar": DATA}) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for name in PROXIES:
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture
def make() -> Iterator[Callable[..., Reader]]:
    """Makes readers and closes them."""
    made: list[Reader] = []

    def new(node_member: int = 0, **values: object) -> Reader:
        made.append(Reader(ReadConfig.model_validate({"timeout_s": 30, "attempts": 3, **values}), node_member))
        return made[-1]

    yield new
    for one in made:
        one.close()


def gib(pages: int) -> float:
    """`cache_gib` for so many pages."""
    return (pages + 0.5) * (PAGE + cache.BLOCK_BYTES) / 2**30


def pages_in(folder: Path) -> int:
    return sum(1 for file in folder.glob("pages-*/*/*") if file.is_file())


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread or process does."""
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def wanted(ranges: list[Range]) -> list[bytes]:
    return [DATA[one.offset : one.stop] for one in ranges]


RANGES = st.lists(
    st.tuples(st.integers(0, SIZE), st.integers(0, 5_000)).map(
        lambda pair: Range(PATH, pair[0], min(pair[1], SIZE - pair[0]))
    ),
    max_size=12,
)
MANY = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class TestBytes:
    @pytest.mark.parametrize("gap", [0, 300, 262_144])
    def test_without_cache(self, s3, make, gap):
        read = make(coalesce_gap_bytes=gap).read

        @MANY
        @given(RANGES)
        def check(ranges: list[Range]):
            assert read(ranges) == wanted(ranges)

        check()

    def test_with_cache(self, s3, make, tmp_path):
        made = make(cache_dir=str(tmp_path), cache_gib=gib(5))

        @MANY
        @given(RANGES, st.integers(0, 3))
        def check(ranges: list[Range], step: int):
            made.expect({step: ranges})
            assert made.read(ranges) == wanted(ranges)
            assert pages_in(tmp_path) <= 5

        check()
        assert made.counters().pages_hit > 0

    def test_local(self, make, tmp_path):
        (tmp_path / "a.tar").write_bytes(DATA)
        made = make(cache_dir=str(tmp_path / "cache"), coalesce_gap_bytes=300)

        @MANY
        @given(RANGES)
        def check(ranges: list[Range]):
            for path in (str(tmp_path / "a.tar"), f"file://{tmp_path}/a.tar"):
                assert made.read([Range(path, one.offset, one.bytes) for one in ranges]) == wanted(ranges)

        check()
        assert not (tmp_path / "cache").exists()  # it would be a copy from one disk to another

    def test_by_threads(self, s3, make, tmp_path):
        s3.latency_s = 0.002
        for made in (make(), make(cache_dir=str(tmp_path), cache_gib=gib(4))):
            ranges = [[Range(PATH, (7 * seed + 911 * n) % 39_000, 900) for n in range(20)] for seed in range(8)]
            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(made.read, ranges)) == [wanted(few) for few in ranges]

    def test_of_a_real_server(self, bucket, make, tmp_path):  # noqa: F811
        boto3.client("s3").put_object(Bucket="shards", Key="b.tar", Body=DATA)
        ranges = [Range(f"{bucket}/b.tar", offset, 100) for offset in (39_900, 0, 50, 20_000)]
        for made in (make(coalesce_gap_bytes=0), make(cache_dir=str(tmp_path))):
            assert made.read(ranges) == [DATA[one.offset : one.stop] for one in ranges]


class TestRequests:
    def test_near_ranges_are_one(self, s3, make):
        made = make(coalesce_gap_bytes=100)
        ranges = [Range(PATH, offset, 50) for offset in (1_200, 0, 120, 1_000, 30, 1_150)]
        assert made.read(ranges) == wanted(ranges)
        assert sorted((seen.start, seen.stop) for seen in s3.requests) == [(0, 170), (1_000, 1_250)]
        counters = made.counters()
        assert (counters.requests, counters.bytes_fetched, counters.bytes_asked) == (2, 420, 300)
        assert counters.retries == counters.hedges == 0 and counters.wait_s > 0

    @MANY
    @given(RANGES, st.sampled_from([1, 64]), st.integers(0, 2_000))
    def test_spans_hold_all_ranges(self, ranges: list[Range], align: int, gap: int):
        places = [place for place, one in enumerate(ranges) if one.bytes]
        spans = joined(ranges, places, align, gap)
        assert sorted(place for span in spans for place in span.places) == places
        for span in spans:
            assert span.start % align == 0 == span.stop % align
            held = [ranges[place] for place in span.places]
            assert span.start <= min(one.offset for one in held) and max(one.stop for one in held) <= span.stop
            longest = max(one.bytes for one in held) + 2 * align
            assert span.stop - span.start <= max(reader.SPAN_BYTES, longest)

    def test_of_one_call_run_at_once(self, s3, make):
        """Four requests, none of which is answered before all have come."""
        made = make(coalesce_gap_bytes=0, threads=4)
        s3.fail(*["stall"] * 4)
        with ThreadPoolExecutor(1) as pool:
            ranges = [Range(PATH, 10_000 * number, 10) for number in range(4)]
            found = pool.submit(made.read, ranges)
            try:
                until(lambda: len(s3.requests) == 4)
            finally:
                s3.released.set()
            assert found.result() == wanted(ranges)

    def test_of_cached_pages_are_not_repeated(self, s3, make, tmp_path):
        ranges = [Range(PATH, 100, 3_000), Range(PATH, 39_990, 10)]
        make(cache_dir=str(tmp_path)).read(ranges)
        assert sorted((seen.start, seen.stop) for seen in s3.requests) == [(0, 4 * PAGE), (39 * PAGE, 40 * PAGE)]
        second = make(cache_dir=str(tmp_path), node_member=1)
        assert second.read(ranges) == wanted(ranges)
        assert len(s3.requests) == 2
        assert (second.counters().pages_hit, second.counters().requests) == (5, 0)


class TestFaults:
    @pytest.mark.parametrize("fault", ["reset", "short", "other_length", "slow_down", "internal"])
    @pytest.mark.parametrize("cached", [False, True])
    def test_that_pass_are_tried_again(self, s3, make, tmp_path, fault, cached):
        made = make(cache_dir=str(tmp_path) if cached else None)
        s3.fail(fault, fault)
        ranges = [Range(PATH, 5_000, 2_000)]
        assert made.read(ranges) == wanted(ranges)
        assert (made.counters().retries, len(s3.requests)) == (2, 3)

    @pytest.mark.parametrize("fault", ["stall", "stall_body", "trickle"])
    def test_silence_ends(self, s3, make, fault, monkeypatch):
        monkeypatch.setattr(fetch, "SLOWEST_BYTES_PER_S", 1e9)
        made = make(timeout_s=1.0, attempts=10)
        s3.fail(fault)
        assert made.read([Range(PATH, 0, 2_000)]) == [DATA[:2_000]]
        assert made.counters().retries >= 1

    def test_attempts_do_not_multiply(self, s3, make):
        s3.fail(*["slow_down"] * 20)
        with pytest.raises(DataError):
            make(attempts=4).read([Range(PATH, 0, 10)])
        assert len(s3.requests) == 4

    @pytest.mark.parametrize(
        ("fault", "path", "start", "cause", "hint"),
        [
            ("ok", "s3://shards/b.tar", 0, "404 NoSuchKey (The specified key does not exist.)", "jobs/tokenize.py"),
            ("denied", PATH, 0, "403 AccessDenied (Access Denied)", "check the credentials, AWS_ENDPOINT_URL"),
            ("ok", PATH, 50_000, "416 InvalidRange (The requested range is not satisfiable)", "delete this shard"),
        ],
    )
    def test_that_stay_are_not_tried_again(self, s3, make, fault, path, start, cause, hint):
        s3.fail(fault)
        with pytest.raises(DataError) as caught:
            make().read([Range(path, start, 10)])
        assert len(s3.requests) == 1
        assert caught.value.message.startswith(
            f"{path} cannot be read, bytes {start} to {start + 9}: the store answered {cause} (attempt 1 of 3, "
        )
        assert caught.value.message.endswith("; not tried again, as it would fail again")
        assert hint in (caught.value.hint or "")

    @pytest.mark.parametrize(
        ("fault", "cause"),
        [
            ("slow_down", "the store answered 503 SlowDown (Please reduce your request rate.) (attempt 3 of 3, "),
            ("reset", "the connection failed (ClientPayloadError: "),
            ("other_length", "5 bytes came instead of 10 (attempt 3 of 3, "),
        ],
    )
    def test_that_do_not_pass_end_the_read(self, s3, make, fault, cause):
        s3.fail(*[fault] * 3)
        with pytest.raises(DataError) as caught:
            make().read([Range(PATH, 0, 10)])
        assert caught.value.message.startswith(f"{PATH} cannot be read, bytes 0 to 9: {cause}")
        assert caught.value.hint == fetch.RESUME

    def test_silence_is_told(self, s3, make):
        s3.fail("stall")
        with pytest.raises(DataError, match=r"bytes 0 to 9: no whole answer within 1\.0 s \(attempt 1 of 1, "):
            make(timeout_s=1.0, attempts=1).read([Range(PATH, 0, 10)])

    def test_no_server(self, monkeypatch, make):
        for name, value in FaultyS3({}).environment.items():
            monkeypatch.setenv(name, value)
        for name in PROXIES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        with pytest.raises(DataError, match=r"the connection failed \(EndpointConnectionError: .*attempt 2 of 2"):
            make(attempts=2).read([Range(PATH, 0, 10)])

    def test_a_store_without_ranges(self, s3, make):
        s3.fail("whole")
        with pytest.raises(DataError, match=r"answered with more than the range.*not tried again"):
            make().read([Range(PATH, 10, 10)])

    @pytest.mark.parametrize("cached", [False, True])
    def test_an_object_that_ends_early(self, s3, make, tmp_path, cached):
        made = make(cache_dir=str(tmp_path) if cached else None)
        expected = f"{PATH} ends at byte 40000, its index expects bytes 39990 to 40009"
        with pytest.raises(DataError, match=expected) as caught:
            made.read([Range(PATH, 39_990, 20)])
        assert "shard and index are of different runs" in (caught.value.hint or "")

    def test_of_local_files(self, make, tmp_path):
        (tmp_path / "a.tar").write_bytes(DATA[:100])
        made = make()
        for path, offset, cause in (
            (tmp_path / "none", 0, r"none cannot be read, bytes 0 to 9: there is no such file .*not tried again"),
            (tmp_path, 0, "Is a directory .*not tried again"),
            (tmp_path / "a.tar", 95, "a.tar ends at byte 100, its index expects bytes 95 to 104"),
        ):
            with pytest.raises(DataError, match=cause):
                made.read([Range(str(path), offset, 10)])
        with pytest.raises(DataError, match="gs://x/y cannot be read: it is neither local nor in S3"):
            made.read([Range("gs://x/y", 0, 10)])

    def test_closing_ends_a_pause(self, s3, make, monkeypatch):
        monkeypatch.setattr(fetch, "FIRST_PAUSE_S", 60.0)
        monkeypatch.setattr(fetch, "LONGEST_PAUSE_S", 60.0)
        s3.fail("slow_down")
        made = make()
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(made.read, [Range(PATH, 0, 10)])
            until(lambda: bool(s3.requests))
            made.close()
            with pytest.raises(DataError):
                found.result(timeout=30)


class TestSecondRequests:
    @pytest.mark.parametrize("fault", ["stall", "stall_body"])
    def test_a_late_answer_is_asked_for_again(self, s3, make, fault, monkeypatch):
        monkeypatch.setattr(fetch, "LATE_COLD_S", 0.2)
        made = make()
        s3.fail(fault)
        assert made.read([Range(PATH, 0, 2_000)]) == [DATA[:2_000]]
        assert (made.counters().hedges, made.counters().retries, len(s3.requests)) == (1, 0, 2)

    def test_the_first_may_fail_meanwhile(self, s3, make, monkeypatch):
        """The second request is refused, the first answers late."""
        monkeypatch.setattr(fetch, "LATE_COLD_S", 0.2)
        made = make()
        s3.fail("stall", "slow_down")
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(made.read, [Range(PATH, 0, 2_000)])
            until(lambda: len(s3.requests) == 2)
            s3.released.set()
            assert found.result() == [DATA[:2_000]]
        assert (made.counters().hedges, made.counters().retries) == (1, 0)

    def test_late_is_three_medians(self, monkeypatch):
        monkeypatch.setattr(fetch, "LATE_FLOOR_S", 0.1)
        monkeypatch.setattr(fetch, "LATE_COLD_S", 1.0)
        pace = fetch.Pace()
        assert pace.late_s(0) == 1.0
        for seconds in [0.05] * 200 + [20.0] * 50:  # stalls do not move it
            pace.add(0, seconds)
        assert pace.late_s(0) == pytest.approx(0.15)
        assert pace.late_s(fetch.FIRST_BYTE_BYTES) == pytest.approx(0.3)
        for _ in range(256):
            pace.add(fetch.FIRST_BYTE_BYTES, 0.002)
        assert pace.late_s(0) == 0.1

    def test_few_are_sent(self):
        pace = fetch.Pace()
        sent = 0
        for _ in range(1_000):
            pace.request()
            sent += pace.hedge()
        assert sent == fetch.HEDGE_ALLOWANCE + fetch.HEDGE_SHARE * 1_000


class TestReadAgain:
    def test_wrong_bytes_leave_the_cache(self, s3, make, tmp_path):
        made, one = make(cache_dir=str(tmp_path)), Range(PATH, 100, 50)
        s3.fail("wrong")
        assert made.read([one]) != wanted([one])
        assert made.read([one]) != wanted([one])  # no checksum can tell: the page holds what the store sent
        assert made.read_again(one) == wanted([one])[0]
        assert made.read([one]) == wanted([one])
        assert len(s3.requests) == 3

    def test_an_object_written_anew(self, s3, make, tmp_path):
        """All of its pages go, not only the one that was read; and a shorter one is not joined with a longer one."""
        s3.objects["shards/a.tar"] = DATA[: 2 * PAGE - 100]
        made = make(cache_dir=str(tmp_path))
        made.read([Range(PATH, 0, 2 * PAGE - 100)])
        s3.objects["shards/a.tar"] = DATA
        assert made.read([Range(PATH, PAGE, 2 * PAGE)]) == [DATA[PAGE : 3 * PAGE]]
        made.read([Range(PATH, 0, 4 * PAGE)])
        s3.objects["shards/a.tar"] = bytes(SIZE)
        assert made.read_again(Range(PATH, 0, 10)) == bytes(10)
        assert made.read([Range(PATH, 0, 4 * PAGE)]) == [bytes(4 * PAGE)]

    def test_local_and_without_cache(self, s3, make, tmp_path):
        (tmp_path / "a").write_bytes(DATA)
        assert make().read_again(Range(str(tmp_path / "a"), 5, 10)) == DATA[5:15]
        assert make().read_again(Range(PATH, 5, 10)) == DATA[5:15]


CHILD = f"""
import sys
from janus_dist.config.data import ReadConfig
from janus_dist.data import fetch, reader
reader.PAGE_BYTES, reader.SPAN_BYTES, fetch.LATE_COLD_S = {PAGE}, {16 * PAGE}, 60.0
made = reader.Reader(ReadConfig(cache_dir=sys.argv[1], timeout_s=60.0), node_member=1)
found = made.read([reader.Range({PATH!r}, offset, 1_000) for offset in range(0, 38_000, 2_500)])
sys.stdout.buffer.write(b"".join(found))
"""


def child(folder: Path) -> subprocess.Popen[bytes]:
    """Another rank of the node; its environment is that of this process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


class TestProcesses:
    def test_a_page_is_fetched_once_a_node(self, s3, tmp_path):
        s3.latency_s = 0.1
        processes = [child(tmp_path) for _ in range(2)]
        expected = b"".join(DATA[offset : offset + 1_000] for offset in range(0, 38_000, 2_500))
        for process in processes:
            assert process.communicate(timeout=120)[0] == expected
        times = Counter(page for seen in s3.requests for page in range(seen.start // PAGE, seen.stop // PAGE))
        assert set(times.values()) == {1}

    @pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
    def test_a_holder_that_dies_or_hangs_blocks_nobody(self, s3, make, tmp_path, sign):
        s3.fail(*["stall"] * 16)
        process = child(tmp_path)
        try:
            until(lambda: bool(s3.requests))
            process.send_signal(sign)
            if sign == signal.SIGKILL:
                process.wait()
            with s3.lock:
                s3.faults.clear()
            began, one = time.monotonic(), Range(s3.requests[0].path, s3.requests[0].start, 1_000)
            assert make(cache_dir=str(tmp_path), timeout_s=120 if sign == signal.SIGKILL else 2).read([one]) == wanted(
                [one]
            )
            assert time.monotonic() - began < 60
        finally:
            process.kill()
            process.communicate()
