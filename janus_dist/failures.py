"""Interpretation of the error texts of Ray, NCCL, gloo and CUDA, and their display on one line.

Invariant: no other module parses the text of such an error; this module does not import torch or ray.
"""

import re

MAX_CHARS = 300
"""Characters of the longest line that `one_line` returns."""
MAX_NAMED_CHARS = 400
"""Characters of the longest line that `named_line` returns."""
RANKS_OR_DEVICES = re.compile(
    r"gloo|nccl|ProcessGroup|TCPStore|socket|connection (closed|reset|refused|was)|broken pipe|timed out waiting"
    r"|uncorrectable|hardware stack error|nvlink|device\(s\) is/are busy or unavailable",
    re.IGNORECASE,
)
"""Texts of torch.distributed errors when another rank is gone, and of CUDA errors when a device is broken."""
WORKER_INFO = " Worker info:"
"""Text that precedes a worker's address and arguments in Ray Train's errors."""
RAY_PREAMBLE = re.compile(
    r"^.*(job_manager\.py:\d+ -- Runtime env is setting up\.|Running entrypoint for job raysubmit_.*)\n", re.MULTILINE
)
"""Lines that Ray writes at the beginning of each job's log."""


def has_type(error: BaseException, name: str) -> bool:
    """Return whether an error is an instance of a class of this name; the class need not be imported."""
    return any(kind.__name__ == name for kind in type(error).__mro__)


def is_communication_or_device(text: str) -> bool:
    """Return whether an error text reports the loss of another rank, a network failure or a broken device."""
    return RANKS_OR_DEVICES.search(text) is not None


def one_line(error: BaseException) -> str:
    """Return an error's text on one line, at most MAX_CHARS characters long, or its type if it has no text."""
    return " ".join(str(error).split())[:MAX_CHARS] or type(error).__name__


def named_line(error: BaseException) -> str:
    """Return the last line of an error's traceback, its type and text, at most MAX_NAMED_CHARS characters long."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    text = " ".join(str(error).split())
    return f"{name}: {text}"[:MAX_NAMED_CHARS] if text else name


def without_worker_info(line: str) -> str:
    """Return the line of a Ray Train error without the worker's address and arguments."""
    return line.partition(WORKER_INFO)[0]


def without_ray_preamble(log: str) -> str:
    """Return a part of a job's log without the lines that Ray writes first."""
    return RAY_PREAMBLE.sub("", log)
