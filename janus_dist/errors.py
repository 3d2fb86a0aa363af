"""Errors that a user can cause, each with the exit code of its kind and a hint at the way out.

Invariant: whatever is raised here is shown as `message` and `hint`, without a traceback, and ends the process with
`exit_code`. Everything else is our own mistake and keeps its traceback (exit code 1), that of a rank in the rank's log
file. The codes are in docs/errors.md.
"""

import os
import sys

RECORD_VARIABLE = "JANUS_EXIT_RECORD"
"""Environment variable with which `janus submit` asks a job for a record of its exit code in its log."""
EXIT_RECORD = "janus_exit_code="
"""Beginning of the record, a line of its own."""


class JanusError(Exception):
    """Base of all errors shown without a traceback."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message, hint)  # both in args, so that the error survives pickling between processes
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  {self.hint}"


class RankError(JanusError):
    """A rank failed by an exception that is none of those below: a mistake of ours, a library's, or memory."""


class ConfigError(JanusError):
    """A recipe, an override or a command line is wrong; nothing was started."""

    exit_code = 2


class DataError(JanusError):
    """Images, texts, shards, tokenizer or manifest are missing, damaged or of another making."""

    exit_code = 3
    kind = "other"
    """What a record that fails with the error is counted under."""


class RecordError(DataError):
    """A record of an input cannot be used; the message is `KIND: DETAIL`, as `too small: 5x5 pixels`."""

    def __init__(self, kind: str, detail: str):
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail

    def __reduce__(self) -> tuple[type["RecordError"], tuple[str, str]]:
        """Return how pickle makes the error again in another process."""
        return RecordError, (self.kind, self.detail)


class CheckpointError(JanusError):
    """A checkpoint is absent, damaged, or of another model."""

    exit_code = 4


class DivergedError(JanusError):
    """Steps were skipped again and again, for a loss that is no number or spikes, also after going back."""

    exit_code = 5


class ClusterError(JanusError):
    """Ray, a node, a device or the network failed."""

    exit_code = 6


class PreemptedError(JanusError):
    """The run was asked to stop and saved a checkpoint; the same command goes on from there."""

    exit_code = 75


class InterruptError(PreemptedError):
    """The run was interrupted from the keyboard and saved a checkpoint; the same command goes on from there."""

    exit_code = 130


def write_exit_record(code: int) -> None:
    """Print the exit code of a job that was asked to stop, as a line that a program reads, where `janus submit` asks
    for it: Ray keeps no exit code of a job that was stopped."""
    if os.environ.get(RECORD_VARIABLE) and code in (PreemptedError.exit_code, InterruptError.exit_code):
        sys.stderr.write(f"{EXIT_RECORD}{code}\n")
        sys.stderr.flush()
