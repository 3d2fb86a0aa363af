"""Files and folders on a disk or a shared file system that are complete or absent, even when a write is interrupted.

Invariant: a reader of a name written here sees all of the new content or the previous content. Content is written under
a temporary name in the same folder, then (for files: after fsync) gets its final name by one rename.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, text as UTF-8; its folder is created."""
    with temporary_file(path, content.encode() if isinstance(content, str) else content) as temporary:
        temporary.replace(path)


@contextmanager
def temporary_file(final: Path, content: bytes) -> Iterator[Path]:
    """Yield a file with the content, synced to the disk, in the folder of `final`; it is removed after the block."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # from a file system like /proc: it must not look like a missing file
        raise PermissionError(errno.EACCES, "the folder cannot be created", str(final.parent)) from error
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
    """Yield an empty folder that becomes `path` after the block, or is removed when the block raises an error.

    `path` may already be an empty folder, or with `replace` any folder, which is removed first.
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
    """Return a unique hidden name in the same folder: two processes may write the same file."""
    return final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
