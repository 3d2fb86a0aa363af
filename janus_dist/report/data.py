"""The page about shard sets: one HTML file that needs nothing else, not even a network.

Invariant: a figure on the page is counted in an index, a manifest, a marker or the quarantine table; what comes from
drawn samples says so.
"""

import base64
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from janus_dist.data import storage
from janus_dist.data.inspect import (
    Found,
    Reject,
    chosen,
    column,
    items_read,
    kinds,
    quarantine,
    read_samples,
    summary,
)
from janus_dist.data.legible import Piece, head, pieces
from janus_dist.data.manifest import ShardSet
from janus_dist.data.sample import GenerationSample, UnderstandingSample
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.monitor.console import count
from janus_dist.report import plot
from janus_dist.report.run import TEMPLATES

SHOWN_REJECTS = 5
"""Of each kind of reason."""
DRAWN_IMAGES = 512
"""Images whose VQ ids are counted."""
MAX_IMAGE_BYTES = 40_000
"""Larger images go into the page as JPEG."""
PLAIN_BARS = str.maketrans("｜▁", "|_")  # noqa: RUF001 - in the names of special tokens, and absent from many fonts

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
class SetView:
    """What the page shows of one shard set."""

    values: dict[str, Any]
    funnel: list[tuple[str, int, str]]
    """(what, how many, class of the bar), from what was read to what is trained on."""
    refused: list[Refused]
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
    page = _template().render(
        title=title.rstrip("/").rsplit("/", 1)[-1], folder=title, written=time.strftime("%Y-%m-%d %H:%M"), sets=views
    )
    storage.write_whole(out, page.encode())
    return out


def view(shards: ShardSet, tokenizer: Tokenizer, cards: int, seed: int, paint: Paint | None) -> SetView:
    """Figures, plots and samples of one shard set."""
    manifest = shards.manifest
    rejects = quarantine(shards.folder)
    plots, notes = _plots(shards, seed)
    drawn = list(read_samples(shards, chosen(manifest.samples, cards, seed)))
    return SetView(
        summary(shards),
        list(_funnel(shards, rejects)),
        list(_refused(rejects or [])),
        plots,
        notes,
        [_card(found, tokenizer, manifest.image_tokens, paint) for found in drawn],
    )


def _funnel(shards: ShardSet, rejects: list[Reject] | None) -> Iterator[tuple[str, int, str]]:
    manifest, items = shards.manifest, items_read(shards.folder)
    if items is not None:
        yield "items read", items, "all"
    by_kind = kinds(rejects or [])
    for kind, number in by_kind.items():
        yield f"quarantined: {kind}", number, "bad"
    untold = manifest.quarantined - sum(by_kind.values())
    if untold > 0:
        yield "quarantined, reasons not kept", untold, "bad"
    if items is not None and items - manifest.quarantined != manifest.samples:
        yield "items kept", items - manifest.quarantined, "good"
        yield "samples, long items cut into several", manifest.samples, "good"
    else:
        yield "samples", manifest.samples, "good"


def _refused(rejects: list[Reject]) -> Iterator[Refused]:
    for kind, number in kinds(rejects).items():
        shown = [reject for reject in rejects if reject.kind == kind][:SHOWN_REJECTS]
        yield Refused(kind, number, [(reject, head(reject.head)) for reject in shown])


def _plots(shards: ShardSet, seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Histograms, and (figure, value) of those that are the same in every sample."""
    plots: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    stream, tokens = shards.manifest.stream, column(shards, "tokens")
    if not len(tokens):
        return plots, notes
    for name, values in (
        ("tokens", tokens),
        ("images", column(shards, "images")),
        ("VQ ids", column(shards, "image_ids")),
    ):
        if values.min() == values.max():
            notes += [(f"{name} in each sample", f"{int(values[0]):,}")] if values[0] else []
        else:
            plots.append((f"{name} in a sample", plot.histogram(values, name, stream)))
    if stream == "understanding":
        share = column(shards, "answer_labels") / tokens
        plots.append(
            ("answers: share of a sample's tokens", plot.histogram(share, "share of tokens", stream, percent=True))
        )
    if stream == "generation":
        used, images = _code_use(shards, seed)
        plots.append(
            (f"VQ ids of {images:,} drawn images", plot.ranked(used, "id, the most frequent first", "times", stream))
        )
        notes.append((f"different VQ ids in {images:,} drawn images", f"{len(used):,}"))
    return plots, notes


def _code_use(shards: ShardSet, seed: int) -> tuple[NDArray[np.int64], int]:
    """(how often each id occurs that occurs at all, images counted)."""
    found = read_samples(shards, chosen(shards.manifest.samples, DRAWN_IMAGES, seed))
    drawn = [one.sample.vq_ids for one in found if isinstance(one.sample, GenerationSample)]
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
    kind = "png"
    if len(encoded) > MAX_IMAGE_BYTES:
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(encoded)) as image:
            image.convert("RGB").save(buffer, "JPEG", quality=85)
        kind, encoded = "jpeg", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["short"] = count
    environment.filters["plain_bars"] = lambda text: text.translate(PLAIN_BARS)
    environment.filters["json"] = json.dumps
    return environment.get_template("data.html.j2")
