"""What the pipelines read, which of it they keep, and how they cut it into shards."""

import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveInt, field_validator, model_validator

from janus_dist.config.base import Config, Fault, refuse
from janus_dist.config.paths import PathOrUrl, PathRule, PlainName
from janus_dist.config.streams import SPECS, STREAMS, Column, Stream

Format = Literal["webdataset", "parquet", "jsonl", "folders", "easy-vqa", "pydoc", "scenes"]
BUILT_IN: tuple[Format, ...] = ("easy-vqa", "pydoc", "scenes")
"""Formats without a path: they come with Python packages or are made by a rule."""
STREAMS_WITHOUT_IMAGES = [name for name, spec in SPECS.items() if not spec.has_images]
COLUMNS: Mapping[Format, tuple[Column, ...]] = {
    "webdataset": ("image", "caption", "text", "turns"),
    "parquet": get_args(Column),
    "jsonl": get_args(Column),
}
"""What `columns` may name, by format."""


class Keep(Config):
    """A rule on one value of a record; a record without the value is dropped too."""

    min: float | datetime | None = None
    """The least that is kept: a number, or a date as 2024-05-31 or 2024-05-31T12:00:00 (UTC where no zone is given)."""
    max: float | datetime | None = None
    """The most, a number or a date."""
    one_of: tuple[str | float | bool, ...] = ()
    """Only these values; any when empty."""

    @field_validator("min", "max", mode="before")
    @classmethod
    def _bound(cls, value: Any) -> Any:
        """Convert a text to a number or to a time stamp with a zone."""
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
            raise ValueError(f"{value!r} is neither a number nor a date as 2024-05-31")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Keep":
        faults: list[Fault] = []
        texts = [value for value in self.one_of if isinstance(value, str)]
        if texts and len(texts) < len(self.one_of) and any(isinstance(value, bool) for value in self.one_of):
            written = [str(value).lower() if isinstance(value, bool) else str(value) for value in self.one_of]
            faults.append(
                Fault(
                    ("one_of",),
                    f"one_of={list(self.one_of)} mixes truth values with texts; YAML reads true and false without "
                    f"quotes as truth values: write {written} for texts",
                )
            )
        kinds = {type(bound) for bound in (self.min, self.max) if bound is not None}
        if datetime in kinds and len(kinds) > 1:
            faults.append(
                Fault(
                    ("min", "max"), f"min={self.min} and max={self.max} are a number and a date; give two of one kind"
                )
            )
        refuse(faults)
        return self


class InputConfig(Config):
    """One source of one stream as it was found; its shards go to `data.root/NAME`."""

    stream: Stream | None = None
    """Taken from the input's name when that is a stream's."""
    format: Format
    """`webdataset`: tar files of images with captions (img2dataset). `parquet`: images as bytes or paths, conversations
    or texts. `jsonl`: one record a line, plain, .gz or .zst; images are paths or base64. `folders`: a folder of
    images for each class. `easy-vqa`: the training split of the Python package of that name. `pydoc`: Python's own help
    texts. `scenes`: the training split of coloured shapes made by a rule (docs/scenes.md)."""
    path: Annotated[str | tuple[str, ...], PathRule(is_store_allowed=True)] = ()
    """Files, folders or patterns (`s3://bucket/laion/*.tar`); a folder stands for all files of the format below it."""
    images: PathOrUrl | None = None
    """Folder that images named by their paths are below; the folder of the file that names them when absent."""
    columns: dict[Column, str] = Field(default={})
    """Names of columns, keys or (webdataset) member endings, where they are not those of the format's tools; with
    `key`, records have the keys of that column, which must differ in the whole input; with `image`, other images of a
    record are left out."""
    class_names: PathOrUrl | None = None
    """File that names the folders of `folders`: JSON `{folder: name}`, `{folder: [number, name]}` or `{number: [folder,
    name]}`, or lines `folder name, other name`."""
    layout: Literal["chat", "plain"] = "chat"
    """How an understanding sample reads: `chat` with roles (a caption answers "Describe the image in detail.");
    `plain`, images and text as they stand, of a conversation its only answer."""
    first_sentence_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of captions of which only the first sentence is used (0.25 in Janus, section 4)."""
    crop: Literal["center", "random"] = "center"
    """Where an image to draw is cropped to a square; at random by its key, so the same in every run. The papers do not
    say where."""
    where: dict[str, Keep] = Field(default={})
    """Records to keep, by `width`, `height`, `aspect` (long side over short) of each image, `caption_chars` (of a
    conversation: of all turns), `text_chars` (text stream), or any other column."""


class PipelineConfig(Config):
    """What `jobs/prepare.py` reads and how it cuts it."""

    inputs: dict[PlainName, InputConfig] = Field(default={})
    """Sources by name; one named like a stream is found by training without `data.sources`."""
    shard_samples: PositiveInt = 1_000
    """Samples in one shard, at most."""
    text_document_tokens: int = Field(default=2_048, ge=2)
    """Longer documents are cut into samples of at most this many tokens."""
    jpeg_quality: int | None = Field(default=95, ge=1, le=100)
    """Of the crops that understanding shards hold; lossless PNG when null."""
    max_image_pixels: PositiveInt = Field(default=178_956_970, le=178_956_970)
    """Larger images are quarantined before they are decoded; Pillow's own limit for decompression bombs at most. A job
    needs up to 20 bytes of memory a pixel (WebP)."""
    max_bad_share: float = Field(default=0.01, ge=0.0, le=1.0)
    """The run fails when more than this share of the records was quarantined."""
    encode_batch: PositiveInt = 64
    """Images that the VQ tokenizer encodes at once."""

    @property
    def streams(self) -> dict[str, Stream]:
        """The stream of each input."""
        return {name: of.stream or _stream(name) for name, of in self.inputs.items()}

    @model_validator(mode="after")
    def _known(self) -> "PipelineConfig":
        faults: list[Fault] = []
        for name, found in self.inputs.items():
            if found.stream is None and name not in STREAMS:
                faults.append(
                    Fault(
                        (f"inputs.{name}.stream",),
                        f"inputs.{name}.stream is required, since {name!r} is none of {', '.join(STREAMS)}",
                    )
                )
            if found.format not in BUILT_IN and not found.path:
                faults.append(
                    Fault(
                        (f"inputs.{name}.path", f"inputs.{name}.format"),
                        f"inputs.{name}.path is required with format={found.format}",
                    )
                )
            for column in sorted(set(found.columns) - set(COLUMNS.get(found.format, ()))):
                faults.append(
                    Fault(
                        (f"inputs.{name}.columns.{column}", f"inputs.{name}.format"),
                        f"inputs.{name}.columns.{column} has no use with format={found.format}",
                    )
                )
            if found.class_names is not None and found.format != "folders":
                faults.append(
                    Fault(
                        (f"inputs.{name}.class_names", f"inputs.{name}.format"),
                        f"inputs.{name}.class_names has no use with format={found.format}",
                    )
                )
            if found.format == "folders" and found.stream is not None and not SPECS[found.stream].draws_images:
                faults.append(
                    Fault(
                        (f"inputs.{name}.format", f"inputs.{name}.stream"),
                        f"inputs.{name}.format=folders makes the generation stream only",
                    )
                )
            if found.format == "webdataset" and (found.stream or name) in STREAMS_WITHOUT_IMAGES:
                faults.append(
                    Fault(
                        (f"inputs.{name}.format", f"inputs.{name}.stream"),
                        f"inputs.{name}.format=webdataset does not make the text stream",
                    )
                )
        refuse(faults)
        return self


def _stream(name: str) -> Stream:
    return next(stream for stream in STREAMS if stream == name)
