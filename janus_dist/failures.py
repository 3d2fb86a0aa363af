"""What the texts of Ray, NCCL, gloo and CUDA mean, and how foreign errors are shown on one line.

Invariant: no other module reads the text of such an error; nothing here needs torch or ray.
"""

import re

MAX_CHARS = 300
MAX_NAMED_CHARS = 400
RANKS_OR_DEVICES = re.compile(
    r"gloo|nccl|ProcessGroup|TCPStore|socket|connection (closed|reset|refused|was)|broken pipe|timed out waiting"
    r"|uncorrectable|hardware stack error|nvlink|device\(s\) is/are busy or unavailable",
    re.IGNORECASE,
)
"""What torch's communication says when another rank is gone, and CUDA when a device is broken."""
WORKER_INFO = " Worker info:"
"""Beginning of a worker's address and arguments in Ray Train's errors."""
RAY_PREAMBLE = re.compile(
    r"^.*(job_manager\.py:\d+ -- Runtime env is setting up\.|Running entrypoint for job raysubmit_.*)\n", re.MULTILINE
)
"""Lines of Ray at the beginning of each job's log."""


def has_type(error: BaseException, name: str) -> bool:
    """Return whether an error is of a type of this name, which need not be imported."""
    return any(kind.__name__ == name for kind in type(error).__mro__)


def is_communication_or_device(text: str) -> bool:
    """Return whether the text of an error tells of another rank's end, the network or a broken device."""
    return RANKS_OR_DEVICES.search(text) is not None


def one_line(error: BaseException) -> str:
    """Return an error's text on one line, at most MAX_CHARS long; its type where it has no text."""
    return " ".join(str(error).split())[:MAX_CHARS] or type(error).__name__


def named_line(error: BaseException) -> str:
    """Return the last line of an error's traceback, its type and text, at most MAX_NAMED_CHARS long."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    text = " ".join(str(error).split())
    return f"{name}: {text}"[:MAX_NAMED_CHARS] if text else name


def without_worker_info(line: str) -> str:
    """Return the line of a Ray Train error without the worker's address and arguments."""
    return line.partition(WORKER_INFO)[0]


def without_ray_preamble(log: str) -> str:
    """Return a piece of a job's log without Ray's own first lines."""
    return RAY_PREAMBLE.sub("", log)
