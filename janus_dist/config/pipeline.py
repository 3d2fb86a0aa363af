"""Settings of the data pipelines: their inputs, the records to keep, and the shards to write."""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveInt, field_validator, model_validator

from janus_dist.config.base import Config, SettingFault, refuse
from janus_dist.config.paths import PathOrUrl, PathRule, PlainName
from janus_dist.config.streams import SPECS, STREAMS, Column, Stream

Format = Literal["webdataset", "parquet", "jsonl", "folders", "easy-vqa", "pydoc", "scenes"]
BUILT_IN: tuple[Format, ...] = ("easy-vqa", "pydoc", "scenes")
"""Formats without a path: they come with Python packages or are generated."""
STREAMS_WITHOUT_IMAGES = [name for name, spec in SPECS.items() if not spec.has_images]
COLUMNS: Mapping[Format, tuple[Column, ...]] = {
    "webdataset": ("image", "caption", "text", "turns"),
    "parquet": get_args(Column),
    "jsonl": get_args(Column),
}
"""Keys that `columns` may have, by format."""


class KeepRule(Config):
    """Rule on one value of a record; a record without the value is dropped too."""

    min: float | datetime | None = None
    """Smallest value that is kept: a number, or a date such as 2024-05-31 or 2024-05-31T12:00:00 (UTC if it has no
    time zone)."""
    max: float | datetime | None = None
    """Largest value that is kept: a number or a date, written like `min`."""
    one_of: tuple[str | float | bool, ...] = ()
    """Values that are kept; empty: all."""

    @field_validator("min", "max", mode="before")
    @classmethod
    def _bound(cls, value: Any) -> Any:
        """Convert a text to a number or to a date with a time zone. Raises ValueError if it is neither."""
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                with suppress(ValueError):
                    value = datetime.fromisoformat(value)
        if isinstance(value, date):
            value = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{value!r} is neither a number nor a date such as 2024-05-31")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "KeepRule":
        faults: list[SettingFault] = []
        texts = [value for value in self.one_of if isinstance(value, str)]
        if texts and len(texts) < len(self.one_of) and any(isinstance(value, bool) for value in self.one_of):
            written = [str(value).lower() if isinstance(value, bool) else str(value) for value in self.one_of]
            faults.append(
                SettingFault(
                    ("one_of",),
                    f"one_of={list(self.one_of)} mixes booleans with texts; YAML reads true and false without "
                    f"quotes as booleans: write {written} for texts",
                )
            )
        kinds = {type(bound) for bound in (self.min, self.max) if bound is not None}
        if datetime in kinds and len(kinds) > 1:
            faults.append(
                SettingFault(
                    ("min", "max"),
                    f"min={self.min} and max={self.max} are a number and a date; give two numbers or two dates",
                )
            )
        refuse(faults)
        return self


class InputConfig(Config):
    """One source of one stream in its original format; its shards are written to `data.root/NAME`."""

    stream: Stream | None = None
    """Stream that the input is prepared for; may be left out if the input has the name of a stream."""
    format: Format
    """Format of the input. `webdataset`: tar files of images with captions (img2dataset). `parquet`: images as bytes or
    paths, conversations or texts. `jsonl`: one record a line, plain, .gz or .zst; images are paths or base64.
    `folders`: a folder of images for each class. `easy-vqa`: the training split of the Python package of that name.
    `pydoc`: Python's own help texts. `scenes`: the training split of generated coloured shapes (docs/scenes.md)."""
    path: Annotated[str | tuple[str, ...], PathRule(is_store_allowed=True)] = ()
    """Files, folders or patterns (`s3://bucket/laion/*.tar`); a folder means all files of the format below it."""
    images: PathOrUrl | None = None
    """Folder to which the paths of images are relative; when absent, the folder of the file that names them."""
    columns: dict[Column, str] = Field(default={})
    """Names of columns, keys or (webdataset) file endings, if they differ from those of the format's tools. With `key`,
    records take their keys from that column, whose values must be unique in the whole input; with `image`, other images
    of a record are left out."""
    class_names: PathOrUrl | None = None
    """File with the class names of `folders`: JSON `{folder: name}`, `{folder: [number, name]}` or `{number: [folder,
    name]}`, or lines `folder name, other name`."""
    layout: Literal["chat", "plain"] = "chat"
    """Text of an understanding sample. `chat`: a conversation with roles (a caption answers "Describe the image in
    detail."). `plain`: images and text without roles; of a conversation, its only answer."""
    first_sentence_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of captions of which only the first sentence is used (0.25 in Janus, section 4)."""
    crop: Literal["center", "random"] = "center"
    """Position of the square crop of an image to generate; `random` depends on the image's key, so it is the same in
    every run. The papers do not specify it."""
    where: dict[str, KeepRule] = Field(default={})
    """Records to keep, by `width`, `height`, `aspect` (long side over short side) of each image, `caption_chars`
    (characters of the caption, or of all turns of a conversation), `text_chars` (text stream), or any other column."""


class PipelineConfig(Config):
    """Inputs of `jobs/prepare.py` and how it cuts them into samples and shards."""

    inputs: dict[PlainName, InputConfig] = Field(default={})
    """Sources by name; training finds a source that has the name of a stream without `data.sources`."""
    shard_samples: PositiveInt = 1_000
    """Largest number of samples in one shard."""
    text_document_tokens: int = Field(default=2_048, ge=2)
    """Largest number of tokens in a text sample; longer documents are cut into several samples."""
    jpeg_quality: int | None = Field(default=95, ge=1, le=100)
    """JPEG quality of the crops in understanding shards; null: lossless PNG."""
    max_image_pixels: PositiveInt = Field(default=178_956_970, le=178_956_970)
    """Largest number of pixels of an image; larger images are quarantined before they are decoded. The upper bound is
    Pillow's own limit for decompression bombs. A job needs up to 20 bytes of memory per pixel (WebP)."""
    max_bad_share: float = Field(default=0.01, ge=0.0, le=1.0)
    """Largest share of quarantined records; the job fails when more were quarantined."""
    encode_batch: PositiveInt = 64
    """Images in one batch of the VQ tokenizer."""

    @property
    def streams(self) -> dict[str, Stream]:
        """Return the stream of each input, by the input's name."""
        return {name: source.stream or _stream(name) for name, source in self.inputs.items()}

    @model_validator(mode="after")
    def _consistent(self) -> "PipelineConfig":
        refuse(fault for name, source in self.inputs.items() for fault in _input_faults(name, source))
        return self


def _input_faults(name: str, source: InputConfig) -> Iterator[SettingFault]:
    """Yield the faults of one input; paths are relative to the section `pipeline`."""
    key, form = f"inputs.{name}", f"format={source.format}"
    format_key = f"{key}.format"
    if source.stream is None and name not in STREAMS:
        message = f"{key}.stream is required, because {name!r} is not one of {', '.join(STREAMS)}"
        yield SettingFault((f"{key}.stream",), message)
    if source.format not in BUILT_IN and not source.path:
        yield SettingFault((f"{key}.path", format_key), f"{key}.path is required with {form}")
    for column in sorted(set(source.columns) - set(COLUMNS.get(source.format, ()))):
        yield SettingFault((f"{key}.columns.{column}", format_key), f"{key}.columns.{column} has no effect with {form}")
    if source.class_names is not None and source.format != "folders":
        yield SettingFault((f"{key}.class_names", format_key), f"{key}.class_names has no effect with {form}")
    if source.format == "folders" and source.stream is not None and not SPECS[source.stream].draws_images:
        yield SettingFault((format_key, f"{key}.stream"), f"{key}.{form} makes the generation stream only")
    if source.format == "webdataset" and (source.stream or name) in STREAMS_WITHOUT_IMAGES:
        yield SettingFault((format_key, f"{key}.stream"), f"{key}.{form} does not make the text stream")


def _stream(name: str) -> Stream:
    return next(stream for stream in STREAMS if stream == name)
