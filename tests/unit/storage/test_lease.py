"""Leases: one job writes a folder at a time; a dead holder is replaced, a live one is not, and a replaced one stops."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import s3fs

from janus_dist.errors import ClusterError, ConfigError, DataError
from janus_dist.storage import fs, lease, lease_files
from janus_dist.storage.lease import TIMES, LeaseLostError, LeaseTimes, LeaseWatch, hold, take
from janus_dist.storage.lease_files import ProcessIdentity
from tests.moto_s3 import moto_bucket

HINT = "stop that one"
ME = ProcessIdentity.current()


class Turned:
    """A clock that only sleeps advance, with a callback during each sleep."""

    def __init__(self, *during: Callable[[], Any]):
        self.now_s, self.during = 1000.0, list(during)

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        for happens in self.during:
            happens()


def taken(
    folder: Path | str, clock: Any = None, said: list[str] | None = None, times: LeaseTimes = TIMES
) -> lease.Lease:
    show = [].append if said is None else said.append
    return take(str(folder), f"run {folder}", "training run", show, HINT, times, clock or Turned())


def away(*_: object, **__: object) -> Any:
    raise OSError("away")


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make processes that take a lease from now on appear to be on another machine."""
    monkeypatch.setattr(lease_files, "_machine", lambda: None)


def test_a_folder_that_nobody_holds_is_taken_and_let_go_at_once(tmp_path):
    clock, said = Turned(), []
    first = taken(tmp_path, clock, said)
    first.renew()
    first.release()
    second = taken(tmp_path, clock, said)
    assert (first.claim.number, second.claim.number, said, clock.now_s) == (1, 2, [], 1000.0)
    assert [path.name for path in (tmp_path / "lease").iterdir()] == ["00000002.json"], "what is over is tidied up"


def test_a_job_that_is_alive_is_named_and_the_other_refused_soon(tmp_path):
    first, said = taken(tmp_path), []
    clock = Turned(lambda: clock.now_s % 5 or first.renew())
    with pytest.raises(ConfigError) as refused:
        taken(tmp_path, clock, said)
    process = ProcessIdentity.current()
    who = f"{process.user} on {process.host} (training run, process {os.getpid()}, since "
    assert refused.value.message.startswith(f"run {tmp_path} is held by another job, which is alive: {who}")
    assert (refused.value.exit_code, refused.value.hint) == (2, HINT)
    assert clock.now_s - 1000 <= 2 * TIMES.renew_s
    (line,) = said
    assert line.startswith(f"run {tmp_path} is held by {who}") and "waiting until it ends" in line and "45 s" in line
    first.check()


def test_a_job_that_is_silent_is_followed_and_has_stopped_by_then(tmp_path, monkeypatch):
    elsewhere(monkeypatch)
    first = taken(tmp_path, clock := Turned())
    could_write: list[float] = []

    def writes() -> None:
        try:
            first.check()  # looks at the lease where its last look is old, and renews it
        except LeaseLostError:
            return
        could_write.append(clock.now_s)

    clock.during = [lambda: clock.now_s > 1000 + TIMES.silence_s and writes()]
    second = taken(tmp_path, clock)
    assert 1000 + TIMES.silence_s <= clock.now_s <= 1000 + 60, "the same command goes on soon"
    assert not could_write, "it was not told before the other one began"
    with pytest.raises(LeaseLostError, match=r"was taken over by another job .*: .* \(training run, process") as lost:
        first.check()
    assert lost.value.exit_code == 6
    second.check()
    first.release()
    second.check()
    assert lease_files.newest(str(tmp_path)).owner == second.claim.owner  # pyright: ignore[reportOptionalMemberAccess]


def test_a_silent_job_that_comes_back_in_time_keeps_its_folder(tmp_path, monkeypatch):
    elsewhere(monkeypatch)
    first = taken(tmp_path, clock := Turned())
    clock.during = [lambda: clock.now_s == 1000 + TIMES.silence_s - 2 and first.check()]
    with pytest.raises(ConfigError, match="is alive"):
        taken(tmp_path, clock)


def test_time_in_which_the_folder_cannot_be_read_is_not_silence(tmp_path, monkeypatch):
    """A disk or store that is away keeps the holder from renewing as well."""
    elsewhere(monkeypatch)
    taken(tmp_path)
    real, clock = fs.names, Turned()

    def names(folder: str, quick: bool = False) -> list[str]:
        if 1020 < clock.now_s < 1050:
            raise OSError("away")
        return real(folder, quick)

    monkeypatch.setattr(fs, "names", names)
    taken(tmp_path, clock)
    assert clock.now_s >= 1050 + TIMES.silence_s
    monkeypatch.setattr(fs, "names", away)
    with pytest.raises(DataError, match="cannot be reached"), hold(tmp_path, "x", "y", print, HINT):
        pass


def started() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def described(pid: int) -> ProcessIdentity:
    return dataclasses.replace(ME, pid=pid, started=lease_files._state_and_start(pid)[1])


def test_a_killed_process_of_this_machine_is_followed_at_once(tmp_path, monkeypatch):
    driver, helper = started(), started()
    try:
        monkeypatch.setattr(ProcessIdentity, "current", lambda: described(driver.pid))
        claim = taken(tmp_path).claim
        monkeypatch.setattr(ProcessIdentity, "current", lambda: described(helper.pid))
        LeaseWatch([claim]).join()
        monkeypatch.undo()
        assert not described(driver.pid).is_gone
        driver.kill()
        driver.wait()
        assert claim.process.is_gone
        ends_at_s = 1007

        def end() -> None:
            if clock.now_s == ends_at_s:
                helper.kill()
                os.waitid(os.P_PID, helper.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie, as in many containers

        clock = Turned(end)
        said: list[str] = []
        taken(tmp_path, clock, said)
        assert clock.now_s == ends_at_s and len(said) == 1, "what belongs to a job may outlive its driver for a moment"
    finally:
        for process in (driver, helper):
            process.kill()
            process.wait()


def test_numbers_of_processes_mean_nothing_elsewhere_and_are_used_again():
    mine = ProcessIdentity.current()
    assert not mine.is_gone
    if mine.machine is None:
        pytest.skip("this system does not tell boots apart")
    assert not dataclasses.replace(mine, machine="another namespace", pid=2**22 + 1).is_gone
    assert not dataclasses.replace(mine, machine=None, pid=2**22 + 1).is_gone
    assert dataclasses.replace(mine, started="1").is_gone, "another process has its number"


def race(folder: str, number: int) -> tuple[list[lease.Lease], list[ConfigError]]:
    """Take a lease from several threads at once; the winner renews it."""
    quick = LeaseTimes(renew_s=0.02, poll_s=0.01, silence_s=60.0)
    together, won, refused = threading.Barrier(number), list[lease.Lease](), list[ConfigError]()

    def contend() -> None:
        together.wait()
        try:
            won.append(taken(folder, time, times=quick))
            won[-1].start()
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=contend) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in won:
        each.release()
    return won, refused


def test_of_jobs_that_start_in_one_instant_one_goes_on(tmp_path):
    for _ in range(3):
        won, refused = race(str(tmp_path), 6)
        assert len(won) == 1 and len(refused) == 5


def test_who_looked_long_ago_does_not_take_what_others_had_since(tmp_path, monkeypatch):
    """Numbers that were in use are removed later: creating such a one is not enough."""
    first = taken(tmp_path)
    first.release()
    old = lease_files.newest(str(tmp_path))
    taken(tmp_path).release()
    third = taken(tmp_path)
    looks = [old]
    real = lease_files.newest
    monkeypatch.setattr(lease, "newest", lambda folder: looks.pop() if looks else real(folder))
    monkeypatch.setattr(lease._HolderObserver, "judge", lambda self, holder: "free" if holder is old else "alive")
    with pytest.raises(ConfigError, match="is alive"):
        taken(tmp_path)
    third.check()


def test_a_lease_that_cannot_be_renewed_says_so_where_something_is_to_be_written(tmp_path, monkeypatch):
    first = taken(tmp_path, clock := Turned())
    monkeypatch.setattr(fs, "names", away)
    first.check()
    clock.sleep(TIMES.fresh_s + 1)
    with pytest.raises(ClusterError, match="cannot be reached: OSError: away"):
        first.check()


def test_a_full_disk_does_not_look_like_a_dead_holder(tmp_path, monkeypatch):
    """A save that finds no room costs that save, not the run."""
    first = taken(tmp_path)
    first.renew()
    monkeypatch.setattr(fs, "write_whole", away)
    monkeypatch.setattr(fs.local, "temporary_file", away)
    clock = Turned(lambda: clock.now_s % 5 or first.renew())
    with pytest.raises(ConfigError, match="is alive"):
        taken(tmp_path, clock)


def test_files_that_are_not_ours_are_waited_for_as_silent(tmp_path):
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "00000007.json").write_text('{"half": ')
    (tmp_path / "lease" / "notes.json").write_text("")
    clock = Turned()
    assert taken(tmp_path, clock).claim.number == 8 and clock.now_s >= 1000 + TIMES.silence_s


def test_a_helper_ends_with_its_job(tmp_path, monkeypatch):
    first = taken(tmp_path)
    clock = Turned()
    watch = LeaseWatch([first.claim], TIMES, clock)
    watch.join()
    real = fs.names
    for second in range(1, 200):
        clock.sleep(1.0)
        if second == 50:
            monkeypatch.setattr(fs, "names", away)
        if second == 100:
            monkeypatch.setattr(fs, "names", real)
        if second in (10, 20, 40, 110):
            first.renew()
        reason = watch.look()
        if reason is not None:
            break
    assert reason is not None and "has not renewed the lease" in reason
    assert 110 + TIMES.helper_s <= second <= 110 + TIMES.silence_s, "before anyone takes the lease, after the renewals"
    elsewhere(monkeypatch)
    first.renew()
    taken(tmp_path, Turned())
    reason = LeaseWatch([first.claim], TIMES, clock).look()
    assert reason is not None and "was taken over by another job" in reason
    with pytest.raises(LeaseLostError):
        LeaseWatch([first.claim]).join()


def test_a_helper_sees_that_its_driver_is_gone(tmp_path, monkeypatch):
    driver = started()
    monkeypatch.setattr(ProcessIdentity, "current", lambda: described(driver.pid))
    claim = taken(tmp_path).claim
    watch, reasons, ended = LeaseWatch([claim], LeaseTimes(poll_s=0.01)), [], threading.Event()
    assert watch.look() is None
    driver.kill()
    driver.wait()
    watch.start(lambda reason: (reasons.append(reason), ended.set()))
    assert ended.wait(60)
    assert reasons == [f"the driver of this job, process {driver.pid}, is gone"]


def test_a_lease_is_held_during_a_block_whatever_ends_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), hold(tmp_path, "run", "training", print, HINT) as held:
        held.check()
        raise KeyboardInterrupt
    beat = json.loads((tmp_path / "lease" / "00000001.beat").read_text())
    assert beat["has_ended"] and not held._thread.is_alive()


@pytest.mark.parametrize(("error", "waits"), [(None, False), (ConfigError("x"), False), (KeyboardInterrupt(), True)])
def test_what_a_job_has_elsewhere_is_waited_for_unless_it_is_known_to_have_ended(tmp_path, monkeypatch, error, waits):
    """Ctrl-C ends a driver before its ranks, which may be on other machines."""
    with pytest.raises(type(error)) if error else nullcontext(), hold(tmp_path, "x", "y", print, HINT) as held:
        watch = LeaseWatch([held.claim])
        monkeypatch.setattr(ProcessIdentity, "current", lambda: dataclasses.replace(ME, machine="another"))
        watch.join()
        if error:
            raise error
    monkeypatch.undo()
    reason = watch.look()
    assert reason is not None and reason.startswith("the driver of this job has released")
    taken(tmp_path, clock := Turned())
    assert (clock.now_s >= 1000 + TIMES.silence_s) == waits


def test_a_driver_that_dies_right_after_a_renewal_is_not_taken_for_alive(tmp_path, monkeypatch):
    claim = taken(tmp_path).claim
    LeaseWatch([claim]).join()

    def dies() -> None:
        if clock.now_s == 1003:
            lease._write_beat(claim, 7, has_ended=False)
            monkeypatch.setattr(ProcessIdentity, "is_gone", property(lambda self: clock.now_s >= 1003 + self.is_helper))

    clock = Turned(dies)
    monkeypatch.setattr(lease, "helpers", lambda *_: [dataclasses.replace(ME, host="helper")])
    monkeypatch.setattr(ProcessIdentity, "is_helper", property(lambda self: 3 * (self.host == "helper")), raising=False)
    monkeypatch.setattr(ProcessIdentity, "is_gone", property(lambda self: False))
    taken(tmp_path, clock)
    assert clock.now_s == 1006


def test_a_disk_without_hard_links_has_leases_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links")))
    won, refused = race(str(tmp_path), 4)
    assert (len(won), len(refused)) == (1, 3)


@pytest.fixture
def bucket(monkeypatch, request):
    with moto_bucket(monkeypatch, request.node.name.replace("_", "-")[:60]) as url:
        yield url


# the S3 client leaves its connections and loops to the garbage collector
@pytest.mark.filterwarnings("ignore")
def test_a_store_has_leases(bucket):
    folder = f"{bucket}/saved/run"
    first, said = taken(folder), []
    clock = Turned(lambda: clock.now_s % 5 or first.renew())
    with pytest.raises(ConfigError, match="is alive"):
        taken(folder, clock, said)
    first.release()
    assert taken(folder).claim.number == 2
    with pytest.raises(LeaseLostError):
        first.claim.check()
    assert fs.names(f"{folder}/lease") == ["00000002.json"], "the probe is gone"


@pytest.mark.filterwarnings("ignore")
def test_a_store_that_ignores_conditions_gets_a_second_look(bucket, monkeypatch):
    """Small S3 servers accept `If-None-Match: *` and overwrite all the same."""
    real = s3fs.S3FileSystem._call_s3

    async def ignores(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("IfNoneMatch", None)
        return await real(self, method, *args, **kwargs)

    assert fs.honours_conditions(bucket)
    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", ignores)
    monkeypatch.setattr(fs, "CONFLICT_CHECK_DELAY_S", 0.0)
    assert fs.create(f"{bucket}/a", b"1") and fs.create(f"{bucket}/a", b"2"), "both believe that they won"
    assert not fs.honours_conditions(bucket) and fs.names(bucket) == ["a"]
    assert not fs.create(f"{bucket}/a", b"3", conditional=False)
    assert fs.create(f"{bucket}/b", b"1", conditional=False) and fs.read(f"{bucket}/b") == b"1"

    def overwritten() -> None:
        """Write the lease of another job that saw no holder, under the same number."""
        content = json.loads(fs.read(f"{bucket}/run/lease/00000001.json"))
        fs.write_whole(f"{bucket}/run/lease/00000001.json", json.dumps(content | {"owner": "other"}).encode())
        clock.during = [lambda: fs.write_whole(f"{bucket}/run/lease/00000001.beat", str(clock.now_s).encode())]

    clock, said = Turned(overwritten), []
    with pytest.raises(ConfigError, match="is alive"):
        taken(f"{bucket}/run", clock, said)
    assert said[0].startswith(f"{bucket}/run: this store ignores If-None-Match, so a second read distinguishes ")


def test_a_folder_that_cannot_be_made_is_said_without_a_traceback():
    """A file system without folders of users says that it is not there, which elsewhere is an answer."""
    with (
        pytest.raises(ConfigError, match=r"/proc/nowhere/run cannot be reached: PermissionError: .* cannot be created"),
        lease.hold("/proc/nowhere/run", "run", "training", print, "hint", ConfigError),
    ):
        pass
