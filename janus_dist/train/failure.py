"""The error report of a rank that fails: which rank, on which node, the cause, and the fix.

Invariant: an exception that another rank, the network or a broken device may have caused leaves a rank unchanged, so
that the driver restarts the ranks; every other exception leaves as a JanusError, after which the driver does not
restart.
"""

import platform
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from janus_dist.errors import JanusError, RankError
from janus_dist.failures import has_type, is_communication_or_device, named_line


@contextmanager
def told(rank: int, run_dir: Path) -> Iterator[None]:
    """Convert an exception that ends a rank into a RankError.

    A JanusError, and an exception that another rank or a device may have caused, is raised unchanged. The traceback
    goes to stderr, which is the rank's own log file.
    """
    try:
        yield
    except JanusError:
        raise
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        if is_of_others(error):
            raise
        raise RankError(
            f"rank {rank} on {platform.node()} failed: {named_line(error)}",
            f"{_memory_hint(error)}its traceback is in {log_file(run_dir, rank)}",
        ) from error


def is_of_others(error: BaseException) -> bool:
    """Return whether the end of another rank, the network or a broken device may have caused an exception."""
    if has_type(error, "DistError"):  # a type of torch.distributed, which only the engine imports
        return True
    is_communication = isinstance(error, RuntimeError) and is_communication_or_device(str(error))
    return isinstance(error, ConnectionError) or (is_communication and not isinstance(error, torch.OutOfMemoryError))


def log_file(run_dir: Path, rank: int) -> Path:
    """Return the path of a rank's own log file."""
    return run_dir / "logs" / f"rank-{rank:04d}.log"


def _memory_hint(error: BaseException) -> str:
    """Return the hint for an out-of-memory error of a GPU, an empty string for other errors."""
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "lower batch.micro_rows, use more ranks, or set engine.activation_checkpointing=1 (`janus plan` shows the "
            "memory of each part); "
        )
    return ""
