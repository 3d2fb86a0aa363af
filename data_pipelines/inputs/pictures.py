"""Bytes of the pictures that records name by their paths.

Invariant: on a disk, only regular files are opened, and none that a link leads to out of the folder that pictures of
the input are in; so no byte of another file of this machine reaches a shard or the quarantine table.
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
"""Of a picture."""
SNAPSHOTS, BLOBS = "snapshots", "blobs"
"""Folders of the Hugging Face cache: files of the former are links to those of the latter."""


def read_picture(picture: Picture) -> Picture:
    """Return a picture with its bytes.

    DataError when the file is not there, is not a regular one, is longer than LONGEST_FILE_BYTES, or lies outside
    `picture.root`. Other failures are the store's: they end the job. So does a permission that a store refuses: it does
    so for keys that ran out, too, and then for every picture.
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
    """Raise DataError when a file of a disk must not be opened; FileNotFoundError when it is not there."""
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
    """Tell whether a path of a disk, its links followed, is not below a folder, its links followed."""
    path = Path(fsspec.core.strip_protocol(name))
    real = Path(os.path.realpath(path)) if path.is_symlink() else Path(_real_folder(str(path.parent)), path.name)
    return not any(real.is_relative_to(folder) for folder in _allowed_folders(fsspec.core.strip_protocol(root)))


@lru_cache(maxsize=10_000)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


@lru_cache(maxsize=100)
def _allowed_folders(root: str) -> tuple[str, ...]:
    """Return the folders that files named below `root` may lie in."""
    real = os.path.realpath(root)
    for parent in Path(real).parents:
        if parent.name == SNAPSHOTS and (parent.parent / BLOBS).is_dir():
            return real, str(parent.parent / BLOBS)
    return (real,)
