"""The page about shard sets: one HTML file that needs nothing else, not even a network.

Invariant: a figure on the page is counted in an index, a manifest, a marker or the quarantine table; what comes from
drawn samples says so.
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
    Found,
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
"""Of each kind of reason."""
SHOWN_EXAMPLES = 12
"""Of those that a rule dropped, and of crops beside what their VQ ids make."""
DRAWN_IMAGES = 512
"""Images whose VQ ids are counted."""
MAX_IMAGE_BYTES = 40_000
"""Larger images go into the page as JPEG."""
MEASURED = {
    "width": "width, pixels",
    "height": "height, pixels",
    "aspect": "long side over short side",
    "caption_chars": "caption, characters",
    "text_chars": "text, characters",
}
"""Histograms in the pipeline's statistics, and the label of their axis."""
Paint = Callable[[Sequence[np.ndarray]], list[bytes]]
"""From the VQ ids of images to their PNG bytes."""


@dataclass(frozen=True)
class Card:
    """One sample on the page."""

    key: str
    place: str
    images: list[str]
    """Data URLs."""
    pieces: list[Piece]


@dataclass(frozen=True)
class Refused:
    """What was quarantined for one kind of reason."""

    kind: str
    count: int
    shown: list[tuple[Reject, str]]
    """Rejects, and their first bytes for people."""


@dataclass(frozen=True)
class Dropped:
    """What a rule of the recipe left out."""

    rule: str
    count: int
    shown: list[tuple[Example, str]]
    """Examples, and the data URL of their image, empty without one."""


@dataclass(frozen=True)
class SetView:
    """What the page shows of one shard set."""

    values: dict[str, Any]
    funnel: list[tuple[str, int, str]]
    """(what, how many, class of the bar), from what was read to what is trained on."""
    refused: list[Refused]
    dropped: list[Dropped]
    ignored: list[tuple[str, str, int]]
    """(key of the source, why its values were not used, records)."""
    reconstructions: list[tuple[str, str, str]]
    """(key, data URL of a crop, data URL of what its VQ ids make)."""
    plots: list[tuple[str, str]]
    """(title, SVG)."""
    notes: list[tuple[str, str]]
    """(figure, its value in every sample, or another single one)."""
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

    `cards` samples of each, drawn by `seed`, are shown; with `paint`, VQ ids are shown as images too.
    """
    views = [view(shards, tokenizer, cards, seed, paint) for shards, tokenizer in opened]
    page = render("data.html.j2", title=title.rstrip("/").rsplit("/", 1)[-1], folder=title, sets=views)
    fs.write_whole(out, page.encode())
    return out


def view(shards: ShardSet, tokenizer: Tokenizer, cards: int, seed: int, paint: Paint | None) -> SetView:
    """Return figures, plots and samples of one shard set."""
    manifest = shards.manifest
    numbers, rejects = refused(shards.folder, SHOWN_REJECTS)
    found = columns(shards, *COUNTED)
    counted, kept = stats(shards.folder) or {}, examples(shards.folder)
    plots, notes = _plots(shards, found, seed)
    plots += _measured(counted, manifest.stream)
    drawn = list(read_samples(shards, chosen(manifest.samples, cards, seed)))
    return SetView(
        summary(shards, found),
        list(_funnel(shards, numbers, counted)),
        list(_refused(numbers, rejects)),
        list(_dropped(counted, kept)),
        _ignored(manifest.ignored),
        [] if paint is None else _reconstructions(kept, paint),
        plots,
        [*notes, *health(shards)],
        [_card(found, tokenizer, manifest.image_tokens, paint) for found in drawn],
    )


def _funnel(shards: ShardSet, by_kind: dict[str, int], counted: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    manifest, records = shards.manifest, counted.get("records")
    if records is not None:
        yield "records read", records, "all"
    for kind, number in by_kind.items():
        yield f"quarantined: {kind}", number, "bad"
    untold = manifest.quarantined - sum(by_kind.values())
    if untold > 0:
        yield "quarantined, reasons not kept", untold, "bad"
    dropped = counted.get("dropped", {})
    for rule, number in sorted(dropped.items(), key=lambda pair: -pair[1]):
        yield f"dropped by rule: {rule}", number, "bad"
    kept = None if records is None else records - manifest.quarantined - sum(dropped.values())
    if kept is not None and kept != manifest.samples:
        yield "records kept", kept, "good"
        yield "samples, long texts cut into several", manifest.samples, "good"
    else:
        yield "samples", manifest.samples, "good"


def _dropped(counted: dict[str, Any], kept: list[Example]) -> Iterator[Dropped]:
    for rule, number in sorted(counted.get("dropped", {}).items(), key=lambda pair: -pair[1]):
        shown = [one for one in kept if one.rule == rule][:SHOWN_EXAMPLES]
        yield Dropped(rule, number, [(one, _data_url(one.image) if one.image else "") for one in shown])


def _ignored(counts: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str, int]]:
    rows = [(key, reason, number) for key, reasons in counts.items() for reason, number in reasons.items()]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def _reconstructions(kept: list[Example], paint: Paint) -> list[tuple[str, str, str]]:
    shown = [one for one in kept if one.vq_ids][:SHOWN_EXAMPLES]
    painted = paint([np.array(one.vq_ids) for one in shown])
    return [(one.key, _data_url(one.image), _data_url(image)) for one, image in zip(shown, painted, strict=True)]


def _measured(counted: dict[str, Any], stream: str) -> list[tuple[str, str]]:
    """Return histograms of what the pipeline measured of records before it made samples of them."""
    found = []
    for name, label in MEASURED.items():
        bins = {float(edge): number for edge, number in counted.get("histograms", {}).get(name, {}).items()}
        if len(bins) > 1:
            found.append((f"{label} of a record", plot.binned(bins, label, stream)))
    return found


def health(shards: ShardSet) -> Iterator[tuple[str, str]]:
    """Yield what a look at the folder says of its files; `janus data lint` looks into them."""
    table = shards.manifest.shards
    if not len(table):
        return
    sizes = fs.sizes(shards.folder)
    entries = list(table)
    whole = sum(sizes.get(f"{one.name}.tar") == one.bytes and f"{one.name}.index.npy" in sizes for one in entries)
    yield "shards there with their index, of the right size", f"{whole:,} of {len(entries):,}"
    strays = {name for name in sizes if name.endswith(".tar")} - {f"{one.name}.tar" for one in entries}
    if strays:
        yield "tars of no shard", f"{len(strays):,}"
    low, high = int(table.samples.min()), int(table.samples.max())
    yield "samples in a shard", f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _refused(by_kind: dict[str, int], rejects: list[Reject]) -> Iterator[Refused]:
    for kind, number in by_kind.items():
        shown = [reject for reject in rejects if reject.kind == kind]
        yield Refused(kind, number, [(reject, head(reject.head)) for reject in shown])


def _plots(
    shards: ShardSet, found: dict[str, NDArray[Any]], seed: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return histograms, and (figure, value) of those that are the same in every sample."""
    plots: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    stream, tokens = shards.manifest.stream, found["tokens"]
    if not len(tokens):
        return plots, notes
    for name, values in (
        ("tokens", tokens),
        ("images", found["images"]),
        ("VQ ids", found["image_ids"]),
    ):
        if values.min() == values.max():
            notes += [(f"{name} in each sample", f"{int(values[0]):,}")] if values[0] else []
        else:
            plots.append((f"{name} in a sample", plot.histogram(values, name, stream)))
    if SPECS[stream].reads_images:
        share = found["answer_labels"] / tokens
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
    """Return (how often each id occurs that occurs at all, images counted)."""
    found = decoded(shards, chosen(shards.manifest.samples, DRAWN_IMAGES, seed))
    drawn = [one.vq_ids for one in found if isinstance(one, GenerationSample)]
    return np.unique(np.concatenate(drawn), return_counts=True)[1], len(drawn)


def _card(found: Found, tokenizer: Tokenizer, image_tokens: int, paint: Paint | None) -> Card:
    sample, images = found.sample, []
    if isinstance(sample, UnderstandingSample):
        images = sample.images
    elif isinstance(sample, GenerationSample) and paint is not None:
        images = paint([sample.vq_ids])
    place = f"sample {found.number} in {found.shard}, {int(found.record['tokens']):,} tokens"
    return Card(found.key, place, [_data_url(image) for image in images], pieces(sample, tokenizer, image_tokens))


def _data_url(encoded: bytes) -> str:
    kind = "jpeg" if encoded.startswith(JPEG) else "png"
    if len(encoded) > MAX_IMAGE_BYTES:
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(encoded)) as image:
            image.convert("RGB").save(buffer, "JPEG", quality=85)
        kind, encoded = "jpeg", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
