"""Table of the formats of inputs: how each is cut into units, and how the records of a unit are read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from data_pipelines.inputs import built_in, folders, jsonl, parquet, tar
from data_pipelines.inputs.columns import partition_columns
from data_pipelines.inputs.pictures import leads_out
from data_pipelines.inputs.versions import with_versions
from data_pipelines.record import Record, Unit
from janus_dist.config.pipeline import BUILT_IN, Format, InputConfig
from janus_dist.inspection.inspect import Reject
from janus_dist.storage import fs


class InputFormat(Protocol):
    """A format of inputs."""

    def units(self, config: InputConfig, shard_samples: int, /) -> list[Unit]:
        """Return the units of an input in their fixed order; raises DataError when nothing of the format is found."""
        ...

    def records(self, config: InputConfig, unit: Unit, /) -> Iterator[Record | Reject]:
        """Yield the records of a unit in their order, and a Reject for each entry that is not a record."""
        ...


@dataclass(frozen=True)
class FormatReader:
    """An `InputFormat` that consists of two functions."""

    units: Callable[[InputConfig, int], list[Unit]]
    records: Callable[[InputConfig, Unit], Iterator[Record | Reject]]


BUILT_IN_READER = FormatReader(built_in.units, built_in.records)
FORMATS: Mapping[Format, InputFormat] = {
    "webdataset": FormatReader(tar.units, tar.records),
    "parquet": FormatReader(parquet.units, parquet.records),
    "jsonl": FormatReader(jsonl.units, jsonl.records),
    "folders": FormatReader(folders.units, folders.records),
    "easy-vqa": BUILT_IN_READER,
    "pydoc": BUILT_IN_READER,
    "scenes": BUILT_IN_READER,
}


def units(config: InputConfig, shard_samples: int) -> list[Unit]:
    """Return the units of an input in their fixed order, with the versions of their files.

    Units have about `shard_samples` records where the format can be cut. Raises DataError when the input has no files,
    or when they are not of the format.
    """
    return with_versions(config, FORMATS[config.format].units(config, shard_samples))


def records(config: InputConfig, unit: Unit) -> Iterator[Record | Reject]:
    """Yield the records of a unit in their order, and a Reject for each entry that is not a record.

    Raises OSError when a file cannot be reached.
    """
    entries = FORMATS[config.format].records(config, unit)
    partition = partition_columns(unit.path) if config.where else {}
    if partition:
        entries = (_with_columns(entry, partition) for entry in entries)
    if config.format not in BUILT_IN and fs.is_local(unit.path) and leads_out(unit.path, unit.path.rpartition("/")[0]):
        # a link to a file elsewhere: none of its bytes are kept for people to look at
        entries = (replace(entry, head=b"") if isinstance(entry, Reject) else entry for entry in entries)
    return entries


def _with_columns(entry: Record | Reject, columns: Mapping[str, str]) -> Record | Reject:
    """Return a record with further columns, but not those that it already has; rejects stay as they are."""
    return replace(entry, columns={**columns, **entry.columns}) if isinstance(entry, Record) else entry
