"""A packed row for people, read from the very batch that the model would get.

Invariant: what is shown as learned are the labels of the batch, so the mask on the screen is the mask of the loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from janus_dist.batch import NO_LABEL, Batch
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.streams import Stream
from janus_dist.data.collate import DocumentFormat, collate
from janus_dist.data.loader import Loader
from janus_dist.data.plan import Plan, StepPlan
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import ConfigError
from janus_dist.inspection.inspect import LocatedSample, read_samples
from janus_dist.inspection.render import Kind, Piece, kind_of, special_names, text_of, visible


@dataclass(frozen=True)
class DocumentView:
    """One document of a row."""

    stream: Stream
    source: str
    sample: int
    key: str | None
    """None where the sample is damaged; pad tokens stand in its place."""
    shard: str
    epoch: int
    first: int
    """Token of the sample that the piece starts with; 0 unless a text was cut."""
    tokens: int
    of_tokens: int
    """Tokens of the whole sample."""
    prompt_dropped: bool
    pieces: list[Piece]

    @property
    def title(self) -> str:
        """Return in one line where the document comes from and which part of it is in the row."""
        end, is_cut = self.first + self.tokens, self.tokens < self.of_tokens
        cut = f" {self.first:,} to {end:,} of {self.of_tokens:,}" if is_cut else ""
        dropped = ", prompt dropped" if self.prompt_dropped else ""
        key = "damaged, trained as pad tokens" if self.key is None else f"key {visible(self.key)}"
        return (
            f"{self.source} ({self.stream}) sample {self.sample}, {key}, {self.shard}, epoch {self.epoch}: "
            f"{self.tokens:,} tokens{cut}{dropped}"
        )


@dataclass(frozen=True)
class RowView:
    """One row of one step."""

    step: int
    row: int
    rows: int
    tokens: int
    text_labels: int
    image_labels: int
    documents: list[DocumentView]
    step_documents: int
    step_tokens: int
    step_labels: dict[Stream, int]
    """Labels of each stream in the whole step."""

    def summary(self, row_tokens: int) -> str:
        """Return the sums of the step and of the row, a line each; a row has room for `row_tokens`."""
        labels = ", ".join(f"{stream} {number:,}" for stream, number in self.step_labels.items())
        return (
            f"step {self.step}: tokens {self.step_tokens:,} of {self.rows * row_tokens:,}, "
            f"documents {self.step_documents:,}, rows {self.rows:,}; labels: {labels}\n"
            f"row {self.row}: tokens {self.tokens:,} of {row_tokens:,} ({self.tokens / row_tokens:.1%}), "
            f"documents {len(self.documents):,}; labels: text head {self.text_labels:,}, "
            f"image head {self.image_labels:,}"
        )


def view_row(recipe: StageRecipe, plan: Plan, tokenizer: Tokenizer, step: int, row: int) -> RowView:
    """Return plan a step and read one of its rows. Raises ConfigError when there is no such step or row, DataError when
    it cannot be read."""
    if step >= recipe.train.steps:
        raise ConfigError(
            f"there is no step {step}: train.steps={recipe.train.steps}",
            f"steps are counted from 0 to {recipe.train.steps - 1}",
        )
    planned = plan.step(step)
    if row >= planned.rows.num_rows:
        raise ConfigError(
            f"step {step} has no row {row}: it takes {planned.rows.num_rows} rows",
            f"rows are counted from 0 to {planned.rows.num_rows - 1}",
        )
    form = DocumentFormat.of(recipe, tokenizer)
    loader = Loader(plan, form, rank=0, world=1, max_bad_share=recipe.data.max_bad_share)
    numbers = list(planned.rows.row(row))
    documents = loader.read(planned, numbers)
    batch = collate([documents[number] for number in numbers], form)
    sound = sorted({int(planned.rows.document[each]) for each in numbers if documents[each].sample is not None})
    stored = _stored(plan, planned, sound)
    shown = document_pieces(batch, tokenizer, recipe.model.image_tokens)
    views = [_document(plan, planned, number, stored, found) for number, found in zip(numbers, shown, strict=True)]
    return RowView(
        step,
        row,
        planned.rows.num_rows,
        batch.num_tokens,
        int((batch.text_labels != NO_LABEL).sum()),
        int((batch.image_labels != NO_LABEL).sum()),
        views,
        planned.num_documents,
        planned.num_tokens,
        planned.labels,
    )


def document_pieces(batch: Batch, tokenizer: Tokenizer, image_tokens: int) -> Iterator[list[Piece]]:
    """Yield the pieces of each document of a batch; a label at a position says that the next token is learned."""
    learned = np.zeros(batch.num_tokens + 1, dtype=np.bool_)
    for rows, labels in ((batch.text_rows, batch.text_labels), (batch.image_rows, batch.image_labels)):
        learned[rows[labels != NO_LABEL].numpy() + 1] = True
    names = special_names(tokenizer)
    ids = batch.input_ids.tolist()
    kinds: list[Kind] = [kind_of(number, tokenizer, names) for number in ids]
    for place in batch.pixel_positions.tolist():
        kinds[place] = "image"
    for place in batch.vq_positions.tolist():
        kinds[place] = "vq ids"
    start = 0
    for length in batch.document_lengths:
        found: list[Piece] = []
        places = range(start, start + length)
        for (kind, is_learned), run in groupby(places, key=lambda place: (kinds[place], bool(learned[place]))):
            run_ids = [ids[place] for place in run]
            when = "always" if is_learned else "never"
            if kind == "image":
                texts = [f"<image {image_tokens} tokens>"] * (len(run_ids) // image_tokens)
            elif kind == "vq ids":
                texts = [f"<{len(run_ids)} VQ ids>"]
            else:
                texts = text_of(kind, run_ids, tokenizer)
            found += [Piece(text, kind, when) for text in texts]
        yield found
        start += length


def _stored(plan: Plan, planned: StepPlan, documents: Sequence[int]) -> dict[tuple[int, int], LocatedSample]:
    """Return the samples by lane and number: those of some documents of a step; what they share of a shard is read
    once."""
    return {
        (lane, found.number): found
        for lane, shards in enumerate(plan.shards)
        for mine in [{int(planned.sample[each]) for each in documents if planned.lane[each] == lane}]
        for found in read_samples(shards, mine)
    }


def _document(
    plan: Plan, planned: StepPlan, number: int, stored: dict[tuple[int, int], LocatedSample], found: list[Piece]
) -> DocumentView:
    rows = planned.rows
    document = int(rows.document[number])
    lane = int(planned.lane[document])
    sample = int(planned.sample[document])
    shards = plan.shards[lane]
    entry = shards.manifest.shards[int(shards.shard_of(planned.sample[[document]])[0])]
    return DocumentView(
        stream=plan.lanes[lane].stream,
        source=plan.lanes[lane].source,
        sample=sample,
        key=stored[lane, sample].key if (lane, sample) in stored else None,
        shard=entry.name,
        epoch=int(planned.epoch[document]),
        first=int(rows.first[number]),
        tokens=int(rows.tokens[number]),
        of_tokens=int(planned.record["tokens"][document]),
        prompt_dropped=bool(planned.drop_prompt[document]),
        pieces=found,
    )
