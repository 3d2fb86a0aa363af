"""Files of a checkpoint, as torch.distributed.checkpoint writes and reads them, on a disk or in an object store.

Invariants: size and checksum of a file are computed from the bytes passed to it while it is written, because reading it
again would take as long as writing it, and would come from the page cache rather than the disk. Reading never executes
code from a file: tensors are read with `weights_only`, their description with an allowlist of types.
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

from janus_dist.checkpoint.commits import DamagedCheckpointError
from janus_dist.storage import fs

METADATA = ".metadata"
PART_BYTES = 64 << 20
"""Bytes of each part of a multipart upload. S3 accepts 10,000 parts, so a rank's file may have 640 GB. A rank holds one
part in memory."""
READ_BYTES = 16 << 20
"""Bytes read ahead in a file."""
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
"""Allowlist of the types (module, name) with which torch describes stored tensors."""


class HashedWriter(FileSystemWriter):
    """Writes one file per rank, and on rank 0 also `.metadata`; `written` describes the files of this rank."""

    def __init__(self, path: str):
        super().__init__(path, sync_files=fs.is_local(path))
        self.fs = Files()
        self.path = path

    @property
    def written(self) -> dict[str, dict[str, Any]]:
        """Return bytes and sha256 of the written files by name."""
        return self.fs.written

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's file without CRC-32."""
        set_crc32_options(False)  # for this thread; the sha256 covers every byte already
        return super().write_data(plan, planner)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return True, because torch's own check refuses URLs."""
        return True


class StoredReader(FileSystemReader):
    """Reads each file sequentially, and the metadata only once, because it describes the pieces of every tensor on
    every rank that wrote the checkpoint. Set `ahead_bytes` to 0 to read only a few pieces of a file."""

    def __init__(self, path: str, ahead_bytes: int = READ_BYTES):
        super().__init__(path)
        self.fs = Files(ahead_bytes)
        self.path = path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return True, because torch's own check refuses URLs."""
        return True

    @cached_property
    def _metadata(self) -> Metadata:
        with fs.open_binary(f"{self.path}/{METADATA}", READ_BYTES) as file:
            metadata = _MetadataUnpickler(io.BytesIO(file.read())).load()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return the stored tensors and the locations of their pieces.

        Raises DamagedCheckpointError when the metadata contains types other than METADATA_TYPES.
        """
        return self._metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan with this rank's reads sorted by file and offset."""

        def location(item: ReadItem) -> tuple[str, int]:
            info = self.storage_data[item.storage_index]
            return info.relative_path, info.offset

        return replace(plan, items=sorted(plan.items, key=location))

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        """Return a stored piece, read at once: torch reads its end first, which would be three requests to a store."""
        file.seek(sinfo.offset)
        return io.BytesIO(file.read(sinfo.length))


class Files(FileSystemBase):
    """Local files and objects of a store, which are hashed while they are written."""

    def __init__(self, ahead_bytes: int = READ_BYTES) -> None:
        self.ahead_bytes = ahead_bytes
        self.written: dict[str, dict[str, Any]] = {}
        """Bytes and sha256 of the written files by name."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        """Open a file to write to (`mode` with "w") or to read from."""
        if "w" not in mode:
            with fs.open_binary(str(path), self.ahead_bytes) as stream:
                yield stream
            return
        with fs.open_new(str(path), PART_BYTES) as stream:
            hashed = _Hashed(stream)
            yield hashed
        self.written[_name(path)] = {"bytes": hashed.bytes, "sha256": hashed.digest.hexdigest()}

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Rename a written file."""
        fs.rename(str(path), str(new_path))
        self.written[_name(new_path)] = self.written.pop(_name(path))

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        """Return the path of `suffix` in a folder."""
        return f"{path}/{suffix}"

    def init_path(self, path: str | os.PathLike[str]) -> str:
        """Return a path as a string."""
        return str(path)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Create a folder; a store needs none."""
        if fs.is_local(str(path)):
            Path(path).mkdir(parents=True, exist_ok=True)

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Return whether a file exists."""
        return fs.size(str(path)) is not None

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        """Delete a file."""
        fs.remove(str(path))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return True, because torch's own check refuses URLs."""
        return True


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickler that only creates objects of METADATA_TYPES."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return a type of METADATA_TYPES. Raises DamagedCheckpointError for any other."""
        if (module_name, global_name) not in METADATA_TYPES:
            raise DamagedCheckpointError(
                f"{METADATA} names {module_name}.{global_name}, which is not a type that describes tensors",
                "the file may be an attempt to run code; only use checkpoints from sources that you trust",
            )
        return super().find_class(module_name, global_name)


class _Hashed(io.RawIOBase):
    """Sequential file that is hashed while it is written."""

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
        self.stream.flush()  # torch calls fileno() to sync the file, which must include buffered bytes
        return self.stream.fileno()

    def flush(self) -> None:
        self.stream.flush()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        self.stream.flush()


def _name(path: str | os.PathLike[str]) -> str:
    """Return the last part of a path."""
    return str(path).rsplit("/", 1)[-1]
