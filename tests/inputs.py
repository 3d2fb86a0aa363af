"""Readers as tests call them: an input from its settings to what all of its units hold."""

import io
import tarfile
from collections.abc import Iterable
from typing import Any

from data_pipelines.inputs import formats
from data_pipelines.record import Record
from janus_dist.config.pipeline import InputConfig
from janus_dist.inspection.inspect import Reject

ENDS = bytes(1024)
"""What a tar ends with."""


def source(form: str, path: Any = (), **values: Any) -> InputConfig:
    """Settings of an input; the stream plays no part in reading. fsspec's memory:// may stand for any store."""
    paths = tuple(str(each) for each in path) if isinstance(path, list) else str(path) if path else ()
    settings = InputConfig.model_validate({"format": form, "path": "any", "stream": "generation", **values})
    return settings.model_copy(update={"path": paths})


def entries(of: InputConfig, shard_samples: int = 1_000) -> list[Record | Reject]:
    """Everything in all units, in their order."""
    return [entry for unit in formats.units(of, shard_samples) for entry in formats.records(of, unit)]


def read(of: InputConfig, shard_samples: int = 1_000) -> tuple[list[Record], list[Reject]]:
    """Records and rejects."""
    found = entries(of, shard_samples)
    return [one for one in found if isinstance(one, Record)], [one for one in found if isinstance(one, Reject)]


def reasons(of: InputConfig) -> list[str]:
    """Why entries were rejected."""
    return [reject.reason for reject in read(of)[1]]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **values: Any) -> bytes:
    """A member of a tar: header, content and what fills its last block."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    for attribute, value in values.items():
        setattr(info, attribute, value)
    header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return header + content + bytes(-len(content) % 512)


def tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A whole tar, by Python's own writer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as opened:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
