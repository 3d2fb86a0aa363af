"""Files that are complete or absent, on a local disk or in an object store (`s3://`, by fsspec).

Invariant: a reader of a name that `write_whole` wrote sees all of its bytes or no file. On a disk `local` ensures that;
an object store shows an object only when its upload is complete.
"""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
import fsspec
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.implementations.local import LocalFileSystem

from janus_dist.errors import DataError, JanusError
from janus_dist.storage import local

# By default Boto asks once for a node's role and waits a second, too little when a thousand ranks start together.
os.environ.setdefault("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "5")

FAILURES = (OSError, BotoCoreError, ClientError, aiohttp.ClientError)
"""Exceptions of a disk or a store that cannot serve a request."""
QUICK = {"connect_timeout": 5, "read_timeout": 10, "retries": {"max_attempts": 1}}
"""Limits of a store's client, in seconds, for small requests whose answer is useless when it arrives late."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Error numbers of a file system without hard links."""
NO_CONDITIONS = (errno.ENOSYS, errno.EINVAL, errno.EPERM)
"""Error numbers for a store's refusal of a request header (HTTP 501, 400, 405)."""
CONFLICT_CHECK_DELAY_S = 3.0
"""Seconds between a write and the check whether another writer has replaced its content: longer than a PUT takes."""


@contextmanager
def reached(where: str | Path, failure: type[JanusError] = DataError) -> Iterator[None]:
    """Raise `failure` in place of any error of a disk or a store inside the block; let FileNotFoundError pass."""
    try:
        yield
    except FileNotFoundError:
        raise
    except FAILURES as error:
        raise failure(
            f"{where} cannot be reached: {' '.join(f'{type(error).__name__}: {error}'.split())}",
            "check that the disk or the store is available and that this user has access (AWS_ACCESS_KEY_ID, "
            "AWS_ENDPOINT_URL, ...), then run the same command again",
        ) from error


def _connect(path: str | Path, quick: bool) -> tuple[Any, str]:
    """Return the file system of a path and the path in it; with `quick`, a client that waits seconds, not minutes."""
    options = {"config_kwargs": QUICK} if quick and str(path).startswith(("s3://", "s3a://")) else {}
    return fsspec.core.url_to_fs(str(path), **options)


def write_whole(path: str | Path, content: bytes, quick: bool = False) -> None:
    """Write a file that is complete or absent even when the write is interrupted; its folder is created."""
    files, name = _connect(path, quick)
    if not isinstance(files, LocalFileSystem):
        files.pipe_file(name, content)
        return
    local.write_whole(Path(name), content)


def write_over(path: str | Path, content: bytes) -> None:
    """Write a small file whose content always has the same length; its folder is created.

    A disk overwrites it in place by one call, which needs no free space once the file exists. In a store a client that
    waits seconds, not minutes, replaces the object.
    """
    files, name = _connect(path, quick=True)
    if not isinstance(files, LocalFileSystem):
        files.pipe_file(name, content)
        return
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(file, content)
    finally:
        os.close(file)


def create(path: str | Path, content: bytes, conditional: bool = True, quick: bool = False) -> bool:
    """Write a file like `write_whole` unless the name exists; return True to exactly one of several writers.

    Disks use a hard link (an exclusive open where the file system has no links), S3 a conditional PUT
    (`If-None-Match: *`). With `conditional=False`, for a store that ignores the condition (`honours_conditions`), a
    second read after CONFLICT_CHECK_DELAY_S decides: `content` must then differ between writers.
    """
    files, name = _connect(path, quick)
    if isinstance(files, LocalFileSystem):
        return _create_on_disk(Path(name), content)
    if conditional:
        try:
            files.pipe_file(name, content, mode="create")
        except FileExistsError:
            return False
        return True
    files.invalidate_cache()
    if files.exists(name):
        return False
    files.pipe_file(name, content)
    time.sleep(CONFLICT_CHECK_DELAY_S)
    return files.cat_file(name) == content


def _create_on_disk(final: Path, content: bytes) -> bool:
    try:
        with local.temporary_file(final, content) as temporary:
            try:
                os.link(temporary, final)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                with final.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def honours_conditions(folder: str | Path) -> bool:
    """Return whether a conditional write in a folder works, by a trial: some stores accept the condition but overwrite.

    Raises the store's own error when it cannot be reached.
    """
    if is_local(folder):
        return True
    probe = f"{folder}/probe-{uuid.uuid4().hex}"
    try:
        create(probe, b"1")
        return not create(probe, b"2")
    except OSError as error:
        if error.errno not in NO_CONDITIONS:
            raise
        return False
    finally:
        with suppress(*FAILURES):
            remove(probe)


def version(path: str | Path, fresh: bool = True) -> str:
    """Return a text that differs between files of one name: size and modification time, in a store size and ETag.

    Raises FileNotFoundError. `fresh=False` uses a listing that was just made instead of a new request.
    """
    files, name = fsspec.core.url_to_fs(str(path))
    if isinstance(files, LocalFileSystem):
        status = Path(name).stat()
        seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
        modified = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{nanoseconds:09d} UTC"
        return f"{status.st_size} bytes, modified {modified}"
    if fresh:
        files.invalidate_cache()
    entry = files.info(name)
    # no times next to an ETag: a listing has milliseconds, the answer for one object has seconds
    mark = next((f"{key} {entry[key]}" for key in ("ETag", "etag", "mtime", "LastModified") if entry.get(key)), "")
    return f"{entry.get('size')} bytes, {mark}".removesuffix(", ")


def read(path: str | Path, quick: bool = False) -> bytes:
    """Return all bytes of a file; raise FileNotFoundError when it does not exist."""
    files, name = _connect(path, quick)
    return files.cat_file(name)


def size(path: str | Path) -> int | None:
    """Return the bytes of a file, or None when it does not exist; cached listings of a store are not used."""
    files, name = fsspec.core.url_to_fs(str(path))
    files.invalidate_cache()
    try:
        return int(files.size(name))
    except FileNotFoundError:
        return None


def sizes(folder: str | Path) -> dict[str, int]:
    """Return the bytes of the files directly in a folder by name, sorted; empty when the folder does not exist.

    A store needs one request per thousand objects.
    """
    return _sizes(folder, quick=False)


def _sizes(folder: str | Path, quick: bool) -> dict[str, int]:
    files, name = _connect(folder, quick)
    files.invalidate_cache()
    try:
        by_name = {
            entry["name"].rstrip("/").rsplit("/", 1)[-1]: int(entry["size"] or 0)
            for entry in files.ls(name, detail=True)
        }
    except FileNotFoundError:
        return {}
    return dict(sorted(by_name.items()))


def names(folder: str | Path, quick: bool = False) -> list[str]:
    """Return the names of the files directly in a folder, sorted; empty when the folder does not exist."""
    return list(_sizes(folder, quick))


def remove(path: str | Path, quick: bool = False) -> None:
    """Remove one file."""
    files, name = _connect(path, quick)
    files.rm_file(name)


def remove_folder(path: str | Path) -> None:
    """Remove a folder and its contents, if it exists; a store removes a thousand objects per request."""
    files, name = fsspec.core.url_to_fs(str(path))
    if isinstance(files, LocalFileSystem):
        with suppress(FileNotFoundError):
            shutil.rmtree(name)
        return
    files.invalidate_cache()
    with suppress(FileNotFoundError):
        files.rm(name, recursive=True)


def rename(path: str | Path, new_path: str | Path) -> None:
    """Rename a file; a store copies it."""
    files, name = fsspec.core.url_to_fs(str(path))
    files.mv(name, fsspec.core.strip_protocol(str(new_path)))


def is_local(path: str | Path) -> bool:
    """Return whether a file or folder is on a disk (or a shared file system), not in a store."""
    return isinstance(fsspec.core.url_to_fs(str(path))[0], LocalFileSystem)


def open_binary(path: str | Path, ahead_bytes: int | None = None) -> Any:
    """Return a file to read from, as a context manager.

    A store reads `ahead_bytes` beyond each read, 0 for none; None leaves it to fsspec.
    """
    files, name = fsspec.core.url_to_fs(str(path))
    if ahead_bytes is None or isinstance(files, LocalFileSystem):
        return files.open(name, "rb")
    ahead: dict[str, Any] = (
        {"cache_type": "readahead", "block_size": ahead_bytes} if ahead_bytes else {"cache_type": "none"}
    )
    return files.open(name, "rb", **ahead)


def open_new(path: str | Path, part_bytes: int) -> BinaryIO:
    """Return a file to write sequentially, as a context manager; a store uploads it in parts of `part_bytes`."""
    files, name = fsspec.core.url_to_fs(str(path))
    return (
        Path(name).open("wb") if isinstance(files, LocalFileSystem) else files.open(name, "wb", block_size=part_bytes)
    )
