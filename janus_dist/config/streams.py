"""What a stream is: one table that everything else loops over.

A stream has an entry here, a sample type in data/sample.py and a step in data_pipelines/steps. Invariant: the order of
the table is part of the plan's random keys, so a new stream goes to its end.
"""

from dataclasses import dataclass
from typing import Literal

Stream = Literal["understanding", "text", "generation"]
Column = Literal["key", "image", "caption", "text", "turns"]
"""What records have columns for."""


@dataclass(frozen=True)
class StreamSpec:
    """One kind of documents."""

    name: Stream
    short_name: str
    """Name in console lines."""
    color: str
    """Color in plots, as #rrggbb; three that the color-blind tell apart (Okabe and Ito)."""
    columns: tuple[Column, ...]
    """What a sample is made of, of what a record has."""
    reads_images: bool = False
    """Samples hold encoded images, which the understanding encoder reads."""
    draws_images: bool = False
    """Samples hold VQ ids, which are labels of the image head."""
    is_cut: bool = False
    """Documents that are longer than a row are cut, not refused."""
    has_own_tar_members: bool = False
    """Each sample has tar members of its own; small samples of other streams share blocks."""

    @property
    def has_images(self) -> bool:
        """Return whether samples hold images, to read or to draw."""
        return self.reads_images or self.draws_images


SPECS: dict[Stream, StreamSpec] = {
    spec.name: spec
    for spec in (
        StreamSpec(
            name="understanding",
            short_name="und",
            color="#0072b2",
            columns=("image", "turns", "caption"),
            reads_images=True,
            has_own_tar_members=True,
        ),
        StreamSpec(name="text", short_name="text", color="#009e73", columns=("text",), is_cut=True),
        StreamSpec(
            name="generation", short_name="gen", color="#d55e00", columns=("image", "caption"), draws_images=True
        ),
    )
}
STREAMS: tuple[Stream, ...] = tuple(SPECS)
IMAGE_STREAMS: tuple[Stream, ...] = tuple(name for name, spec in SPECS.items() if spec.has_images)
"""Streams whose learning is measured by questions and drawings."""
