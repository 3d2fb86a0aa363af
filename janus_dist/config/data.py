"""Settings of the prepared data: its location, how it is read and how it is packed into steps."""

from collections import Counter
from typing import Literal, get_args

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from janus_dist.config.base import Config, SettingFault, refuse
from janus_dist.config.mix import Lane
from janus_dist.config.paths import LocalPath, PathOrUrl
from janus_dist.config.streams import STREAMS, Stream


class ChatConfig(Config):
    """The conversation format: `ROLE: message` with separators (`sft_format "deepseek"` of deepseek-ai/Janus)."""

    user: str = "User"
    """Name of the user's role; `<|User|>` for Janus-Pro."""
    assistant: str = "Assistant"
    """Name of the model's role; `<|Assistant|>` for Janus-Pro."""
    system_prompt: str = ""
    """Text before each understanding conversation, followed by an empty line; empty: no system prompt."""
    image_end: Literal["none", "end_of_image", "end_of_sentence"] = "none"
    """Token that follows the last VQ id of an image in training and that the text head learns. Neither paper specifies
    it, and sampling stops after the last VQ id in any case."""


class ReadConfig(Config):
    """Reading of shards from local disk and S3."""

    cache_dir: LocalPath | None = None
    """Folder on a local disk of each node for a cache that its ranks share; null: every rank reads from the store."""
    cache_gib: PositiveFloat = 50.0
    """Largest disk space of a node's cache, in GiB."""
    ahead_mib: PositiveInt = 1024
    """Host memory of a rank for batches that are read ahead of the current step, in MiB."""


class DataConfig(Config):
    """Prepared data that training reads."""

    root: PathOrUrl
    """Folder with one shard set per stream: `ROOT/{understanding,text,generation}/manifest.json`."""
    tokenizer: LocalPath
    """Path of a `tokenizer.json` file with Janus's special tokens."""
    vq_weights: LocalPath
    """Path of the VQ tokenizer's weights, a safetensors file."""
    sources: dict[Stream, dict[str, PathOrUrl]] = Field(default={})
    """Shard sets of streams that have several: `generation: {imagenet: s3://..., captions: s3://...}`, weighted by
    `mix.sources`. A stream that is not named here has one source, of the stream's name, in `ROOT/STREAM`."""
    validation_root: PathOrUrl | None = None
    """Folder with held-out shard sets, laid out like `root`; streams may be missing."""
    max_bad_share: float = Field(default=0.001, ge=0.0, le=1.0)
    """Largest share of damaged samples among those read; beyond it training stops. Each damaged sample is replaced by
    a placeholder."""
    read: ReadConfig = ReadConfig()
    chat: ChatConfig = ChatConfig()

    @property
    def lanes(self) -> dict[Lane, str]:
        """Return the folder of every source, with streams in the order of STREAMS."""
        return {
            Lane(stream, name): folder
            for stream in STREAMS
            for name, folder in self.sources.get(stream, {stream: f"{self.root}/{stream}"}).items()
        }

    @model_validator(mode="after")
    def _names(self) -> "DataConfig":
        counts = Counter(lane.source for lane in self.lanes)
        faults = [
            SettingFault((f"sources.{stream}",), f"sources.{stream} is empty; leave it out")
            for stream, folders in self.sources.items()
            if not folders
        ]
        faults += [
            SettingFault(("sources",), f"sources: {name!r} occurs {count} times")
            for name, count in counts.items()
            if count > 1
        ]
        refuse(faults)
        return self


Costly = Literal["token", "token_squared", "image", "text_label", "image_label"]
COSTLY: tuple[Costly, ...] = get_args(Costly)


class BatchConfig(Config):
    """One optimizer step: `rows` rows of at most `row_tokens` tokens, packed from all streams."""

    rows: int = Field(ge=1, le=1_000_000)
    """Rows of a step over all ranks; with `mix.unit: samples` a step has as many rows as its samples need."""
    row_tokens: PositiveInt
    """Largest number of tokens in a row; no document with an image may be longer."""
    micro_rows: PositiveInt = 1
    """Rows that one rank processes in one micro-step."""
    packing: Literal["whole", "split_text"] = "whole"
    """Packing of documents into rows. `whole`: documents stay whole, so rows are not quite full. `split_text`: text is
    cut where a row ends."""
    fill: float | None = Field(default=None, gt=0.0, le=1.0)
    """Share of `rows * row_tokens` that a step's quota fills. When absent: 0.97 with `whole`; with `split_text`
    everything except the tokens by which the longest samples could exceed it; without text the share that documents of
    the mean length fill."""
    samples: int | None = Field(default=None, ge=6)
    """Samples in a step; only with `mix.unit: samples`, where a step takes as many rows as they need."""
    cfg_drop: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of generation samples whose prompt is replaced by pad tokens, for classifier-free guidance (Janus,
    footnote 2)."""
    cost: dict[Costly, NonNegativeFloat] = Field(default={}, validate_default=True)
    """Cost of a row for a rank, in any unit, by which the ranks of a micro-step get rows of nearly equal cost: per
    `token` (1 when absent), per squared length of a document (`token_squared`), per `image` that the vision tower
    encodes, per `text_label` and `image_label` (0 when absent). `jobs/cost.py` measures the costs on your machine."""

    @field_validator("cost")
    @classmethod
    def _with_default_costs(cls, costs: dict[Costly, float]) -> dict[Costly, float]:
        return {name: costs.get(name, 1.0 if name == "token" else 0.0) for name in COSTLY}
