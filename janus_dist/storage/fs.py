"""Files that are whole or absent, on a local disk or in an object store (`s3://`, by fsspec).

Invariant: whoever reads a name that `write_whole` wrote sees all of its bytes or no file. A disk does that by
`local_files`; an object store shows an object only when its upload is complete.
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

# Boto asks for a node's role once and for a second, which one of a thousand ranks that start together may miss.
os.environ.setdefault("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "5")

FAILURES = (OSError, BotoCoreError, ClientError, aiohttp.ClientError)
"""How a disk or a store says that it does not do what it is asked to."""
QUICK = {"connect_timeout": 5, "read_timeout": 10, "retries": {"max_attempts": 1}}
"""Limits of a store's client, in seconds, for small requests whose answer is worthless when it comes late."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Errors of a file system that has no hard links."""
NO_CONDITIONS = (errno.ENOSYS, errno.EINVAL, errno.EPERM)
"""Errors that a store's refusal of a request header becomes (501, 400, 405)."""
SECOND_LOOK_S = 3.0
"""Seconds between a write and the look whether another writer's content has replaced it: longer than a PUT takes."""


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


def _connect(path: str | Path, quick: bool) -> tuple[Any, str]:
    """Return the file system of a path and the path in it; `quick`: with a client of its own that waits for seconds,
    not minutes."""
    options = {"config_kwargs": QUICK} if quick and str(path).startswith(("s3://", "s3a://")) else {}
    return fsspec.core.url_to_fs(str(path), **options)


def write_whole(path: str | Path, content: bytes, quick: bool = False) -> None:
    """Write a file that is whole or absent, whatever happens meanwhile; its folder is made."""
    files, name = _connect(path, quick)
    if not isinstance(files, LocalFileSystem):
        files.pipe_file(name, content)
        return
    local.write_whole(Path(name), content)


def write_over(path: str | Path, content: bytes) -> None:
    """Write a small file whose content has always the same length: on a disk in place, by one call, which needs no room
    once the file exists; its folder is made. A store is asked by a client that waits for seconds."""
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
    """Write a file like `write_whole` unless there is one of that name; of several writers exactly one gets True.

    By a hard link on disks (an exclusive open where the file system has no links), by a conditional PUT
    (`If-None-Match: *`) in S3. With `conditional=False`, for a store that ignores the condition
    (`honours_conditions`), by a second look after SECOND_LOOK_S: `content` must then differ between writers.
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
    time.sleep(SECOND_LOOK_S)
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
    """Return whether of several writers of a name in a folder exactly one can win, by trying: some stores accept a
    conditional PUT and overwrite all the same. Raises what the store raises when it cannot be reached."""
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
    """Return what tells a file from another of the same name: its size and modification time, in a store size and ETag.

    FileNotFoundError when there is none. `fresh=False`: a listing that was just made will do, without a request.
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
    # times are left out where there is an ETag: a listing has milliseconds, the answer for one object has seconds
    mark = next((f"{key} {entry[key]}" for key in ("ETag", "etag", "mtime", "LastModified") if entry.get(key)), "")
    return f"{entry.get('size')} bytes, {mark}".removesuffix(", ")


def read(path: str | Path, quick: bool = False) -> bytes:
    """All bytes of a file; FileNotFoundError when there is none."""
    files, name = _connect(path, quick)
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
    return _sizes(folder, quick=False)


def _sizes(folder: str | Path, quick: bool) -> dict[str, int]:
    files, name = _connect(folder, quick)
    files.invalidate_cache()
    try:
        found = {
            entry["name"].rstrip("/").rsplit("/", 1)[-1]: int(entry["size"] or 0)
            for entry in files.ls(name, detail=True)
        }
    except FileNotFoundError:
        return {}
    return dict(sorted(found.items()))


def names(folder: str | Path, quick: bool = False) -> list[str]:
    """Names of the files directly in a folder, sorted; none when there is no such folder."""
    return list(_sizes(folder, quick))


def remove(path: str | Path, quick: bool = False) -> None:
    """Remove one file."""
    files, name = _connect(path, quick)
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
