"""What the files of a disk are: regular ones, or what must not be opened.

Invariant: nothing is opened here, so that a pipe does not block and a device is not read.
"""

import stat
from pathlib import Path
from typing import Any


def local_entry(path: str) -> dict[str, Any]:
    """Return size and type of a file, its link followed; the type is in words when it is not a regular file."""
    try:
        status = Path(path).stat()
    except OSError:
        return {"size": 0, "type": kind_of_file(path)}
    return {"size": status.st_size, "type": "file" if stat.S_ISREG(status.st_mode) else kind_of_file(path)}


def kind_of_file(path: str) -> str:
    """Return in words what a path is, its link followed."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return f"a link to {Path(path).readlink()}, which is not there" if Path(path).is_symlink() else "not there"
    words = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}
    return words.get(stat.S_IFMT(mode), "a device")
