"""Every format of inputs, by its name: what can be cut into units, and the records of a unit."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import ModuleType

from data_pipelines.inputs import built_in, folders, jsonl, parquet, tar
from data_pipelines.inputs.columns import partition_columns
from data_pipelines.inputs.pictures import leads_out
from data_pipelines.inputs.versions import with_versions
from data_pipelines.record import Record, Unit
from janus_dist.config.pipeline import BUILT_IN, Format, InputConfig
from janus_dist.data import storage
from janus_dist.data.inspect import Reject

MODULES: Mapping[Format, ModuleType] = {
    "webdataset": tar,
    "parquet": parquet,
    "jsonl": jsonl,
    "folders": folders,
    "easy-vqa": built_in,
    "pydoc": built_in,
    "scenes": built_in,
}


def units(of: InputConfig, shard_samples: int) -> list[Unit]:
    """The units of an input, in their fixed order, each about `shard_samples` records where the format lets it be cut,
    with the versions of the files that they are cut from.

    DataError when there is nothing, or what is there is not of the format.
    """
    return with_versions(of, MODULES[of.format].units(of, shard_samples))


def records(of: InputConfig, unit: Unit) -> Iterator[Record | Reject]:
    """The records of a unit, in their order, and a Reject for what is none. OSError when its file cannot be reached."""
    entries = MODULES[of.format].records(of, unit)
    partition = partition_columns(unit.path) if of.where else {}
    if partition:
        entries = (_with_columns(entry, partition) for entry in entries)
    if of.format not in BUILT_IN and storage.is_local(unit.path) and leads_out(unit.path, unit.path.rpartition("/")[0]):
        # a link to a file of another kind: none of its bytes are kept for people to look at
        entries = (replace(entry, head=b"") if isinstance(entry, Reject) else entry for entry in entries)
    return entries


def _with_columns(entry: Record | Reject, columns: Mapping[str, str]) -> Record | Reject:
    """Return an entry with further columns, unless it has them itself."""
    return replace(entry, columns={**columns, **entry.columns}) if isinstance(entry, Record) else entry
