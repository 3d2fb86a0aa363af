"""Errors that a user can cause, each with the exit code of its kind and a hint at how to fix it.

Invariant: an error of this module is shown as `message` and `hint`, without a traceback, and ends the process with
`exit_code`. Every other exception is a bug of this program and keeps its traceback (exit code 1); a rank's traceback is
in the rank's log file. docs/errors.md lists the exit codes.
"""

import os
import sys

RECORD_VARIABLE = "JANUS_EXIT_RECORD"
"""Environment variable by which `janus submit` asks a job to write its exit code into its log."""
EXIT_RECORD = "janus_exit_code="
"""Prefix of the line that records the exit code."""


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
    """A rank failed with an exception that is not a JanusError: a bug here or in a library, or lack of memory."""


class ConfigError(JanusError):
    """A recipe, an override or a command line is invalid; nothing was started."""

    exit_code = 2


class DataError(JanusError):
    """Images, texts, shards, tokenizer or manifest are missing, damaged or made in an incompatible way."""

    exit_code = 3
    kind = "other"
    """Category under which a record that fails with this error is counted."""


class RecordError(DataError):
    """A record of an input cannot be used; the message is `KIND: DETAIL`, for example `too small: 5x5 pixels`."""

    def __init__(self, kind: str, detail: str):
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail

    def __reduce__(self) -> tuple[type["RecordError"], tuple[str, str]]:
        """Return the class and arguments from which pickle rebuilds the error in another process."""
        return RecordError, (self.kind, self.detail)


class CheckpointError(JanusError):
    """A checkpoint is absent, damaged, or belongs to another model."""

    exit_code = 4


class DivergedError(JanusError):
    """Steps kept being skipped because of NaN losses or loss spikes, even after rolling back to a checkpoint."""

    exit_code = 5


class ClusterError(JanusError):
    """Ray, a node, a device or the network failed."""

    exit_code = 6


class PreemptedError(JanusError):
    """The run was asked to stop and saved a checkpoint; the same command resumes from it."""

    exit_code = 75


class InterruptError(PreemptedError):
    """The run was interrupted from the keyboard and saved a checkpoint; the same command resumes from it."""

    exit_code = 130


def write_exit_record(code: int) -> None:
    """Print the exit code of a stopped job as one machine-readable line, if `janus submit` asked for it.

    Ray does not keep the exit code of a job that was stopped.
    """
    if os.environ.get(RECORD_VARIABLE) and code in (PreemptedError.exit_code, InterruptError.exit_code):
        sys.stderr.write(f"{EXIT_RECORD}{code}\n")
        sys.stderr.flush()
