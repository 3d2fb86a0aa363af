"""Small shard sets with a real tokenizer, sound or with one thing wrong, for the tests of `janus data`."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from janus_dist.config.data import ChatConfig, Stream
from janus_dist.data.chat import generation_prompt_ids, text_ids, understanding_ids
from janus_dist.data.manifest import VERSION, Manifest, ShardSet, ShardTable
from janus_dist.data.sample import GenerationSample, Sample, TextSample, UnderstandingSample
from janus_dist.data.shard import write_shard
from janus_dist.data.tokenizer import Tokenizer, train_tokenizer
from tests import tiny
from tests.images import png

VOCAB = 300
IMAGE = png(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))


def tokenizer(folder: Path) -> Tokenizer:
    """`FOLDER/tokenizer.json`, trained when it is absent."""
    path = folder / "tokenizer.json"
    if not path.exists():
        train_tokenizer(["what color is it? blue, a circle"], VOCAB, path)
    return Tokenizer.load(path)


def text(words: Tokenizer, content: str = "one two three") -> TextSample:
    return TextSample(np.array(text_ids(words, content, 100)[0], dtype=np.uint32))


def understanding(words: Tokenizer, answer: str = "blue", image: bytes = IMAGE) -> UnderstandingSample:
    ids, spans = understanding_ids(words, ChatConfig(), [("what color?", answer)], 1)
    return UnderstandingSample(np.array(ids, dtype=np.uint32), np.array(spans, dtype=np.int64), [image])


def generation(words: Tokenizer, caption: str = "a circle", vq_ids: Any = None) -> GenerationSample:
    ids = np.arange(tiny.MODEL.image_ids) if vq_ids is None else vq_ids
    prompt = np.array(generation_prompt_ids(words, ChatConfig(), caption), dtype=np.uint32)
    return GenerationSample(prompt, np.asarray(ids, dtype=np.uint16))


MAKERS = {"text": text, "understanding": understanding, "generation": generation}


def all_records(shards: ShardSet) -> NDArray[np.void]:
    """The index records of all samples."""
    return shards.records(np.arange(len(shards.manifest.shards.block_tokens)))[1]


def several(stream: Stream, words: Tokenizer, number: int, first: int = 0) -> list[tuple[str, Sample]]:
    """(key, sample) pairs with keys `STREAM-00000` on, each of other content."""
    numbers = range(first, first + number)
    return [(f"{stream}-{one:05d}", MAKERS[stream](words, " ".join(["blue"] * (one + 1)))) for one in numbers]


def write_set(
    folder: Path | str, stream: Stream, words: Tokenizer, *shards: list[tuple[str, Sample]], **changes: Any
) -> Manifest:
    """Write a shard set and its manifest; `changes` are other values of the manifest."""
    special = (words.boi, words.image, words.eoi)
    entries = tuple(write_shard(folder, f"shard-{n:05d}", s, tiny.MODEL, special) for n, s in enumerate(shards))
    model = tiny.MODEL
    manifest = Manifest(
        VERSION, stream, sum(entry.samples for entry in entries), sum(entry.tokens for entry in entries), 0,
        model.image_size, model.image_tokens, model.image_ids, words.sha256,
        "0" * 64 if stream == "generation" else None, {"source": "a test", "shard_samples": 4}, ShardTable.of(entries),
    )  # fmt: skip
    manifest = dataclasses.replace(manifest, **changes)
    manifest.save(folder)
    return manifest


def write_quarantine(folder: Path, *rejects: tuple[str, str, str, bytes]) -> None:
    """A quarantine table of (source, key, reason, head)."""
    rows = [dict(zip(("source", "key", "reason", "head"), reject, strict=True)) for reject in rejects]
    columns = [("source", pa.string()), ("key", pa.string()), ("reason", pa.string()), ("head", pa.binary())]
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(columns)), content)
    (folder / "quarantine.parquet").write_bytes(content.getvalue())


def write_stats(folder: Path, records: int, **counted: dict) -> None:
    """What the pipeline counted."""
    (folder / "stats.json").write_text(json.dumps({"records": records, "dropped": {}, "histograms": {}} | counted))


def write_root(folder: Path) -> Tokenizer:
    """`FOLDER/tokenizer.json`, and in `FOLDER/data` 7 conversations and 5 prompts in two shards each, and 4 texts."""
    words, root = tokenizer(folder), folder / "data"
    write_set(
        root / "understanding", "understanding", words,
        several("understanding", words, 4), several("understanding", words, 3, first=4),
    )  # fmt: skip
    write_set(root / "text", "text", words, several("text", words, 4))
    generated = several("generation", words, 3), several("generation", words, 2, first=3)
    write_set(root / "generation", "generation", words, *generated, quarantined=3)
    rejects = [("a.png", "a", "too small: 5x5 pixels", b"\x89PNG\x00"), ("b.png", "b", "too small: 6x6 pixels", b"")]
    write_quarantine(root / "generation", *rejects, ("c.png", "c", "empty: no words", b"  "))
    write_stats(root / "generation", 8)
    return words


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(bytes(content))
