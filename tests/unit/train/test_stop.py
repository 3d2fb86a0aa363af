"""Being asked to stop: who asked is said, and what was asked before is forgotten."""

import errno
import signal
from pathlib import Path

import pytest

from janus_dist.train.start import _shortened
from janus_dist.train.stop import STOP, StopRequest, forget_request, request_stop


@pytest.fixture(autouse=True)
def handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_who_asked_is_said(tmp_path):
    asked = StopRequest(tmp_path, None, is_first=True)
    assert asked.reason is None
    request_stop(tmp_path, "SIGTERM to its job")
    assert asked.reason == f"SIGTERM to its job: {tmp_path / STOP}"
    forget_request(tmp_path)
    assert asked.reason is None
    (tmp_path / STOP).touch()
    assert asked.reason == str(tmp_path / STOP), "by hand"
    (tmp_path / STOP).write_bytes(b"\xff\xfe")
    assert asked.reason == str(tmp_path / STOP)
    assert StopRequest(tmp_path, None, is_first=False).reason is None, "the first rank looks"


def test_a_notice_is_a_file_of_the_node(tmp_path):
    notice = tmp_path / "notice"
    asked = StopRequest(tmp_path, str(notice), is_first=False)
    notice.write_text("whatever a provider writes")
    assert asked.reason == str(notice)


def test_a_path_of_the_repository_is_short():
    assert (
        _shortened(__file__) == "tests/unit/train/test_stop.py"
        and _shortened("/elsewhere/siglip") == "/elsewhere/siglip"
    )


def test_a_disk_that_is_away_asks_nothing(tmp_path, monkeypatch):
    asked = StopRequest(tmp_path, None, is_first=True)
    (tmp_path / STOP).touch()

    def away(path, **_):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", away)
        assert asked.reason is None
    assert asked.reason == str(tmp_path / STOP), "when it is back"
