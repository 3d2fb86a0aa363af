"""Where the data is, how the pipelines make it, how streams are mixed and packed into steps."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from janus_dist.config.base import Config

Stream = Literal["understanding", "text", "generation"]
STREAMS: tuple[Stream, ...] = ("understanding", "text", "generation")


class ChatConfig(Config):
    """The conversation format: `ROLE: message` with separators (`sft_format "deepseek"` of deepseek-ai/Janus)."""

    user: str = "User"
    """`<|User|>` for Janus-Pro."""
    assistant: str = "Assistant"
    """`<|Assistant|>` for Janus-Pro."""
    system_prompt: str = ""
    """Put before understanding conversations, followed by an empty line; nothing when empty."""


class DataConfig(Config):
    """The prepared data that training reads."""

    root: str
    """Folder with one shard set per stream: `ROOT/{understanding,text,generation}/manifest.json`."""
    tokenizer: str
    """A `tokenizer.json` file with Janus's special tokens."""
    vq_weights: str
    """Safetensors of the VQ tokenizer."""
    chat: ChatConfig = ChatConfig()


class PipelineConfig(Config):
    """What `jobs/tokenize.py` reads and how it cuts it."""

    source: Literal["easy-vqa"] = "easy-vqa"
    """`easy-vqa`: the data set of the Python package of that name, its training split."""
    shard_samples: PositiveInt = 1_000
    """Samples in one shard, which is also one unit of work."""
    text_document_tokens: PositiveInt = 2_048
    """Longer documents are cut into pieces of at most this many tokens."""
    min_image_side: PositiveInt = 14
    """Images with a shorter side are quarantined."""
    max_image_aspect: float = Field(default=8.0, ge=1.0)
    """Images longer than this many times their short side are quarantined."""
    max_image_pixels: PositiveInt = 178_956_970
    """Larger images are quarantined before they are decoded (Pillow's own limit for decompression bombs)."""
    max_bad_share: float = Field(default=0.01, ge=0.0, le=1.0)
    """The run fails when more than this share of the samples was quarantined."""
    encode_batch: PositiveInt = 64
    """Images that the VQ tokenizer encodes at once."""


class MixConfig(Config):
    """How much of each stream a step takes."""

    unit: Literal["tokens", "samples"] = "tokens"
    """What the ratio counts."""
    understanding: NonNegativeFloat
    text: NonNegativeFloat
    generation: NonNegativeFloat

    @property
    def shares(self) -> dict[Stream, float]:
        """The ratio as shares that add up to 1, in the order of `STREAMS`."""
        weights: dict[Stream, float] = {name: getattr(self, name) for name in STREAMS}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    @model_validator(mode="after")
    def _some(self) -> "MixConfig":
        if not any(getattr(self, name) for name in STREAMS):
            raise ValueError("all three ratios are 0; give at least one stream a share")
        return self


class BatchConfig(Config):
    """One optimizer step: `rows` rows of at most `row_tokens` tokens, packed from all streams."""

    rows: PositiveInt
    row_tokens: PositiveInt
    micro_rows: PositiveInt = 1
    """Rows that one rank takes in one micro-step."""
    fill: float = Field(default=0.97, gt=0.0, le=1.0)
    """Share of `rows * row_tokens` that a step's quota asks for; what is left is room for whole documents."""
    samples: int | None = Field(default=None, ge=6)
    """Samples in a step; only with `mix.unit: samples`, where a step takes as many rows as they need."""
    cfg_drop: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of generation samples whose prompt is replaced by pad tokens (for guidance; Janus, footnote 2)."""


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
