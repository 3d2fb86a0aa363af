"""The plan: the training data of step s, as a pure function of (seed, manifests, mixture, step).

No state is carried from one step to the next: a step owns the samples whose start lies between the cumulative quotas
of two steps on each source's endless line of epochs. Invariant: `Plan.step(s)` is the same for every number of ranks
and on every machine, and does not depend on whether earlier steps were planned.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus_dist.config.data import BatchConfig, DataConfig
from janus_dist.config.mix import PRECISION, Lane, MixConfig, lane_shares
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.streams import SPECS, STREAMS, Stream
from janus_dist.data import order, packing
from janus_dist.data.keys import shard_keys
from janus_dist.data.line import Cursor, SourceLine
from janus_dist.data.manifest import ShardSet
from janus_dist.data.mixture import Mixture
from janus_dist.data.reader import RangeReader
from janus_dist.errors import DataError

PLAN_VERSION = 2
"""Version of the planning rules, part of the digest; raise it with every change of a plan's result."""
WHOLE_FILL = Fraction(97, 100)
"""Default share of a step's tokens that is filled when no document is cut."""
IMAGES_FILL = Fraction(965, 1000)
"""Share that documents with images fill of what they would fill if all had the mean length."""
CUT_STREAMS = np.array([spec.is_cut for spec in SPECS.values()])
"""[stream] bool: documents longer than a row are cut."""


@dataclass(frozen=True)
class PlanBase:
    """The point from which a run continues after its mixture or data were changed on purpose.

    From `step` on, the quotas are those of the new mixture, and each source continues at its cursor; a source that is
    new or was made again starts from its beginning.
    """

    step: int
    cursors: dict[str, Cursor]


@dataclass(frozen=True)
class StepPlan:
    """The documents of one step, D of them, lane by lane, and the rows that their pieces are packed into."""

    step: int
    lane: NDArray[np.int64]
    """Index into the lanes of the plan: [D] int64."""
    stream: NDArray[np.int64]
    """Index into STREAMS: [D] int64."""
    sample: NDArray[np.int64]
    """Index of the sample in its shard set: [D] int64."""
    epoch: NDArray[np.int64]
    """Number of complete passes over the source before this one: [D] int64."""
    record: NDArray[np.void]
    """Index record: [D] INDEX_DTYPE."""
    drop_prompt: NDArray[np.bool_]
    """Whether pad tokens replace a generation document's prompt: [D] bool."""
    rows: packing.PackedRows
    row_costs: NDArray[np.float64]
    """Cost of each row for a rank: [row] float64, in units of `batch.cost`."""
    labels: dict[Stream, int]
    """Labels that each stream contributes to the loss of this step, over all ranks."""

    @property
    def num_documents(self) -> int:
        """Return the number of documents in the step."""
        return len(self.sample)

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens in all rows, those repeated at cuts included."""
        return int(self.rows.tokens.sum())

    @property
    def num_cuts(self) -> int:
        """Return how many times a text was cut at the end of a row."""
        return len(self.rows.document) - self.num_documents

    def digest(self) -> str:
        """Return a hash of all contents of the step, for golden tests and comparisons across world sizes."""
        state = hashlib.sha256()
        packed = (self.rows.document, self.rows.first, self.rows.tokens, self.rows.row_starts)
        for values in (self.lane, self.sample, self.epoch, self.drop_prompt, *packed):
            state.update(np.ascontiguousarray(values).tobytes())
        state.update(json.dumps(self.labels, sort_keys=True).encode())
        return state.hexdigest()


class Plan:
    """The plan of one run."""

    def __init__(
        self,
        shards: Mapping[Lane, ShardSet],
        mix: MixConfig,
        batch: BatchConfig,
        seed: int,
        answers_only: bool,
        base: PlanBase | None = None,
    ):
        """Plan over `shards`, which holds a shard set for every lane that ever has a share in `mix`.

        Raises DataError when a shard set is empty or has a sample that does not fit a row.
        """
        self.mix, self.batch, self.seed, self.answers_only, self.base = mix, batch, seed, answers_only, base
        self.lanes = list(shards)
        self.shards = list(shards.values())
        for lane, shard_set in shards.items():
            _check_fits(lane, shard_set, batch.row_tokens)
        self.lines = [SourceLine(shard_set, seed, lane) for lane, shard_set in shards.items()]
        self.mixture = Mixture.build(mix, self.lanes, self._units_per_step())

    @classmethod
    def of(cls, recipe: StageRecipe, shards: Mapping[Lane, ShardSet]) -> "Plan":
        """Return the plan of a recipe's run over its opened shard sets.

        Raises DataError when a shard set is empty or has a sample that does not fit a row.
        """
        return cls(shards, recipe.mix, recipe.batch, recipe.run.seed, recipe.train.answers_only)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Return all inputs of the plan except the step."""
        return {
            "version": PLAN_VERSION,
            "seed": self.seed,
            "mix": self.mix.model_dump(mode="json"),
            "batch": self.batch.model_dump(mode="json", exclude={"micro_rows"}),
            "answers_only": self.answers_only,
            "base": asdict(self.base) if self.base else None,
            "manifests": {
                lane.source: shards.manifest.digest for lane, shards in zip(self.lanes, self.shards, strict=True)
            },
        }

    @cached_property
    def digest(self) -> str:
        """Return the digest of the identity; runs with the same digest train the same documents at every step."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def step(self, step: int) -> StepPlan:
        """Return the plan of step `step` (counted from 0).

        Raises DataError when an index cannot be read or does not match its manifest.
        """
        starts, stops = self.positions(step), self.positions(step + 1)
        by_lane = [
            line.take(self.mixture.unit, start, stop)
            for line, start, stop in zip(self.lines, starts, stops, strict=True)
        ]
        lane = np.repeat(np.arange(len(by_lane)), [len(samples.sample) for samples in by_lane])
        sample, epoch, record = (np.concatenate(column) for column in zip(*by_lane, strict=True))
        stream = np.array([STREAMS.index(lane_of_plan.stream) for lane_of_plan in self.lanes])[lane]
        tokens = record["tokens"].astype(np.int64)
        text_labels = record["answer_labels" if self.answers_only else "text_labels"].astype(np.int64)
        rows = self._pack(tokens, self._costs(tokens, text_labels, record), CUT_STREAMS[stream])
        return StepPlan(
            step,
            lane,
            stream,
            sample,
            epoch,
            record,
            self._drops(lane, sample, epoch),
            rows,
            self._row_costs(rows, tokens, text_labels, record),
            _labels(stream, text_labels, record),
        )

    def positions(self, step: int) -> list[int]:
        """Return each lane's position in its line before `step`, in units of the mixture."""
        totals = self.mixture.cumulative(step)
        if self.base is None:
            return list(totals)
        assert step >= self.base.step, "steps before the change belong to another plan"
        before = self.mixture.cumulative(self.base.step)
        starts = [self._start(lane, self.base) for lane in range(len(self.lanes))]
        return [start + now - then for start, now, then in zip(starts, totals, before, strict=True)]

    def changes(self, before: int, step: int) -> bool:
        """Return whether the mixture or the data changes at a step in (`before`, `step`]."""
        firsts = [phase.first_step for phase in self.mixture.phases]
        return any(before < first <= step for first in ([*firsts, self.base.step] if self.base else firsts))

    def shares_before(self, step: int) -> dict[Stream, float]:
        """Return the share of each stream, in units of the mixture, in all steps before `step`."""
        totals: dict[Stream, int] = dict.fromkeys(STREAMS, 0)
        for lane, units in zip(self.lanes, self.positions(step), strict=True):
            totals[lane.stream] += units
        return {name: units / max(1, sum(totals.values())) for name, units in totals.items()}

    def cursors(self, step: int) -> dict[str, Cursor]:
        """Return the cursor of each source before `step`; raise DataError when an index cannot be read."""
        return {
            lane.source: line.cursor(self.mixture.unit, position)
            for lane, line, position in zip(self.lanes, self.lines, self.positions(step), strict=True)
        }

    def rebased(self, base: PlanBase | None) -> "Plan":
        """Return this plan continued from the point where another plan was at a step."""
        shards = dict(zip(self.lanes, self.shards, strict=True))
        return Plan(shards, self.mix, self.batch, self.seed, self.answers_only, base)

    def _start(self, lane: int, base: PlanBase) -> int:
        """Return the position in a lane's line at the step of `base`, in units of the mixture."""
        cursor = base.cursors.get(self.lanes[lane].source)
        if cursor is None or cursor["manifest"] != self.shards[lane].manifest.digest:
            return 0
        return cursor[self.mixture.unit]

    def _units_per_step(self) -> Fraction:
        """Return the total of a step over all lanes, in units of the mixture."""
        batch = self.batch
        if self.mix.unit == "samples":
            assert batch.samples is not None, "the recipe was checked"
            return Fraction(batch.samples)
        room = batch.rows * batch.row_tokens
        if batch.fill is not None:
            return room * Fraction(batch.fill).limit_denominator(PRECISION)
        if not any(SPECS[lane.stream].is_cut for lane in self.lanes):
            return room * min(WHOLE_FILL, self._fill_of_images())
        if batch.packing == "whole":
            return room * WHOLE_FILL
        # A step takes at most one sample more than its quota of each lane; a row loses one token to a cut, and one to
        # room that no piece fits into.
        longest = sum(min(int(shards.manifest.shards.longest_tokens.max()), batch.row_tokens) for shards in self.shards)
        return Fraction(max(room - 2 * batch.rows - longest, room // 2))

    def _fill_of_images(self) -> Fraction:
        """Return the share of rows that documents with images alone can fill; all have nearly the same length."""
        samples = sum(shards.manifest.samples for shards in self.shards)
        tokens = sum(shards.manifest.tokens for shards in self.shards)
        mean = Fraction(tokens, samples)
        return (self.batch.row_tokens // mean) * mean / self.batch.row_tokens * IMAGES_FILL

    def _pack(
        self, tokens: NDArray[np.int64], costs: NDArray[np.float64], is_text: NDArray[np.bool_]
    ) -> packing.PackedRows:
        """Return the documents of a step packed into rows.

        `tokens`: [D] int64; `costs`: [D] float64; `is_text`: [D] bool.
        """
        batch = self.batch
        if batch.packing == "whole" or not is_text.any():
            return packing.pack_whole(tokens, batch.row_tokens)
        rows = batch.rows if self.mix.unit == "tokens" else -(-int(tokens.sum()) // (batch.row_tokens - 2))
        return packing.pack_split(tokens, costs, is_text, rows, batch.row_tokens)

    def _costs(
        self, tokens: NDArray[np.int64], text_labels: NDArray[np.int64], record: NDArray[np.void]
    ) -> NDArray[np.float64]:
        """Return the cost of each document for a rank: [D] float64.

        `tokens`, `text_labels`: [D] int64; `record`: [D] INDEX_DTYPE.
        """
        cost = self.batch.cost
        length = tokens.astype(np.float64)
        return (
            cost["token"] * length
            + cost["token_squared"] * length * length
            + cost["image"] * record["images"]
            + cost["text_label"] * text_labels
            + cost["image_label"] * record["image_ids"]
        )

    def _row_costs(
        self,
        rows: packing.PackedRows,
        tokens: NDArray[np.int64],
        text_labels: NDArray[np.int64],
        record: NDArray[np.void],
    ) -> NDArray[np.float64]:
        """Return the cost of the pieces of each row: [row] float64.

        `tokens`, `text_labels`: [D] int64; `record`: [D] INDEX_DTYPE. A piece of a cut text has a label for each token
        but its first.
        """
        cut = rows.tokens != tokens[rows.document]
        labels = np.where(cut, rows.tokens - 1, text_labels[rows.document])
        pieces = self._costs(rows.tokens, labels, record[rows.document])
        return np.add.reduceat(pieces, rows.row_starts[:-1]) if len(pieces) else np.empty(0)

    def _drops(self, lane: NDArray[np.int64], sample: NDArray[np.int64], epoch: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether each document's prompt is dropped: [D] bool. `lane`, `sample`, `epoch`: [D] int64."""
        drops = np.zeros(len(lane), dtype=np.bool_)
        for index, (lane_of_plan, line) in enumerate(zip(self.lanes, self.lines, strict=True)):
            if not SPECS[lane_of_plan.stream].draws_images:
                continue
            in_lane = lane == index
            for lane_epoch in np.unique(epoch[in_lane]).tolist():
                in_epoch = in_lane & (epoch == lane_epoch)
                # one more word than the order's key, so that order and drops are independent
                draws = order.chance(sample[in_epoch], order.key(*line.key_words, lane_epoch, 1))
                drops[in_epoch] = draws < self.batch.cfg_drop
        return drops


def open_shards(data: DataConfig, mix: MixConfig, node_member: int = 0) -> dict[Lane, ShardSet]:
    """Return the shard sets of the lanes that have a share in the mix at any step, with one reader for all.

    `node_member` is the rank's index on its node. Raises DataError when a manifest is missing or its counts do not add
    up.
    """
    lanes = data.lanes
    reader = RangeReader(data.read, node_member)
    used = {
        lane
        for _, state in mix.states()
        for lane, share in zip(lanes, lane_shares(state, list(lanes)), strict=True)
        if share > 0
    }
    return {lane: ShardSet.open(folder, reader) for lane, folder in lanes.items() if lane in used}


def _labels(stream: NDArray[np.int64], text_labels: NDArray[np.int64], record: NDArray[np.void]) -> dict[Stream, int]:
    """Return the labels of each stream. `stream`, `text_labels`: [D] int64; `record`: [D] INDEX_DTYPE."""
    sums = np.bincount(stream, weights=text_labels + record["image_ids"], minlength=len(STREAMS))  # exact: below 2**53
    return {name: int(total) for name, total in zip(STREAMS, sums, strict=True)}


def _check_fits(lane: Lane, shards: ShardSet, row_tokens: int) -> None:
    """Raise DataError when a shard set is empty or has a sample with images that is longer than a row."""
    if shards.manifest.samples == 0:
        raise DataError(f"{lane.source} ({lane.stream}) has a share in the mix but its shard set is empty")
    longest = shards.manifest.shards.longest_tokens
    shard = int(longest.argmax())
    if longest[shard] > row_tokens and not SPECS[lane.stream].is_cut:
        raise DataError(
            f"sample {_key_of_longest(shards, shard)} of {shards.path(shard)} takes {longest[shard]} tokens, "
            f"more than batch.row_tokens={row_tokens}",
            f"set batch.row_tokens={longest[shard]} or more, or shorten the samples in the pipeline",
        )


def _key_of_longest(shards: ShardSet, shard: int) -> str:
    """Return the key of a shard's longest sample, or its index in the shard when the tar cannot be read."""
    row = int(shards.shard_records(shard)["tokens"].argmax())
    try:
        return shard_keys(shards.folder, shards.manifest, shard)[row]
    except DataError:
        return str(row)
