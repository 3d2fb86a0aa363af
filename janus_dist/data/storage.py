"""Files that are whole or absent, on a local disk or in an object store (`s3://`, by fsspec).

Invariant: whoever reads a name that `write_whole` wrote sees all of its bytes or no file. Locally that takes a
temporary name, fsync and rename; an object store shows an object only when its upload is complete.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
import fsspec
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.implementations.local import LocalFileSystem

from janus_dist.errors import DataError, JanusError

# Boto asks for a node's role once and for a second, which one of a thousand ranks that start together may miss.
os.environ.setdefault("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "5")

FAILURES = (OSError, BotoCoreError, ClientError, aiohttp.ClientError)
"""How a disk or a store says that it does not do what it is asked to."""


@contextmanager
def reached(where: str | Path, failure: type[JanusError] = DataError) -> Iterator[None]:
    """What a disk or a store answers other than with what is asked for, as `failure`; that a file is not there is an
    answer."""
    try:
        yield
    except FileNotFoundError:
        raise
    except FAILURES as error:
        raise failure(
            f"{where} cannot be reached: {' '.join(f'{type(error).__name__}: {error}'.split())}",
            "see that the disk or the store is there and lets this user in (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...), "
            "then run the same command again",
        ) from error


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file that is whole or absent, whatever happens meanwhile; its folder is made."""
    files, name = fsspec.core.url_to_fs(str(path))
    if not isinstance(files, LocalFileSystem):
        files.pipe_file(name, content)
        return
    with _written(Path(name), content) as temporary:
        temporary.replace(name)


def create(path: str | Path, content: bytes) -> bool:
    """Write a file like `write_whole` unless there is one of that name; of several writers exactly one gets True.

    By a hard link on disks, by a conditional PUT (`If-None-Match: *`) in S3.
    """
    files, name = fsspec.core.url_to_fs(str(path))
    try:
        if not isinstance(files, LocalFileSystem):
            files.pipe_file(name, content, mode="create")
            return True
        with _written(Path(name), content) as temporary:
            os.link(temporary, name)
    except FileExistsError:
        return False
    return True


@contextmanager
def _written(final: Path, content: bytes) -> Iterator[Path]:
    """Content on the disk under a name of its own beside `final`, gone afterwards."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")  # two processes may write the same name
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | Path) -> bytes:
    """All bytes of a file; FileNotFoundError when there is none."""
    files, name = fsspec.core.url_to_fs(str(path))
    return files.cat_file(name)


def size(path: str | Path) -> int | None:
    """Bytes of a file, None when there is none; what a store remembers of its listings is not trusted."""
    files, name = fsspec.core.url_to_fs(str(path))
    files.invalidate_cache()
    try:
        return int(files.size(name))
    except FileNotFoundError:
        return None


def sizes(folder: str | Path) -> dict[str, int]:
    """Bytes of the files directly in a folder by their names, sorted; none when there is no such folder.

    One request for a thousand objects.
    """
    files, name = fsspec.core.url_to_fs(str(folder))
    files.invalidate_cache()
    try:
        found = {
            entry["name"].rstrip("/").rsplit("/", 1)[-1]: int(entry["size"] or 0)
            for entry in files.ls(name, detail=True)
        }
    except FileNotFoundError:
        return {}
    return dict(sorted(found.items()))


def names(folder: str | Path) -> list[str]:
    """Names of the files directly in a folder, sorted; none when there is no such folder."""
    return list(sizes(folder))


def remove(path: str | Path) -> None:
    """Remove one file."""
    files, name = fsspec.core.url_to_fs(str(path))
    files.rm_file(name)


def remove_folder(path: str | Path) -> None:
    """Remove a folder and what is in it, if it is there; a store removes a thousand objects by one request."""
    files, name = fsspec.core.url_to_fs(str(path))
    if isinstance(files, LocalFileSystem):
        with suppress(FileNotFoundError):
            shutil.rmtree(name)
        return
    files.invalidate_cache()
    with suppress(FileNotFoundError):
        files.rm(name, recursive=True)


def rename(path: str | Path, new_path: str | Path) -> None:
    """Give a file another name; a store copies it."""
    files, name = fsspec.core.url_to_fs(str(path))
    files.mv(name, fsspec.core.strip_protocol(str(new_path)))


def is_local(path: str | Path) -> bool:
    """Whether a file or folder is on a disk (or a shared file system), not in a store."""
    return isinstance(fsspec.core.url_to_fs(str(path))[0], LocalFileSystem)


def open_binary(path: str | Path, ahead_bytes: int | None = None) -> Any:
    """A file to read from, as a context manager; a store is asked for `ahead_bytes` more than what is read, with 0 for
    exactly that, without it for what fsspec thinks right."""
    files, name = fsspec.core.url_to_fs(str(path))
    if ahead_bytes is None or isinstance(files, LocalFileSystem):
        return files.open(name, "rb")
    ahead: dict[str, Any] = (
        {"cache_type": "readahead", "block_size": ahead_bytes} if ahead_bytes else {"cache_type": "none"}
    )
    return files.open(name, "rb", **ahead)


def open_new(path: str | Path, part_bytes: int) -> BinaryIO:
    """A file to write from its beginning to its end, as a context manager; a store takes it in parts of a size."""
    files, name = fsspec.core.url_to_fs(str(path))
    return (
        Path(name).open("wb") if isinstance(files, LocalFileSystem) else files.open(name, "wb", block_size=part_bytes)
    )
