"""Explanation of inputs whose records nearly all fail: what the reader looks for, what the records hold, and
the setting that would read them.

Invariant: the explanation is only a message; it is empty when the cause is unknown.
"""

import difflib
import shlex
from collections.abc import Mapping, Sequence

from data_pipelines.inputs.contents import BYTES, CONVERSATION, IMAGE, TEXT, contents
from data_pipelines.inputs.entries import NAMES
from data_pipelines.job import InputWork
from data_pipelines.record import Unit
from janus_dist.config.pipeline import COLUMNS, Column, InputConfig
from janus_dist.config.streams import SPECS, Stream

NEARLY_ALL = 0.9
"""Least share of records failing for one reason that is explained."""
SHOWN_NAMES = 12
"""Names of values that a message lists."""
KINDS: Mapping[Column, tuple[str, ...]] = {
    "image": (IMAGE, BYTES),
    "caption": (TEXT, "list of text"),
    "text": (TEXT,),
    "turns": (CONVERSATION,),
}
"""Kinds of values that fit a column."""
FOLDER_OF_IMAGES = ("missing", "unsafe link", "unsafe name")
"""Kinds of reasons that setting another folder of images may resolve."""


def explain(input_work: InputWork, units: Sequence[Unit], bad: Mapping[str, int], records: int) -> str:
    """Return in words what the reader looks for, what the records hold, and the setting that would read them.

    The result is empty unless nearly all of the `records` fail for one kind of reason. `bad`: failed records by kind of
    reason.
    """
    kind = max(bad, key=lambda name: bad[name], default="")
    if not kind or bad[kind] < NEARLY_ALL * records:
        return ""
    summary = f"nearly all records ({bad[kind]:,} of {records:,}) fail as {kind!r}"
    if kind in FOLDER_OF_IMAGES:
        folder = input_work.source.images or "the folder of the file that names them"
        return f"{summary}: paths of images are looked for below {folder}; set pipeline.inputs.{input_work.name}.images"
    names = contents(input_work.source, units)
    if not names:
        return summary
    shown_names = ", ".join(f"{name} ({what})" for name, what in list(names.items())[:SHOWN_NAMES])
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    columns = suggested_columns(input_work.source, input_work.stream, names)
    setting = ", ".join(f"{column}: {name}" for column, name in columns.items())
    override = shlex.quote(f"pipeline.inputs.{input_work.name}.columns={{{setting}}}")
    suggestion = f"; {override} would read them" if columns else ""
    search = _described_search(input_work.source, input_work.stream)
    return f"{summary}: {search}; the records hold {shown_names}{more}{suggestion}"


def suggested_columns(config: InputConfig, stream: Stream, names: Mapping[str, str]) -> dict[Column, str]:
    """Return the names that may hold the columns that a stream needs and does not find, by the kind of their values.

    Of several names of a kind the one most similar to a usual name is suggested, else the first.
    """
    if config.format not in COLUMNS:
        return {}
    absent = _absent_columns(config, stream, names)
    used = {name for column in COLUMNS[config.format] if column not in absent for name in _usual_names(config, column)}
    columns: dict[Column, str] = {}
    for column in absent:
        taken_names = {*used, *columns.values()}
        fitting = [name for name, kind in names.items() if kind in KINDS[column] and name not in taken_names]
        closest = [name for usual in NAMES[column] for name in difflib.get_close_matches(usual, fitting, 1)]
        if fitting and not (column == "caption" and "turns" in columns):
            columns[column] = (closest or fitting)[0]
    return columns


def _absent_columns(config: InputConfig, stream: Stream, names: Mapping[str, str]) -> list[Column]:
    """Return the columns that a stream needs and that none of the names provides."""
    needed: list[Column] = [column for column in SPECS[stream].columns if column in COLUMNS[config.format]]
    absent: list[Column] = [column for column in needed if not names.keys() & set(_usual_names(config, column))]
    has_words = bool({"turns", "caption"} & (set(needed) - set(absent)))
    if stream == "understanding" and has_words:
        absent = [column for column in absent if column == "image"]
    has_image_members = config.format == "webdataset" and "image" not in config.columns and IMAGE in names.values()
    return [column for column in absent if not (has_image_members and column == "image")]


def _usual_names(config: InputConfig, column: Column) -> tuple[str, ...]:
    """Return the names under which a column is looked for."""
    configured = config.columns.get(column)
    if configured is not None:
        return (configured,)
    return (
        (*NAMES.get(column, ()), "txt")
        if config.format == "webdataset" and column == "caption"
        else NAMES.get(column, ())
    )


def _described_search(config: InputConfig, stream: Stream) -> str:
    """Return in words where a reader looks for the columns that a stream needs."""
    parts = []
    for column in SPECS[stream].columns:
        if column in COLUMNS.get(config.format, ()):
            is_ending = config.format == "webdataset" and column == "image" and "image" not in config.columns
            where = "members with an image's ending" if is_ending else " or ".join(_usual_names(config, column))
            parts.append(f"{column} in {where}")
    return f"format={config.format} looks for {', '.join(parts)}" if parts else f"format={config.format}"
