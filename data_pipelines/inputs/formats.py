"""Every format of inputs, by its name: what can be cut into units, and the records of a unit."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import ModuleType

from data_pipelines.inputs import built_in, folders, jsonl, parquet, tar
from data_pipelines.inputs.columns import partition_columns
from data_pipelines.inputs.versions import with_versions
from data_pipelines.record import Record, Unit
from janus_dist.config.pipeline import Format, InputConfig
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
    partition = partition_columns(unit.path)
    if not partition or not of.where:
        return entries
    return (
        replace(entry, columns={**partition, **entry.columns}) if isinstance(entry, Record) else entry
        for entry in entries
    )
