"""The node's page cache: bounded, intact after any kill, evicted in Belady's order, harmless when the disk fails."""

import errno
import functools
import logging
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_dist.storage import cache, page_files
from janus_dist.storage.cache import PageCache
from tests.s3_faults import noise

ROOT = Path(__file__).parents[3]
PAGE = 64
OBJECT = "s3://bucket/object"
CONTENT = noise(40 * PAGE - 10)


class Source:
    """A store that records which pages are fetched."""

    def __init__(self) -> None:
        self.fetched: list[int] = []

    def fetch(self, first: int, stop: int) -> bytes:
        self.fetched += range(first, stop)
        return CONTENT[first * PAGE : stop * PAGE]


def files(folder: Path) -> list[Path]:
    return [file for file in folder.glob("pages-*/*/*") if file.is_file()]


def numbers(folder: Path) -> set[int]:
    """Return the indices of the pages in the folder."""
    return {int(file.name.rpartition("-")[2], 16) for file in files(folder)}


def get(pages: PageCache, source: Source, *asked: int) -> None:
    for number in asked:
        assert pages.read(OBJECT, number, number + 1, source.fetch)[0] == CONTENT[number * PAGE : (number + 1) * PAGE]


def fewest_misses(trace: list[int], capacity: int) -> int:
    """Return the fewest misses of any order of eviction that keeps each page that is read, by trying all orders."""

    @functools.cache
    def misses(place: int, held: frozenset[int]) -> int:
        if place == len(trace):
            return 0
        page = trace[place]
        if page in held:
            return misses(place + 1, held)
        if len(held) < capacity:
            return 1 + misses(place + 1, held | {page})
        return 1 + min(misses(place + 1, held - {victim} | {page}) for victim in held)

    return misses(0, frozenset())


@settings(max_examples=60)
@given(st.lists(st.integers(0, 6), max_size=16), st.integers(1, 4))
def test_eviction_is_as_good_as_any(tmp_path_factory: pytest.TempPathFactory, trace: list[int], capacity: int):
    folder, source = tmp_path_factory.mktemp("cache"), Source()
    pages = PageCache(folder, capacity, PAGE)
    pages.expect({step: [(OBJECT, page)] for step, page in enumerate(trace)}, now=0)
    for step, page in enumerate(trace):
        pages.expect({}, now=step)
        get(pages, source, page)
        assert len(files(folder)) <= capacity
    assert len(source.fetched) == fewest_misses(trace, capacity)


def test_what_nobody_expects_goes_first_and_the_oldest_of_it(tmp_path):
    pages, source = PageCache(tmp_path, 4, PAGE), Source()
    pages.expect({5: [(OBJECT, 0)], 9: [(OBJECT, 1)], 7: [(OBJECT, page) for page in (10, 11, 12)]}, now=5)
    for page in (0, 2, 1, 3):
        get(pages, source, page)
        time.sleep(0.02)  # the order of their times is that of their making
    for page, left in ((10, {0, 1, 3, 10}), (11, {0, 1, 10, 11}), (12, {0, 10, 11, 12})):
        get(pages, source, page)
        assert numbers(tmp_path) == left


def test_a_page_that_is_needed_last_does_not_push_out_others(tmp_path):
    pages, source = PageCache(tmp_path, 2, PAGE), Source()
    pages.expect({1: [(OBJECT, 0)], 2: [(OBJECT, 1)], 3: [(OBJECT, 2)]}, now=0)
    get(pages, source, 0, 1, 2, 2, 0, 1)
    assert source.fetched == [0, 1, 2, 2] and numbers(tmp_path) == {0, 1}
    pages.expect({}, now=2)  # step 1 is over: page 0 may go
    get(pages, source, 2)
    assert numbers(tmp_path) == {1, 2}


def test_a_smaller_cache_than_before_shrinks(tmp_path):
    source = Source()
    get(PageCache(tmp_path, 30, PAGE), source, *range(30))
    get(PageCache(tmp_path, 5, PAGE), source, 31)
    assert len(files(tmp_path)) == 5


def test_the_last_page_is_short(tmp_path):
    pages, source = PageCache(tmp_path, 50, PAGE), Source()
    assert pages.read(OBJECT, 30, 40, source.fetch) == (CONTENT[30 * PAGE :], 0)
    assert pages.read(OBJECT, 30, 40, source.fetch) == (CONTENT[30 * PAGE :], 10)


@pytest.mark.parametrize("harm", ["empty", "cut", "longer", "flipped", "header"])
def test_a_torn_page_is_never_served(tmp_path, harm):
    pages, source = PageCache(tmp_path, 4, PAGE), Source()
    get(pages, source, 3)
    (file,) = files(tmp_path)
    content = file.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    file.write_bytes(
        {"empty": b"", "cut": content[:-1], "longer": content + b"x", "flipped": flipped, "header": content[:5]}[harm]
    )
    get(pages, source, 3, 3)
    assert source.fetched == [3, 3] and len(files(tmp_path)) == 1


def test_the_unfinished_page_of_a_dead_process(tmp_path):
    """It is taken over when it is needed, and removed when room is needed."""
    pages, source = PageCache(tmp_path, 4, PAGE), Source()
    get(pages, source, 0)
    for number in (1, 2):
        unfinished = pages._files.unfinished_path(page_files.page_name(OBJECT, number))
        unfinished.write_bytes(b"half a page" * 20)
    get(pages, source, 1)
    get(pages, source, 3, 4, 5, 6, 7)
    assert not [file for file in files(tmp_path) if file.suffix == ".new"]
    assert len(files(tmp_path)) <= 4


CHILD = f"""
import random, sys
from janus_dist.storage.cache import PageCache
from tests.s3_faults import noise
content = noise({len(CONTENT)})
pages = PageCache(sys.argv[1], 8, {PAGE})
print("ready", flush=True)
while True:
    first = random.randrange(38)
    pages.read({OBJECT!r}, first, first + 2, lambda first, stop: content[first * {PAGE} : stop * {PAGE}])
"""


def test_processes_killed_at_any_time_leave_it_sound(tmp_path):
    dice = random.Random(0)
    for _ in range(3):
        processes = [
            subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(dice.uniform(0.05, 0.4))
        for process in processes:
            process.kill()
            process.communicate()
        assert sum(1 for file in files(tmp_path) if file.stat().st_size) <= 8
        source, pages = Source(), PageCache(tmp_path, 8, PAGE)
        for file in files(tmp_path):
            content = file.read_bytes()
            number = int(file.stem.rpartition("-")[2], 16)
            whole = content[page_files.HEADER.size :] == CONTENT[number * PAGE : (number + 1) * PAGE]
            assert whole or file.suffix == ".new"
        get(pages, source, *range(40))
        assert len(files(tmp_path)) <= 8


def test_a_broken_disk_costs_speed_only(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    pages, quiet, source = (
        PageCache(tmp_path / "file", 4, PAGE),
        PageCache(tmp_path / "file", 4, PAGE, warn=False),
        Source(),
    )
    with caplog.at_level(logging.WARNING):
        get(pages, source, 0, 0, 1)
        get(quiet, source, 1)
    assert source.fetched == [0, 0, 1, 1]
    (line,) = caplog.messages
    assert line == (
        f"cache turned off: {tmp_path}/file/pages-1-64: Not a directory; reading continues from the store, "
        "the cache is tried again every 300 s"
    )


def test_a_full_disk_costs_speed_only(tmp_path, caplog, monkeypatch):
    pages, source = PageCache(tmp_path, 4, PAGE), Source()
    get(pages, source, 0)
    write = page_files.write_all

    def full(file: int, content: bytes) -> None:
        if len(content) > 8:  # the count is in place, a page needs room
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, content)

    monkeypatch.setattr(page_files, "write_all", full)
    get(pages, source, 1, 0, 1)
    assert source.fetched == [0, 1, 0, 1] and numbers(tmp_path) == {0}
    assert "No space left on device" in caplog.text and len(caplog.messages) == 1
    monkeypatch.setattr(page_files, "write_all", write)
    pages._off_until_s = 0.0  # five minutes later
    get(pages, source, 0, 1, 1)
    assert source.fetched == [0, 1, 0, 1, 1] and numbers(tmp_path) == {0, 1}


def test_runs_are_of_neighbours():
    assert cache.runs([1, 2, 3, 7, 9, 10]) == [(1, 4), (7, 8), (9, 11)]
    assert cache.runs(list(range(20))) == [(0, 16), (16, 20)]
    assert cache.runs([]) == []
