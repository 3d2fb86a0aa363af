"""Files and folders on a disk or a shared file system that are whole or absent, also when writing them is interrupted.

Invariant: whoever reads a name written here sees all of its content, or what was there before. Content goes to a
temporary name in the same folder first, then (for files: after fsync) takes its own name by one rename.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, text as UTF-8; its folder is made."""
    with temporary_file(path, content.encode() if isinstance(content, str) else content) as temporary:
        temporary.replace(path)


@contextmanager
def temporary_file(final: Path, content: bytes) -> Iterator[Path]:
    """Yield a file with the content, synced to the disk, that lies in the folder of `final` and is gone afterwards."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # of a file system without folders of users, as /proc: no answer to a question
        raise PermissionError(errno.EACCES, "the folder cannot be made", str(final.parent)) from error
    temporary = _temporary_name(final)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends, and is removed when it ends by an error.

    What is at `path` may be an empty folder, or with `replace` any folder, which is removed first.
    """
    temporary = _temporary_name(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _temporary_name(final: Path) -> Path:
    """Return a hidden name in the same folder that no other process uses: two may write the same file."""
    return final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
