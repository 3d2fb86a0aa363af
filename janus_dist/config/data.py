"""Where the data is, and how it is read and packed into steps."""

from collections import Counter
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from janus_dist.config.base import Config, refuse
from janus_dist.config.mix import STREAMS, Lane, Stream


class ChatConfig(Config):
    """The conversation format: `ROLE: message` with separators (`sft_format "deepseek"` of deepseek-ai/Janus)."""

    user: str = "User"
    """`<|User|>` for Janus-Pro."""
    assistant: str = "Assistant"
    """`<|Assistant|>` for Janus-Pro."""
    system_prompt: str = ""
    """Put before understanding conversations, followed by an empty line; nothing when empty."""


class ReadConfig(Config):
    """How shards are read, on local disk and from S3."""

    cache_dir: str | None = None
    """Folder on a local disk of each node for a cache that its ranks share; none: every rank reads from the store."""
    cache_gib: PositiveFloat = 50.0
    """Disk space that the cache of a node takes at most, in GiB."""
    coalesce_gap_bytes: NonNegativeInt = 262_144
    """Samples of a shard that lie closer together than this are read by one request; 256 KiB take 5 ms to send."""
    threads: PositiveInt = 16
    """Requests that one rank has under way at once."""
    timeout_s: PositiveFloat = 15.0
    """Seconds without an answer after which a request has failed."""
    attempts: PositiveInt = 10
    """Attempts at a request before the run stops; ten last about 50 seconds and what `timeout_s` adds."""
    ahead_mib: PositiveInt = 1024
    """Host memory of a rank for batches that are read ahead of the step."""


class DataConfig(Config):
    """The prepared data that training reads."""

    root: str
    """Folder with one shard set per stream: `ROOT/{understanding,text,generation}/manifest.json`."""
    tokenizer: str
    """A `tokenizer.json` file with Janus's special tokens."""
    vq_weights: str
    """Safetensors of the VQ tokenizer."""
    sources: dict[Stream, dict[str, str]] = Field(default={})
    """Streams of several shard sets: `generation: {imagenet: s3://..., captions: s3://...}`, weighted by `mix.sources`.
    A stream that is not named here has one source of its own name in `ROOT/STREAM`."""
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
        faults = [f"sources.{stream} is empty; leave it out" for stream, found in self.sources.items() if not found]
        faults += [f"sources: {name!r} is there {number} times" for name, number in counts.items() if number > 1]
        refuse(faults)
        return self


class CostConfig(Config):
    """What a row costs a rank, in any unit: ranks of a micro-step get rows of nearly the same cost. `jobs/cost.py`
    measures it on the machine at hand."""

    token: NonNegativeFloat = 1.0
    token_squared: NonNegativeFloat = 0.0
    """Per squared length of a document: attention."""
    image: NonNegativeFloat = 0.0
    """Per image that the vision tower sees."""
    text_label: NonNegativeFloat = 0.0
    image_label: NonNegativeFloat = 0.0


class BatchConfig(Config):
    """One optimizer step: `rows` rows of at most `row_tokens` tokens, packed from all streams."""

    rows: PositiveInt
    row_tokens: PositiveInt
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
    cost: CostConfig = CostConfig()
