"""The record of a job's exit code in its log, which `janus submit` reads."""

import signal
import sys
from collections.abc import Callable

import pytest

from janus_dist.cli.job import run_job
from janus_dist.cli.submit import RECORD
from janus_dist.errors import RECORD_VARIABLE, DataError, InterruptError, PreemptedError


@pytest.fixture
def end(monkeypatch, capsys):
    """Runs a job and returns what it printed on stderr."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["job"])

    def run(main: Callable[[], int | None]) -> str:
        with pytest.raises(SystemExit):
            run_job(main)
        return capsys.readouterr().err

    yield run
    signal.signal(signal.SIGTERM, before)


def raising(error: BaseException) -> Callable[[], int | None]:
    def main() -> int | None:
        raise error

    return main


def interrupt() -> int | None:
    signal.raise_signal(signal.SIGTERM)
    return 0


def test_a_job_that_was_asked_to_stop_records_its_exit_code(end, monkeypatch):
    monkeypatch.setenv(RECORD_VARIABLE, "1")
    for main, code in (
        (raising(PreemptedError("stopped")), "75"),
        (raising(InterruptError("stopped")), "130"),
        (raising(KeyboardInterrupt()), "130"),
        (interrupt, "75"),
        (lambda: 75, "75"),
    ):
        assert RECORD.findall(end(main)) == [code], main


def test_no_other_end_is_recorded(end, monkeypatch):
    monkeypatch.setenv(RECORD_VARIABLE, "1")
    for main in (lambda: 0, raising(DataError("damaged"))):
        assert not RECORD.findall(end(main))


def test_nothing_is_recorded_for_people(end, monkeypatch):
    monkeypatch.delenv(RECORD_VARIABLE, raising=False)
    assert "janus_exit_code" not in end(raising(PreemptedError("stopped")))
