"""A packed row for people, read from the very batch that the model would get.

Invariant: what is shown as learned are the labels of the batch, so the mask on the screen is the mask of the loss.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from janus_dist.batch import NO_LABEL, Batch
from janus_dist.config.recipe import StageRecipe
from janus_dist.data.collate import DocumentFormat, collate
from janus_dist.data.inspect import read_samples
from janus_dist.data.legible import Kind, Piece, kind_of, special_names, text_of
from janus_dist.data.loader import Loader
from janus_dist.data.plan import Plan, StepPlan
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError


@dataclass(frozen=True)
class DocumentView:
    """One document of a row."""

    stream: str
    source: str
    sample: int
    key: str
    shard: str
    epoch: int
    first: int
    """Token of the sample that the piece starts with; 0 unless a text was cut."""
    tokens: int
    of_tokens: int
    """Tokens of the whole sample."""
    prompt_dropped: bool
    pieces: list[Piece]


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


def view_row(recipe: StageRecipe, plan: Plan, tokenizer: Tokenizer, step: int, row: int) -> RowView:
    """Plan a step and read one of its rows; DataError when there is no such row, or it cannot be read."""
    planned = plan.step(step)
    if row >= planned.rows.num_rows:
        raise DataError(
            f"step {step} has no row {row}: it takes {planned.rows.num_rows} rows",
            f"rows are counted from 0 to {planned.rows.num_rows - 1}",
        )
    loader = Loader(plan, DocumentFormat.of(recipe, tokenizer), rank=0, world=1)
    numbers = list(planned.rows.row(row))
    documents = loader.read(planned, numbers)
    batch = collate([documents[number] for number in numbers], loader.form)
    views = [
        _document(plan, planned, number, found)
        for number, found in zip(numbers, document_pieces(batch, tokenizer, recipe.model.image_tokens), strict=True)
    ]
    return RowView(
        step,
        row,
        planned.rows.num_rows,
        batch.num_tokens,
        int((batch.text_labels != NO_LABEL).sum()),
        int((batch.image_labels != NO_LABEL).sum()),
        views,
    )


def document_pieces(batch: Batch, tokenizer: Tokenizer, image_tokens: int) -> Iterator[list[Piece]]:
    """The pieces of each document of a batch; a label at a position says that the token behind it is learned."""
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


def _document(plan: Plan, planned: StepPlan, number: int, found: list[Piece]) -> DocumentView:
    rows = planned.rows
    document = int(rows.document[number])
    lane = int(planned.lane[document])
    sample = int(planned.sample[document])
    shards = plan.shards[lane]
    stored = next(iter(read_samples(shards, [sample])))
    return DocumentView(
        stream=plan.lanes[lane].stream,
        source=plan.lanes[lane].source,
        sample=sample,
        key=stored.key,
        shard=stored.shard,
        epoch=int(planned.epoch[document]),
        first=int(rows.first[number]),
        tokens=int(rows.tokens[number]),
        of_tokens=int(planned.record["tokens"][document]),
        prompt_dropped=bool(planned.drop_prompt[document]),
        pieces=found,
    )
