"""Where the data is, and how it is read and packed into steps."""

from collections import Counter
from typing import Literal, get_args

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from janus_dist.config.base import Config, Fault, refuse
from janus_dist.config.mix import Lane
from janus_dist.config.paths import LocalPath, PathOrUrl
from janus_dist.config.streams import STREAMS, Stream


class ChatConfig(Config):
    """The conversation format: `ROLE: message` with separators (`sft_format "deepseek"` of deepseek-ai/Janus)."""

    user: str = "User"
    """`<|User|>` for Janus-Pro."""
    assistant: str = "Assistant"
    """`<|Assistant|>` for Janus-Pro."""
    system_prompt: str = ""
    """Put before understanding conversations, followed by an empty line; nothing when empty."""
    image_end: Literal["none", "end_of_image", "end_of_sentence"] = "none"
    """What follows the last VQ id of an image in training, where the text head learns it. Neither paper says, and
    sampling ends with that id anyway."""


class ReadConfig(Config):
    """How shards are read, on local disk and from S3."""

    cache_dir: LocalPath | None = None
    """Folder on a local disk of each node for a cache that its ranks share; none: every rank reads from the store."""
    cache_gib: PositiveFloat = 50.0
    """Disk space that the cache of a node takes at most, in GiB."""
    ahead_mib: PositiveInt = 1024
    """Host memory of a rank for batches that are read ahead of the step."""


class DataConfig(Config):
    """The prepared data that training reads."""

    root: PathOrUrl
    """Folder with one shard set per stream: `ROOT/{understanding,text,generation}/manifest.json`."""
    tokenizer: LocalPath
    """A `tokenizer.json` file with Janus's special tokens."""
    vq_weights: LocalPath
    """Safetensors of the VQ tokenizer."""
    sources: dict[Stream, dict[str, PathOrUrl]] = Field(default={})
    """Streams of several shard sets: `generation: {imagenet: s3://..., captions: s3://...}`, weighted by `mix.sources`.
    A stream that is not named here has one source of its own name in `ROOT/STREAM`."""
    validation_root: PathOrUrl | None = None
    """Folder with held-out shard sets, laid out as `root` is; not every stream must be there."""
    max_bad_share: float = Field(default=0.001, ge=0.0, le=1.0)
    """Training stops when more than this share of the samples read was damaged; each is replaced by a placeholder."""
    read: ReadConfig = ReadConfig()
    chat: ChatConfig = ChatConfig()

    @property
    def lanes(self) -> dict[Lane, str]:
        """The folder of every source, streams in the order of STREAMS."""
        return {
            Lane(stream, name): folder
            for stream in STREAMS
            for name, folder in self.sources.get(stream, {stream: f"{self.root}/{stream}"}).items()
        }

    @model_validator(mode="after")
    def _names(self) -> "DataConfig":
        counts = Counter(lane.source for lane in self.lanes)
        faults = [
            Fault((f"sources.{stream}",), f"sources.{stream} is empty; leave it out")
            for stream, found in self.sources.items()
            if not found
        ]
        faults += [
            Fault(("sources",), f"sources: {name!r} is there {number} times")
            for name, number in counts.items()
            if number > 1
        ]
        refuse(faults)
        return self


Costly = Literal["token", "token_squared", "image", "text_label", "image_label"]
COSTLY: tuple[Costly, ...] = get_args(Costly)


class BatchConfig(Config):
    """One optimizer step: `rows` rows of at most `row_tokens` tokens, packed from all streams."""

    rows: int = Field(ge=1, le=1_000_000)
    """Rows of a step over all ranks; with `mix.unit: samples` as many as they need."""
    row_tokens: PositiveInt
    """Tokens that a row holds; no document with an image may be longer."""
    micro_rows: PositiveInt = 1
    """Rows that one rank takes in one micro-step."""
    packing: Literal["whole", "split_text"] = "whole"
    """`whole`: documents stay whole, so rows are not quite full. `split_text`: text is cut where a row ends."""
    fill: float | None = Field(default=None, gt=0.0, le=1.0)
    """Share of `rows * row_tokens` that a step's quota asks for. When absent: 0.97 with `whole`, with `split_text` all
    but what the longest samples could be too many, and without text what documents of the mean length would fill."""
    samples: int | None = Field(default=None, ge=6)
    """Samples in a step; only with `mix.unit: samples`, where a step takes as many rows as they need."""
    cfg_drop: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of generation samples whose prompt is replaced by pad tokens (for guidance; Janus, footnote 2)."""
    cost: dict[Costly, NonNegativeFloat] = Field(default={}, validate_default=True)
    """What a row costs a rank, in any unit, so that ranks of a micro-step get rows of nearly the same cost: per `token`
    (1 when absent), per squared length of a document (`token_squared`), per `image` that the vision tower sees, per
    `text_label` and `image_label` (0 when absent). `jobs/cost.py` measures it on the machine at hand."""

    @field_validator("cost")
    @classmethod
    def _cost_of_everything(cls, given: dict[Costly, float]) -> dict[Costly, float]:
        return {name: given.get(name, 1.0 if name == "token" else 0.0) for name in COSTLY}
