"""The reader: exact bytes from every kind of store, and the number of its requests, also for two processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from janus_dist.data import reader
from janus_dist.data.reader import ByteRange, join_ranges
from janus_dist.errors import DataError
from janus_dist.storage import ranges as fetch
from tests.limits import HANG_S
from tests.reading import DATA, PAGE, PATH, SIZE, gib, pages_in, until, wanted
from tests.unit.storage.test_s3 import bucket  # noqa: F401

# the S3 client leaves its connections and loops to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[3]
RANGES = st.lists(
    st.tuples(st.integers(0, SIZE), st.integers(0, 5_000)).map(
        lambda pair: ByteRange(PATH, pair[0], min(pair[1], SIZE - pair[0]))
    ),
    max_size=12,
)
MANY = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


class TestBytes:
    @pytest.mark.parametrize("gap", [0, 300, 262_144])
    def test_without_cache(self, s3, make_reader, gap):
        read = make_reader(coalesce_gap_bytes=gap).read

        @MANY
        @given(RANGES)
        def check(ranges: list[ByteRange]):
            assert read(ranges) == wanted(ranges)

        check()

    def test_with_cache(self, s3, make_reader, tmp_path):
        made = make_reader(cache_dir=str(tmp_path), cache_gib=gib(5))

        @MANY
        @given(RANGES, st.integers(0, 3))
        def check(ranges: list[ByteRange], step: int):
            made.expect({step: ranges})
            assert made.read(ranges) == wanted(ranges)
            assert pages_in(tmp_path) <= 5

        check()
        assert made.counters().pages_hit > 0

    def test_local(self, make_reader, tmp_path):
        (tmp_path / "a.tar").write_bytes(DATA)
        made = make_reader(cache_dir=str(tmp_path / "cache"), coalesce_gap_bytes=300)

        @MANY
        @given(RANGES)
        def check(ranges: list[ByteRange]):
            for path in (str(tmp_path / "a.tar"), f"file://{tmp_path}/a.tar"):
                assert made.read([ByteRange(path, one.offset, one.bytes) for one in ranges]) == wanted(ranges)

        check()
        assert not (tmp_path / "cache").exists()  # it would be a copy from one disk to another

    def test_by_threads(self, s3, make_reader, tmp_path):
        s3.latency_s = 0.002
        for made in (make_reader(), make_reader(cache_dir=str(tmp_path), cache_gib=gib(4))):
            ranges = [[ByteRange(PATH, (7 * seed + 911 * n) % 39_000, 900) for n in range(20)] for seed in range(8)]
            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(made.read, ranges)) == [wanted(few) for few in ranges]

    def test_of_a_real_server(self, bucket, make_reader, tmp_path):  # noqa: F811
        boto3.client("s3").put_object(Bucket="shards", Key="b.tar", Body=DATA)
        ranges = [ByteRange(f"{bucket}/b.tar", offset, 100) for offset in (39_900, 0, 50, 20_000)]
        for made in (make_reader(coalesce_gap_bytes=0), make_reader(cache_dir=str(tmp_path))):
            assert made.read(ranges) == [DATA[one.offset : one.stop] for one in ranges]


class TestRequests:
    def test_near_ranges_are_one(self, s3, make_reader):
        made = make_reader(coalesce_gap_bytes=100)
        ranges = [ByteRange(PATH, offset, 50) for offset in (1_200, 0, 120, 1_000, 30, 1_150)]
        assert made.read(ranges) == wanted(ranges)
        assert sorted((seen.start, seen.stop) for seen in s3.requests) == [(0, 170), (1_000, 1_250)]
        counters = made.counters()
        assert (counters.requests, counters.bytes_fetched, counters.bytes_asked) == (2, 420, 300)
        assert counters.retries == counters.hedges == 0 and counters.wait_s > 0

    @MANY
    @given(RANGES, st.sampled_from([1, 64]), st.integers(0, 2_000))
    def test_spans_hold_all_ranges(self, quick_reader, ranges: list[ByteRange], align: int, gap: int):
        places = [place for place, one in enumerate(ranges) if one.bytes]
        spans = join_ranges(ranges, places, align, gap)
        assert sorted(place for span in spans for place in span.range_indices) == places
        for span in spans:
            assert span.start % align == 0 == span.stop % align
            held = [ranges[place] for place in span.range_indices]
            assert span.start <= min(one.offset for one in held) and max(one.stop for one in held) <= span.stop
            longest = max(one.bytes for one in held) + 2 * align
            assert span.stop - span.start <= max(reader.SPAN_BYTES, longest)

    def test_of_one_call_run_at_once(self, s3, make_reader):
        """Four requests, none of which is answered before all have come."""
        made = make_reader(coalesce_gap_bytes=0, threads=4)
        s3.fail(*["stall"] * 4)
        with ThreadPoolExecutor(1) as pool:
            ranges = [ByteRange(PATH, 10_000 * number, 10) for number in range(4)]
            found = pool.submit(made.read, ranges)
            try:
                until(lambda: len(s3.requests) == 4)
            finally:
                s3.released.set()
            assert found.result() == wanted(ranges)

    def test_of_cached_pages_are_not_repeated(self, s3, make_reader, tmp_path):
        ranges = [ByteRange(PATH, 100, 3_000), ByteRange(PATH, 39_990, 10)]
        make_reader(cache_dir=str(tmp_path)).read(ranges)
        assert sorted((seen.start, seen.stop) for seen in s3.requests) == [(0, 4 * PAGE), (39 * PAGE, 40 * PAGE)]
        second = make_reader(cache_dir=str(tmp_path), node_member=1)
        assert second.read(ranges) == wanted(ranges)
        assert len(s3.requests) == 2
        assert (second.counters().pages_hit, second.counters().requests) == (5, 0)


class TestLocalReads:
    """The caller reads fast local files; slow files (on a network disk) are read concurrently."""

    @pytest.fixture
    def readers(self, make_reader, tmp_path, monkeypatch):
        """Return the threads that read 21 spans of a file, with a call before each read."""

        def run(before: Callable[[], object]) -> Counter[int]:
            threads: Counter[int] = Counter()
            real = fetch.pread

            def pread(file: int, start: int, stop: int) -> bytes:
                threads[threading.get_ident()] += 1
                before()
                return real(file, start, stop)

            monkeypatch.setattr(fetch, "pread", pread)
            (tmp_path / "a.tar").write_bytes(DATA)
            ranges = [ByteRange(str(tmp_path / "a.tar"), 1_000 * number, 10) for number in range(21)]
            assert make_reader(coalesce_gap_bytes=0, threads=4).read(ranges) == wanted(ranges)
            return threads

        return run

    def test_quick_ones_need_no_other_thread(self, readers, monkeypatch):
        monkeypatch.setattr(reader, "INLINE_READ_S", 60.0)
        assert readers(lambda: None) == {threading.get_ident(): 21}

    def test_slow_ones_run_at_the_same_time(self, readers):
        """The caller reads one; of the others none ends before four have begun."""
        me, four = threading.get_ident(), threading.Barrier(4, timeout=HANG_S)
        threads = readers(lambda: time.sleep(2 * reader.INLINE_READ_S) if threading.get_ident() == me else four.wait())
        assert threads[me] == 1 and len(threads) == 1 + 4

    def test_closing_between_two_of_them_ends_the_read(self, make_reader, tmp_path, monkeypatch):
        made, real = make_reader(coalesce_gap_bytes=0), fetch.pread

        def pread(file: int, start: int, stop: int) -> bytes:
            made.close()
            time.sleep(2 * reader.INLINE_READ_S)
            return real(file, start, stop)

        monkeypatch.setattr(fetch, "pread", pread)
        (tmp_path / "a.tar").write_bytes(DATA)
        with pytest.raises(DataError, match="the reader was closed during a read"):
            made.read([ByteRange(str(tmp_path / "a.tar"), offset, 10) for offset in (0, 1_000)])


class TestReadAgain:
    def test_wrong_bytes_leave_the_cache(self, s3, make_reader, tmp_path):
        made, one = make_reader(cache_dir=str(tmp_path)), ByteRange(PATH, 100, 50)
        s3.fail("wrong")
        assert made.read([one]) != wanted([one])
        assert made.read([one]) != wanted([one])  # no checksum can tell: the page holds what the store sent
        assert made.read_again(one) == wanted([one])[0]
        assert made.read([one]) == wanted([one])
        assert len(s3.requests) == 3

    def test_an_object_written_anew(self, s3, make_reader, tmp_path):
        """All of its pages go, not only the one that was read; and a shorter one is not joined with a longer one."""
        s3.objects["shards/a.tar"] = DATA[: 2 * PAGE - 100]
        made = make_reader(cache_dir=str(tmp_path))
        made.read([ByteRange(PATH, 0, 2 * PAGE - 100)])
        s3.objects["shards/a.tar"] = DATA
        assert made.read([ByteRange(PATH, PAGE, 2 * PAGE)]) == [DATA[PAGE : 3 * PAGE]]
        made.read([ByteRange(PATH, 0, 4 * PAGE)])
        s3.objects["shards/a.tar"] = bytes(SIZE)
        assert made.read_again(ByteRange(PATH, 0, 10)) == bytes(10)
        assert made.read([ByteRange(PATH, 0, 4 * PAGE)]) == [bytes(4 * PAGE)]

    def test_local_and_without_cache(self, s3, make_reader, tmp_path):
        (tmp_path / "a").write_bytes(DATA)
        assert make_reader().read_again(ByteRange(str(tmp_path / "a"), 5, 10)) == DATA[5:15]
        assert make_reader().read_again(ByteRange(PATH, 5, 10)) == DATA[5:15]


CHILD = f"""
import sys
from janus_dist.config.data import ReadConfig
from janus_dist.data import reader
from janus_dist.storage import ranges
reader.PAGE_BYTES, reader.SPAN_BYTES, ranges.LATE_COLD_S = {PAGE}, {16 * PAGE}, 60.0
made = reader.RangeReader(ReadConfig(cache_dir=sys.argv[1]), node_member=1, timeout_s=60.0)
found = made.read([reader.ByteRange({PATH!r}, offset, 1_000) for offset in range(0, 38_000, 2_500)])
sys.stdout.buffer.write(b"".join(found))
"""


def child(folder: Path) -> subprocess.Popen[bytes]:
    """Start another rank of the node in the environment of this process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


class TestProcesses:
    def test_a_page_is_fetched_once_a_node(self, s3, tmp_path):
        s3.latency_s = 0.1
        processes = [child(tmp_path) for _ in range(2)]
        expected = b"".join(DATA[offset : offset + 1_000] for offset in range(0, 38_000, 2_500))
        for process in processes:
            assert process.communicate(timeout=HANG_S)[0] == expected
        times = Counter(page for seen in s3.requests for page in range(seen.start // PAGE, seen.stop // PAGE))
        assert set(times.values()) == {1}

    @pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
    def test_a_holder_that_dies_or_hangs_blocks_nobody(self, s3, make_reader, tmp_path, sign):
        s3.fail(*["stall"] * 16)
        process = child(tmp_path)
        try:
            until(lambda: bool(s3.requests))
            process.send_signal(sign)
            if sign == signal.SIGKILL:
                process.wait()
            with s3.lock:
                s3.faults.clear()
            began, one = time.monotonic(), ByteRange(s3.requests[0].path, s3.requests[0].start, 1_000)
            made = make_reader(cache_dir=str(tmp_path), timeout_s=120 if sign == signal.SIGKILL else 2)
            assert made.read([one]) == wanted([one])
            assert time.monotonic() - began < 60
        finally:
            process.kill()
            process.communicate()
