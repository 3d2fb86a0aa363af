"""Files of a checkpoint, as torch.distributed.checkpoint writes and reads them, on a disk or in a store.

Invariants: bytes and checksum of a file are those of what was handed to it, taken while it is written: reading it again
would take as long as writing it, and would not see what the disk made of it meanwhile. Reading executes nothing that a
file says: tensors are read with `weights_only`, their description by a list of the types that it is made of.
"""

import hashlib
import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystemBase
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from torch.serialization import set_crc32_options

from janus_dist.checkpoint.commits import DamagedError
from janus_dist.storage import fs

METADATA = ".metadata"
PART_BYTES = 64 << 20
"""Of a multipart upload: S3 takes 10,000 parts, so a rank's file may have 640 GB. A rank holds one part in memory."""
READ_BYTES = 16 << 20
METADATA_TYPES = {
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_device"),
    ("torch.serialization", "_get_layout"),
    *(("torch", name) for name in ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool")),
    *(("torch.distributed.checkpoint.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}
"""What torch describes stored tensors with."""


class HashedWriter(FileSystemWriter):
    """Writes one file a rank, and from the first rank `.metadata`; `written` describes what this rank wrote."""

    def __init__(self, path: str):
        super().__init__(path, sync_files=fs.is_local(path))
        self.fs = Files()
        self.path = path

    @property
    def written(self) -> dict[str, dict[str, Any]]:
        """Bytes and sha256 by name of file."""
        return self.fs.written

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        set_crc32_options(False)  # of this thread; every byte is in the sha256 already
        return super().write_data(plan, planner)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class StoredReader(FileSystemReader):
    """Reads each file from its beginning on, and the metadata once: on many ranks it describes a piece of every tensor
    from each of them. Whoever wants a few pieces of a file, not most of it, sets `ahead_bytes` to 0."""

    def __init__(self, path: str, ahead_bytes: int = READ_BYTES):
        super().__init__(path)
        self.fs = Files(ahead_bytes)
        self.path = path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    @cached_property
    def _metadata(self) -> Metadata:
        with fs.open_binary(f"{self.path}/{METADATA}", READ_BYTES) as file:
            found = _MetadataUnpickler(io.BytesIO(file.read())).load()
        found.storage_meta.load_id = self.load_id
        return found

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """What is stored: every tensor, and where its pieces are. DamagedError when it is anything else."""
        return self._metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """What this rank reads, in the order of the files."""

        def place(item: ReadItem) -> tuple[str, int]:
            at = self.storage_data[item.storage_index]
            return at.relative_path, at.offset

        return replace(plan, items=sorted(plan.items, key=place))

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        """A stored piece, read at once: torch looks at its end first, and a store would be asked three times."""
        file.seek(sinfo.offset)
        return io.BytesIO(file.read(sinfo.length))


class Files(FileSystemBase):
    """Files of fsspec that are hashed while they are written."""

    def __init__(self, ahead_bytes: int = READ_BYTES) -> None:
        self.ahead_bytes = ahead_bytes
        self.written: dict[str, dict[str, Any]] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        """A file to write to or to read from."""
        if "w" not in mode:
            with fs.open_binary(str(path), self.ahead_bytes) as stream:
                yield stream
            return
        with fs.open_new(str(path), PART_BYTES) as stream:
            hashed = _Hashed(stream)
            yield hashed
        self.written[_name(path)] = {"bytes": hashed.bytes, "sha256": hashed.digest.hexdigest()}

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Give a file that was written another name."""
        fs.rename(str(path), str(new_path))
        self.written[_name(new_path)] = self.written.pop(_name(path))

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return f"{path}/{suffix}"

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return str(path)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        if fs.is_local(str(path)):
            Path(path).mkdir(parents=True, exist_ok=True)

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return fs.size(str(path)) is not None

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        fs.remove(str(path))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class _MetadataUnpickler(pickle.Unpickler):
    """Makes nothing but what torch describes tensors with."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in METADATA_TYPES:
            raise DamagedError(
                f"{METADATA} names {module_name}.{global_name}, which no description of tensors holds",
                "it may have been made to run code here; take checkpoints only from where you trust",
            )
        return super().find_class(module_name, global_name)


class _Hashed(io.RawIOBase):
    """A file that is written from its beginning to its end."""

    def __init__(self, stream: Any):
        self.stream, self.digest, self.bytes = stream, hashlib.sha256(), 0

    def write(self, content: Any) -> int:
        with memoryview(content) as view:
            self.digest.update(view)
            self.bytes += view.nbytes
            self.stream.write(view)
            return view.nbytes

    def tell(self) -> int:
        return self.bytes

    def fileno(self) -> int:
        self.stream.flush()  # torch asks for it to sync the file, what is still in a buffer too
        return self.stream.fileno()

    def flush(self) -> None:
        self.stream.flush()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        self.stream.flush()


def _name(path: str | os.PathLike[str]) -> str:
    return str(path).rsplit("/", 1)[-1]
