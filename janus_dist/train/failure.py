"""How a rank that fails says so: which rank, where, by what, and what to do about it.

Invariant: an exception that may be the doing of another rank, of the network or of a broken device leaves a rank as it
is, so that the driver starts the ranks again; every other one leaves as a JanusError, and starting again is not tried.
"""

import platform
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from janus_dist.errors import JanusError, RankError

SHOWN = 400
OTHERS = re.compile(
    r"gloo|nccl|ProcessGroup|TCPStore|socket|connection (closed|reset|refused|was)|broken pipe|timed out waiting"
    r"|uncorrectable|hardware stack error|nvlink|device\(s\) is/are busy or unavailable",
    re.IGNORECASE,
)
"""What torch's communication says when another rank is gone, and CUDA when a device is broken."""


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
            f"rank {rank} on {platform.node()} failed: {in_short(error)}",
            f"{_way_out(error)}its traceback is in {log_file(run_dir, rank)}",
        ) from error


def is_of_others(error: BaseException) -> bool:
    """Whether an exception may come from another rank's end, the network or a broken device."""
    if any(kind.__name__ == "DistError" for kind in type(error).__mro__):  # torch.distributed's own
        return True
    says_so = isinstance(error, RuntimeError) and OTHERS.search(str(error)) is not None
    return isinstance(error, ConnectionError) or (says_so and not isinstance(error, torch.OutOfMemoryError))


def in_short(error: BaseException) -> str:
    """The last line of an error's traceback: its type and what it says."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    text = " ".join(str(error).split())
    return f"{name}: {text}"[:SHOWN] if text else name


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
