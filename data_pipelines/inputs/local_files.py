"""Kinds of files on a disk: regular files, and others that must not be opened.

Invariant: no file is opened here, so that a pipe does not block and a device is not read.
"""

import stat
from pathlib import Path
from typing import Any


def local_entry(path: str) -> dict[str, Any]:
    """Return size and type of a file, links followed; the type is in words unless the file is regular."""
    try:
        status = Path(path).stat()
    except OSError:
        return {"size": 0, "type": kind_of_file(path)}
    return {"size": status.st_size, "type": "file" if stat.S_ISREG(status.st_mode) else kind_of_file(path)}


def kind_of_file(path: str) -> str:
    """Return in words what a path is, links followed."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return f"a link to {Path(path).readlink()}, which does not exist" if Path(path).is_symlink() else "absent"
    words = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}
    return words.get(stat.S_IFMT(mode), "a device")
