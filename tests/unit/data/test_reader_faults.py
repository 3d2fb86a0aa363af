"""The reader with a failing store: it recovers, or raises a DataError with the object, the cause and a fix."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import CredentialRetrievalError, NoCredentialsError

from janus_dist.data.reader import ByteRange
from janus_dist.errors import DataError
from janus_dist.storage import ranges as fetch
from tests.limits import HANG_S
from tests.reading import DATA, PATH, until, wanted
from tests.s3_faults import PROXIES, FaultyS3

# the S3 client leaves its connections and loops to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore")


class TestFaults:
    @pytest.mark.parametrize("fault", ["reset", "short", "other_length", "slow_down", "internal", "bad_gateway"])
    @pytest.mark.parametrize("cached", [False, True])
    def test_that_pass_are_tried_again(self, s3, make_reader, tmp_path, fault, cached):
        made = make_reader(cache_dir=str(tmp_path) if cached else None)
        s3.fail(fault, fault)
        ranges = [ByteRange(PATH, 5_000, 2_000)]
        assert made.read(ranges) == wanted(ranges)
        assert (made.counters().retries, len(s3.requests)) == (2, 3)

    @pytest.mark.parametrize("fault", ["stall", "stall_body", "trickle"])
    def test_silence_ends(self, s3, make_reader, fault, monkeypatch):
        monkeypatch.setattr(fetch, "SLOWEST_BYTES_PER_S", 1e9)
        made = make_reader(timeout_s=1.0, attempts=10)
        s3.fail(fault)
        assert made.read([ByteRange(PATH, 0, 2_000)]) == [DATA[:2_000]]
        assert made.counters().retries >= 1

    def test_attempts_do_not_multiply(self, s3, make_reader):
        s3.fail(*["slow_down"] * 20)
        with pytest.raises(DataError):
            make_reader(attempts=4).read([ByteRange(PATH, 0, 10)])
        assert len(s3.requests) == 4

    @pytest.mark.parametrize(
        ("fault", "path", "start", "cause", "hint"),
        [
            ("ok", "s3://shards/b.tar", 0, "404 NoSuchKey (The specified key does not exist.)", "jobs/prepare.py"),
            ("denied", PATH, 0, "403 AccessDenied (Access Denied)", "check the credentials, AWS_ENDPOINT_URL"),
            ("ok", PATH, 50_000, "416 InvalidRange (The requested range is not satisfiable)", "make this shard"),
        ],
    )
    def test_that_stay_are_not_tried_again(self, s3, make_reader, fault, path, start, cause, hint):
        s3.fail(fault)
        with pytest.raises(DataError) as caught:
            make_reader().read([ByteRange(path, start, 10)])
        assert len(s3.requests) == 1
        assert caught.value.message.startswith(
            f"{path} cannot be read, bytes {start} to {start + 9}: the store answered {cause} (attempt 1, "
        )
        assert caught.value.message.endswith("; not retried, because it would fail again")
        assert hint in (caught.value.hint or "")

    @pytest.mark.parametrize(
        ("fault", "cause"),
        [
            ("slow_down", "the store answered 503 SlowDown (Please reduce your request rate.) (attempt 3, "),
            ("reset", "the connection failed (ClientPayloadError: "),
            ("other_length", "received 5 bytes instead of 10 (attempt 3, "),
        ],
    )
    def test_that_do_not_pass_end_the_read(self, s3, make_reader, fault, cause):
        s3.fail(*[fault] * 3)
        with pytest.raises(DataError) as caught:
            make_reader().read([ByteRange(PATH, 0, 10)])
        assert caught.value.message.startswith(f"{PATH} cannot be read, bytes 0 to 9: {cause}")
        assert caught.value.hint == fetch.RESUME

    def test_tries_until_its_patience_ends(self, s3, make_reader, monkeypatch):
        monkeypatch.setattr(fetch, "LONGEST_PAUSE_S", 0.05)
        s3.fail(*["slow_down"] * 200)
        began = time.monotonic()
        with pytest.raises(DataError, match=r"attempt \d+, after "):
            make_reader(attempts=1000, patience_s=1.0).read([ByteRange(PATH, 0, 10)])
        assert len(s3.requests) > 5 and 0.9 < time.monotonic() - began < 30

    def test_of_whoever_gives_credentials_are_tried_again(self):
        away = CredentialRetrievalError(provider="assume-role-with-web-identity", error_msg="timed out")
        assert fetch.explained(away).transient and not fetch.explained(NoCredentialsError()).transient

    def test_silence_is_told(self, s3, make_reader):
        s3.fail("stall")
        with pytest.raises(DataError, match=r"bytes 0 to 9: no complete answer within 1\.0 s \(attempt 1, "):
            make_reader(timeout_s=1.0, attempts=1).read([ByteRange(PATH, 0, 10)])

    def test_no_server(self, monkeypatch, make_reader):
        for name, value in FaultyS3({}).environment.items():
            monkeypatch.setenv(name, value)
        for name in PROXIES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        with pytest.raises(DataError, match=r"the connection failed \(EndpointConnectionError: .*attempt 2, "):
            make_reader(attempts=2).read([ByteRange(PATH, 0, 10)])

    def test_a_store_without_ranges(self, s3, make_reader):
        s3.fail("whole")
        with pytest.raises(DataError, match=r"answered with more than the range.*not retried"):
            make_reader().read([ByteRange(PATH, 10, 10)])

    @pytest.mark.parametrize("cached", [False, True])
    def test_an_object_that_ends_early(self, s3, make_reader, tmp_path, cached):
        made = make_reader(cache_dir=str(tmp_path) if cached else None)
        expected = f"{PATH} ends at byte 40000, its index expects bytes 39990 to 40009"
        with pytest.raises(DataError, match=expected) as caught:
            made.read([ByteRange(PATH, 39_990, 20)])
        assert "shard and index are from different runs" in (caught.value.hint or "")

    def test_of_local_files(self, make_reader, tmp_path):
        (tmp_path / "a.tar").write_bytes(DATA[:100])
        made = make_reader()
        for path, offset, cause in (
            (tmp_path / "none", 0, r"none cannot be read, bytes 0 to 9: the file does not exist .*not retried"),
            (tmp_path, 0, "Is a directory .*not retried"),
            (tmp_path / "a.tar", 95, "a.tar ends at byte 100, its index expects bytes 95 to 104"),
        ):
            with pytest.raises(DataError, match=cause):
                made.read([ByteRange(str(path), offset, 10)])
        with pytest.raises(DataError, match="gs://x/y cannot be read: it is neither local nor in S3"):
            made.read([ByteRange("gs://x/y", 0, 10)])

    def test_closing_ends_a_pause(self, s3, make_reader, monkeypatch):
        monkeypatch.setattr(fetch, "FIRST_PAUSE_S", 60.0)
        monkeypatch.setattr(fetch, "LONGEST_PAUSE_S", 60.0)
        s3.fail("slow_down")
        made = make_reader()
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(made.read, [ByteRange(PATH, 0, 10)])
            until(lambda: bool(s3.requests))
            made.close()
            with pytest.raises(DataError):
                found.result(timeout=HANG_S)


class TestSecondRequests:
    @pytest.mark.parametrize("fault", ["stall", "stall_body"])
    def test_a_late_answer_is_asked_for_again(self, s3, make_reader, fault, monkeypatch):
        monkeypatch.setattr(fetch, "LATE_COLD_S", 0.2)
        made = make_reader()
        s3.fail(fault)
        assert made.read([ByteRange(PATH, 0, 2_000)]) == [DATA[:2_000]]
        assert (made.counters().hedges, made.counters().retries, len(s3.requests)) == (1, 0, 2)

    def test_the_first_may_fail_meanwhile(self, s3, make_reader, monkeypatch):
        """The second request is refused, the first answers late."""
        monkeypatch.setattr(fetch, "LATE_COLD_S", 0.2)
        made = make_reader()
        s3.fail("stall", "slow_down")
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(made.read, [ByteRange(PATH, 0, 2_000)])
            until(lambda: len(s3.requests) == 2)
            s3.released.set()
            assert found.result() == [DATA[:2_000]]
        assert (made.counters().hedges, made.counters().retries) == (1, 0)

    def test_late_is_three_medians(self, monkeypatch):
        monkeypatch.setattr(fetch, "LATE_FLOOR_S", 0.1)
        monkeypatch.setattr(fetch, "LATE_COLD_S", 1.0)
        pace = fetch.LatencyTracker()
        assert pace.late_s(0) == 1.0
        for seconds in [0.05] * 200 + [20.0] * 50:  # stalls do not move it
            pace.add(0, seconds)
        assert pace.late_s(0) == pytest.approx(0.15)
        assert pace.late_s(fetch.FIRST_BYTE_BYTES) == pytest.approx(0.3)
        for _ in range(256):
            pace.add(fetch.FIRST_BYTE_BYTES, 0.002)
        assert pace.late_s(0) == 0.1

    def test_few_are_sent(self):
        pace = fetch.LatencyTracker()
        sent = 0
        for _ in range(1_000):
            pace.request()
            sent += pace.hedge()
        assert sent == fetch.HEDGE_ALLOWANCE + fetch.HEDGE_SHARE * 1_000
