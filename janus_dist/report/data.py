"""HTML page about shard sets: one self-contained file that needs no network.

Invariant: figures on the page are counts from an index, a manifest, a marker or the quarantine table; figures from a
random choice of samples are marked as such.
"""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from janus_dist.config.streams import SPECS
from janus_dist.data.manifest import ShardSet
from janus_dist.data.sample import JPEG, GenerationSample, UnderstandingSample
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.inspection.inspect import (
    COUNTED,
    Example,
    LocatedSample,
    Reject,
    chosen,
    columns,
    decoded,
    examples,
    read_samples,
    refused,
    stats,
    summary,
)
from janus_dist.inspection.render import Piece, head, pieces
from janus_dist.report import plot
from janus_dist.report.page import render
from janus_dist.storage import fs

SHOWN_REJECTS = 5
"""Largest number of rejects shown for each kind of reason."""
SHOWN_EXAMPLES = 12
"""Largest number of samples shown for each rule that drops samples, and of reconstructions."""
DRAWN_IMAGES = 512
"""Number of randomly chosen images whose VQ ids are counted."""
MAX_IMAGE_BYTES = 40_000
"""Size above which an image is converted to JPEG for the page."""
MEASURED = {
    "width": "width, pixels",
    "height": "height, pixels",
    "aspect": "long side over short side",
    "caption_chars": "caption, characters",
    "text_chars": "text, characters",
}
"""Label of the x axis of each histogram in the pipeline's statistics."""
Paint = Callable[[Sequence[np.ndarray]], list[bytes]]
"""Function that decodes the VQ ids of images, [ids] integers each, to PNG bytes."""


@dataclass(frozen=True)
class Card:
    """One sample on the page."""

    key: str
    place: str
    images: list[str]
    """Images as data URLs."""
    pieces: list[Piece]


@dataclass(frozen=True)
class RejectedKind:
    """Samples quarantined for one kind of reason."""

    kind: str
    count: int
    shown: list[tuple[Reject, str]]
    """(reject, its first bytes as readable text)."""


@dataclass(frozen=True)
class DroppedCount:
    """Samples dropped by one rule of the recipe."""

    rule: str
    count: int
    shown: list[tuple[Example, str]]
    """(example, data URL of its image; empty without an image)."""


@dataclass(frozen=True)
class SetView:
    """Content of the page about one shard set."""

    values: dict[str, Any]
    """Figures of `inspect.summary`."""
    funnel: list[tuple[str, int, str]]
    """(label, count, CSS class of the bar), from the records read to the samples to train on."""
    refused: list[RejectedKind]
    dropped: list[DroppedCount]
    ignored: list[tuple[str, str, int]]
    """(key of the source, reason why its values were not used, number of records)."""
    reconstructions: list[tuple[str, str, str]]
    """(key, data URL of a crop, data URL of its reconstruction from VQ ids)."""
    plots: list[tuple[str, str]]
    """(title, SVG)."""
    notes: list[tuple[str, str]]
    """(name, value) of figures that need no plot."""
    cards: list[Card]


def write_data_report(
    title: str,
    opened: Sequence[tuple[ShardSet, Tokenizer]],
    out: str,
    cards: int,
    seed: int,
    paint: Paint | None = None,
) -> str:
    """Write the page about shard sets, each with its tokenizer, to `out` (local or s3://) and return `out`.

    It shows `cards` randomly chosen samples of each, determined by `seed`; with `paint` also the images of VQ ids.
    """
    views = [view(shards, tokenizer, cards, seed, paint) for shards, tokenizer in opened]
    page = render("data.html.j2", title=title.rstrip("/").rsplit("/", 1)[-1], folder=title, sets=views)
    fs.write_whole(out, page.encode())
    return out


def view(shards: ShardSet, tokenizer: Tokenizer, cards: int, seed: int, paint: Paint | None) -> SetView:
    """Return figures, plots and samples of one shard set."""
    manifest = shards.manifest
    by_kind, rejects = refused(shards.folder, SHOWN_REJECTS)
    table = columns(shards, *COUNTED)
    statistics, dropped = stats(shards.folder) or {}, examples(shards.folder)
    plots, notes = _plots(shards, table, seed)
    plots += _record_plots(statistics, manifest.stream)
    samples = list(read_samples(shards, chosen(manifest.samples, cards, seed)))
    return SetView(
        summary(shards, table),
        list(_funnel(shards, by_kind, statistics)),
        list(_refused(by_kind, rejects)),
        list(_dropped(statistics, dropped)),
        _ignored(manifest.ignored),
        [] if paint is None else _reconstructions(dropped, paint),
        plots,
        [*notes, *health(shards)],
        [_card(sample, tokenizer, manifest.image_tokens, paint) for sample in samples],
    )


def _funnel(shards: ShardSet, by_kind: dict[str, int], statistics: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Yield (label, count, CSS class of the bar) from the records read to the samples to train on."""
    manifest, records = shards.manifest, statistics.get("records")
    if records is not None:
        yield "records read", records, "all"
    for kind, count in by_kind.items():
        yield f"quarantined: {kind}", count, "bad"
    without_reason = manifest.quarantined - sum(by_kind.values())
    if without_reason > 0:
        yield "quarantined, reasons not kept", without_reason, "bad"
    dropped = statistics.get("dropped", {})
    for rule, count in sorted(dropped.items(), key=lambda pair: -pair[1]):
        yield f"dropped by rule: {rule}", count, "bad"
    kept = None if records is None else records - manifest.quarantined - sum(dropped.values())
    if kept is not None and kept != manifest.samples:
        yield "records kept", kept, "good"
        yield "samples, long texts cut into several", manifest.samples, "good"
    else:
        yield "samples", manifest.samples, "good"


def _dropped(statistics: dict[str, Any], dropped: list[Example]) -> Iterator[DroppedCount]:
    """Yield the dropped samples of each rule, the rule with the most of them first."""
    for rule, count in sorted(statistics.get("dropped", {}).items(), key=lambda pair: -pair[1]):
        shown = [example for example in dropped if example.rule == rule][:SHOWN_EXAMPLES]
        images = [_data_url(example.image) if example.image else "" for example in shown]
        yield DroppedCount(rule, count, list(zip(shown, images, strict=True)))


def _ignored(counts: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str, int]]:
    rows = [(key, reason, count) for key, reasons in counts.items() for reason, count in reasons.items()]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def _reconstructions(examples: list[Example], paint: Paint) -> list[tuple[str, str, str]]:
    """Return (key, data URL of a crop, data URL of its reconstruction) of the examples with VQ ids."""
    shown = [example for example in examples if example.vq_ids][:SHOWN_EXAMPLES]
    images = paint([np.array(example.vq_ids) for example in shown])
    return [
        (example.key, _data_url(example.image), _data_url(image)) for example, image in zip(shown, images, strict=True)
    ]


def _record_plots(statistics: dict[str, Any], stream: str) -> list[tuple[str, str]]:
    """Return (title, SVG) of the histograms that the pipeline measured on records, before it made samples of them."""
    plots = []
    for name, label in MEASURED.items():
        bins = {float(edge): count for edge, count in statistics.get("histograms", {}).get(name, {}).items()}
        if len(bins) > 1:
            plots.append((f"{label} of a record", plot.binned(bins, label, stream)))
    return plots


def health(shards: ShardSet) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of figures from a listing of the folder; `janus data lint` checks the files' content."""
    table = shards.manifest.shards
    if not len(table):
        return
    sizes = fs.sizes(shards.folder)
    entries = list(table)
    complete = sum(
        sizes.get(f"{shard.name}.tar") == shard.bytes and f"{shard.name}.index.npy" in sizes for shard in entries
    )
    yield "shards with the right size and an index", f"{complete:,} of {len(entries):,}"
    strays = {name for name in sizes if name.endswith(".tar")} - {f"{shard.name}.tar" for shard in entries}
    if strays:
        yield "tars that belong to no shard", f"{len(strays):,}"
    low, high = int(table.samples.min()), int(table.samples.max())
    yield "samples per shard", f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _refused(by_kind: dict[str, int], rejects: list[Reject]) -> Iterator[RejectedKind]:
    for kind, count in by_kind.items():
        shown = [reject for reject in rejects if reject.kind == kind]
        yield RejectedKind(kind, count, [(reject, head(reject.head)) for reject in shown])


def _plots(
    shards: ShardSet, table: dict[str, NDArray[Any]], seed: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return (title, SVG) of the histograms, and (name, value) of figures that are the same in every sample."""
    plots: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    stream, tokens = shards.manifest.stream, table["tokens"]
    if not len(tokens):
        return plots, notes
    for name, values in (
        ("tokens", tokens),
        ("images", table["images"]),
        ("VQ ids", table["image_ids"]),
    ):
        if values.min() == values.max():
            notes += [(f"{name} in each sample", f"{int(values[0]):,}")] if values[0] else []
        else:
            plots.append((f"{name} in a sample", plot.histogram(values, name, stream)))
    if SPECS[stream].reads_images:
        share = table["answer_labels"] / tokens
        plots.append(
            ("answers: share of a sample's tokens", plot.histogram(share, "share of tokens", stream, percent=True))
        )
    if SPECS[stream].draws_images:
        used, images = _code_use(shards, seed)
        share = used / used.sum()
        entropy = float(-(share * np.log2(share)).sum())
        plots.append(
            (f"VQ ids of {images:,} drawn images", plot.ranked(used, "id, the most frequent first", "times", stream))
        )
        notes.append((f"different VQ ids in {images:,} drawn images", f"{len(used):,}"))
        codes = shards.manifest.settings.get("vq_codes")
        if codes:
            notes.append(("codes that none of them uses", f"{codes - len(used):,} of {codes:,}"))
        notes.append(("entropy of their ids", f"{entropy:.2f} bits" + (f" of {np.log2(codes):.2f}" if codes else "")))
    return plots, notes


def _code_use(shards: ShardSet, seed: int) -> tuple[NDArray[np.int64], int]:
    """Return (number of uses of each VQ id in use: [ids] int64, number of images counted)."""
    samples = decoded(shards, chosen(shards.manifest.samples, DRAWN_IMAGES, seed))
    vq_ids = [sample.vq_ids for sample in samples if isinstance(sample, GenerationSample)]
    return np.unique(np.concatenate(vq_ids), return_counts=True)[1], len(vq_ids)


def _card(drawn: LocatedSample, tokenizer: Tokenizer, image_tokens: int, paint: Paint | None) -> Card:
    sample, images = drawn.sample, []
    if isinstance(sample, UnderstandingSample):
        images = sample.images
    elif isinstance(sample, GenerationSample) and paint is not None:
        images = paint([sample.vq_ids])
    place = f"sample {drawn.number} in {drawn.shard}, {int(drawn.record['tokens']):,} tokens"
    return Card(drawn.key, place, [_data_url(image) for image in images], pieces(sample, tokenizer, image_tokens))


def _data_url(encoded: bytes) -> str:
    kind = "jpeg" if encoded.startswith(JPEG) else "png"
    if len(encoded) > MAX_IMAGE_BYTES:
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(encoded)) as image:
            image.convert("RGB").save(buffer, "JPEG", quality=85)
        kind, encoded = "jpeg", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
