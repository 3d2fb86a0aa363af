"""Fixtures of the tests that read shards: prepared ones, a failing store, readers that do not wait long."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from aiobotocore.session import AioSession

from janus_dist.config.data import ReadConfig
from janus_dist.data import reader
from janus_dist.data.reader import RangeReader
from janus_dist.storage import ranges
from tests import prepared
from tests.reading import DATA, PAGE
from tests.s3_faults import PROXIES, FaultyS3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Shards of three streams and a tokenizer, made once for the tests of a file; a file with others has its own."""
    folder = tmp_path_factory.mktemp("prepared")
    prepared.prepare(folder)
    return folder


@pytest.fixture
def quick_reader(monkeypatch):
    """Small pages and short pauses; nothing is late unless a test says so, however slow the machine."""
    monkeypatch.setattr(reader, "PAGE_BYTES", PAGE)
    monkeypatch.setattr(reader, "SPAN_BYTES", 16 * PAGE)
    monkeypatch.setattr(ranges, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(ranges, "LATE_COLD_S", 60.0)
    monkeypatch.setattr(ranges, "LATE_FLOOR_S", 60.0)


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
def make_reader(quick_reader, monkeypatch) -> Iterator[Callable[..., RangeReader]]:
    """Makes readers of small pages, which try so many times, and closes them."""
    made: list[RangeReader] = []

    def new(node_member: int = 0, attempts: int = 3, **values: Any) -> RangeReader:
        settings = {name: values.pop(name) for name in ReadConfig.model_fields if name in values}
        wait_s = ranges.pause_s
        monkeypatch.setattr(ranges, "pause_s", lambda tried: wait_s(tried) if tried < attempts else math.inf)
        made.append(RangeReader(ReadConfig.model_validate(settings), node_member, **{"timeout_s": 30, **values}))
        return made[-1]

    yield new
    for one in made:
        one.close()
