"""Reading of the pictures that records name by their paths.

Invariant: on a disk, only regular files are opened, and none to which a link leads from the folder of the input's
pictures; so no byte of another file of this machine reaches a shard or the quarantine table.
"""

import os
import stat
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import fsspec

from data_pipelines.inputs.local_files import kind_of_file
from data_pipelines.record import Picture
from janus_dist.errors import RecordError
from janus_dist.storage import fs

LONGEST_FILE_BYTES = 2**30
"""Most bytes of a picture's file."""
SNAPSHOTS, BLOBS = "snapshots", "blobs"
"""Folders of the Hugging Face cache: files of the former are links to those of the latter."""


def read_picture(picture: Picture) -> Picture:
    """Return a picture with its bytes.

    Raises DataError when the file does not exist, is not regular, is longer than LONGEST_FILE_BYTES, or is outside of
    `picture.root`. Other failures are the store's and end the job. A permission that a store refuses does so, too,
    since a store refuses every picture when its keys have expired.
    """
    try:
        if fs.is_local(picture.source):
            _check_file(picture)
        content = fs.read(picture.source)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError("missing", f"no file {picture.source}") from error
    except (IsADirectoryError, PermissionError) as error:
        if not fs.is_local(picture.source):
            raise
        raise RecordError("does not open", f"{type(error).__name__}: {error}") from error
    return replace(picture, content=content)


def _check_file(picture: Picture) -> None:
    """Raise DataError when a file of a disk must not be opened, FileNotFoundError when it does not exist."""
    path = Path(fsspec.core.strip_protocol(picture.source))
    if path.is_symlink() and not path.exists():
        raise RecordError("missing", f"{path} is {kind_of_file(str(path))}")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise RecordError("not a file", f"{path} is {kind_of_file(str(path))}")
    if picture.root and leads_out(str(path), picture.root):
        real = os.path.realpath(path)
        raise RecordError("unsafe link", f"{path} leads out of {picture.root}, to {real}, and was not opened")
    if status.st_size > LONGEST_FILE_BYTES:
        raise RecordError("too large", f"a file of {status.st_size} bytes, at most {LONGEST_FILE_BYTES} are read")


def leads_out(name: str, root: str) -> bool:
    """Return whether a path of a disk is not below a folder, links of both followed."""
    path = Path(fsspec.core.strip_protocol(name))
    real = Path(os.path.realpath(path)) if path.is_symlink() else Path(_real_folder(str(path.parent)), path.name)
    return not any(real.is_relative_to(folder) for folder in _allowed_folders(fsspec.core.strip_protocol(root)))


@lru_cache(maxsize=10_000)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


@lru_cache(maxsize=100)
def _allowed_folders(root: str) -> tuple[str, ...]:
    """Return the folders in which files that are named below `root` may be, links followed."""
    real = os.path.realpath(root)
    for parent in Path(real).parents:
        if parent.name == SNAPSHOTS and (parent.parent / BLOBS).is_dir():
            return real, str(parent.parent / BLOBS)
    return (real,)
