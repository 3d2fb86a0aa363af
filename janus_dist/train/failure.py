"""How a rank that fails says so: which rank, where, by what, and what to do about it.

Invariant: an exception that may be the doing of another rank, of the network or of a broken device leaves a rank as it
is, so that the driver starts the ranks again; every other one leaves as a JanusError, and starting again is not tried.
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
    """Turn what ends a rank into RankError, unless it is told well already, or another rank's or a device's doing; the
    traceback goes to stderr, which is the rank's own file."""
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
            f"{_way_out(error)}its traceback is in {log_file(run_dir, rank)}",
        ) from error


def is_of_others(error: BaseException) -> bool:
    """Whether an exception may come from another rank's end, the network or a broken device."""
    if has_type(error, "DistError"):  # torch.distributed's own, which only the engine imports
        return True
    says_so = isinstance(error, RuntimeError) and is_communication_or_device(str(error))
    return isinstance(error, ConnectionError) or (says_so and not isinstance(error, torch.OutOfMemoryError))


def log_file(run_dir: Path, rank: int) -> Path:
    """Where a rank's own lines are."""
    return run_dir / "logs" / f"rank-{rank:04d}.log"


def _way_out(error: BaseException) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "lower batch.micro_rows, take more ranks, or engine.activation_checkpointing=1 (`janus plan` says what "
            "takes how much); "
        )
    return ""
