"""Helpers for the tests of the reader: an object, its ranges, and a wait for other threads.

Invariant: an answer without a fault consists of bytes of `DATA`, so every byte can be compared.
"""

import time
from collections.abc import Callable
from pathlib import Path

from janus_dist.data.reader import ByteRange
from janus_dist.storage import page_files
from tests.s3_faults import noise

SIZE = 40_000
DATA = noise(SIZE)
PATH = "s3://shards/a.tar"
PAGE = 1_024  # bytes of a page, instead of 256 KiB


def gib(pages: int) -> float:
    """Return the `cache_gib` that holds exactly `pages` pages."""
    return (pages + 0.5) * (PAGE + page_files.BLOCK_BYTES) / 2**30


def pages_in(folder: Path) -> int:
    return sum(1 for file in folder.glob("pages-*/*/*") if file.is_file())


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, which another thread or process fulfils."""
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def wanted(ranges: list[ByteRange]) -> list[bytes]:
    return [DATA[one.offset : one.stop] for one in ranges]
