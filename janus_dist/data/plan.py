"""The plan: what is trained at step s, as a pure function of (seed, manifests, mixture, step).

Nothing is carried from one step to the next: a step owns the samples whose start lies between the cumulative quotas
of two steps on each source's endless line of epochs. Invariant: `Plan.step(s)` is the same for every number of ranks,
on every machine, whether or not steps before s were ever planned.
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
from janus_dist.data.reader import Reader
from janus_dist.errors import DataError

PLAN_VERSION = 2  # goes into the digest; raise it with every change of what a plan gives
WHOLE_FILL = Fraction(97, 100)
IMAGES_FILL = Fraction(965, 1000)  # of what documents of the mean length would fill; lengths vary
CUT_STREAMS = np.array([spec.is_cut for spec in SPECS.values()])
"""[stream] bool: documents longer than a row are cut."""


@dataclass(frozen=True)
class Base:
    """Where a run goes on whose mixture or data were changed on purpose.

    From `step` on quotas are those of the new mixture, and each source goes on at its cursor; one that is new or was
    made again starts from its beginning.
    """

    step: int
    cursors: dict[str, Cursor]


@dataclass(frozen=True)
class StepPlan:
    """The documents of one step, D of them, lane by lane; and the rows that their pieces are packed into."""

    step: int
    lane: NDArray[np.int64]
    """[D] index into the lanes of the plan."""
    stream: NDArray[np.int64]
    """[D] index into STREAMS."""
    sample: NDArray[np.int64]
    """[D] number of the sample in its shard set."""
    epoch: NDArray[np.int64]
    """[D] how often its source has been through before."""
    record: NDArray[np.void]
    """[D] index record."""
    drop_prompt: NDArray[np.bool_]
    """[D] whether a generation document's prompt is replaced by pad tokens."""
    rows: packing.Packed
    row_costs: NDArray[np.float64]
    """[row] what each row costs a rank."""
    labels: dict[Stream, int]
    """Labels that each stream contributes to the loss of this step, over all ranks."""

    @property
    def num_documents(self) -> int:
        return len(self.sample)

    @property
    def num_tokens(self) -> int:
        return int(self.rows.tokens.sum())

    @property
    def num_cuts(self) -> int:
        """How often a text was cut at the end of a row."""
        return len(self.rows.document) - self.num_documents

    def digest(self) -> str:
        """A hash of everything in the step, for golden tests and comparisons across worlds."""
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
        base: Base | None = None,
    ):
        """`shards` holds a shard set for every lane that ever has a share in `mix`; DataError if one cannot be
        planned."""
        self.mix, self.batch, self.seed, self.answers_only, self.base = mix, batch, seed, answers_only, base
        self.lanes = list(shards)
        self.shards = list(shards.values())
        for lane, found in shards.items():
            _check_fits(lane, found, batch.row_tokens)
        self.lines = [SourceLine(found, seed, lane) for lane, found in shards.items()]
        self.mixture = Mixture.build(mix, self.lanes, self._units_per_step())

    @classmethod
    def of(cls, recipe: StageRecipe, shards: Mapping[Lane, ShardSet]) -> "Plan":
        """Return the plan of a recipe's run over its opened shard sets; DataError if one cannot be planned."""
        return cls(shards, recipe.mix, recipe.batch, recipe.run.seed, recipe.train.answers_only)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that the plan is a function of, beside the step."""
        return {
            "version": PLAN_VERSION,
            "seed": self.seed,
            "mix": self.mix.model_dump(mode="json"),
            "batch": self.batch.model_dump(mode="json", exclude={"micro_rows"}),
            "answers_only": self.answers_only,
            "base": asdict(self.base) if self.base else None,
            "manifests": {
                lane.source: found.manifest.digest for lane, found in zip(self.lanes, self.shards, strict=True)
            },
        }

    @cached_property
    def digest(self) -> str:
        """Two runs with the same digest train the same documents at every step."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def step(self, step: int) -> StepPlan:
        """What step `step` (counted from 0) trains on."""
        starts, stops = self.positions(step), self.positions(step + 1)
        taken = [
            line.take(self.mixture.unit, start, stop)
            for line, start, stop in zip(self.lines, starts, stops, strict=True)
        ]
        lane = np.repeat(np.arange(len(taken)), [len(found.sample) for found in taken])
        sample, epoch, record = (np.concatenate(column) for column in zip(*taken, strict=True))
        stream = np.array([STREAMS.index(found.stream) for found in self.lanes])[lane]
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
        """Where each lane's line stands before `step`, in units of the mixture."""
        found = self.mixture.cumulative(step)
        if self.base is None:
            return list(found)
        assert step >= self.base.step, "steps before the change belong to another plan"
        before = self.mixture.cumulative(self.base.step)
        starts = [self._start(lane, self.base) for lane in range(len(self.lanes))]
        return [start + now - then for start, now, then in zip(starts, found, before, strict=True)]

    def changes(self, before: int, step: int) -> bool:
        """Whether the mixture, or the data on purpose, changes between two steps."""
        firsts = [phase.first_step for phase in self.mixture.phases]
        return any(before < first <= step for first in ([*firsts, self.base.step] if self.base else firsts))

    def shares_before(self, step: int) -> dict[Stream, float]:
        """Share of each stream in what is taken from step 0 to the one before `step`."""
        taken: dict[Stream, int] = dict.fromkeys(STREAMS, 0)
        for lane, units in zip(self.lanes, self.positions(step), strict=True):
            taken[lane.stream] += units
        return {name: units / max(1, sum(taken.values())) for name, units in taken.items()}

    def cursors(self, step: int) -> dict[str, Cursor]:
        """Where each source stands before `step`."""
        return {
            lane.source: line.cursor(self.mixture.unit, position)
            for lane, line, position in zip(self.lanes, self.lines, self.positions(step), strict=True)
        }

    def rebased(self, base: Base | None) -> "Plan":
        """This plan, going on from where another one was at a step."""
        shards = dict(zip(self.lanes, self.shards, strict=True))
        return Plan(shards, self.mix, self.batch, self.seed, self.answers_only, base)

    def _start(self, lane: int, base: Base) -> int:
        cursor = base.cursors.get(self.lanes[lane].source)
        if cursor is None or cursor["manifest"] != self.shards[lane].manifest.digest:
            return 0
        return cursor[self.mixture.unit]

    def _units_per_step(self) -> Fraction:
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
        # A step takes at most a sample more than its quota of each lane; a row loses a token to a cut, and one to room
        # that no piece fits into.
        longest = sum(min(int(found.manifest.shards.longest_tokens.max()), batch.row_tokens) for found in self.shards)
        return Fraction(max(room - 2 * batch.rows - longest, room // 2))

    def _fill_of_images(self) -> Fraction:
        """What rows can be filled to by documents with images alone, which all have nearly the same length."""
        samples = sum(found.manifest.samples for found in self.shards)
        tokens = sum(found.manifest.tokens for found in self.shards)
        mean = Fraction(tokens, samples)
        return (self.batch.row_tokens // mean) * mean / self.batch.row_tokens * IMAGES_FILL

    def _pack(
        self, tokens: NDArray[np.int64], costs: NDArray[np.float64], is_text: NDArray[np.bool_]
    ) -> packing.Packed:
        batch = self.batch
        if batch.packing == "whole" or not is_text.any():
            return packing.pack_whole(tokens, batch.row_tokens)
        rows = batch.rows if self.mix.unit == "tokens" else -(-int(tokens.sum()) // (batch.row_tokens - 2))
        return packing.pack_split(tokens, costs, is_text, rows, batch.row_tokens)

    def _costs(
        self, tokens: NDArray[np.int64], text_labels: NDArray[np.int64], record: NDArray[np.void]
    ) -> NDArray[np.float64]:
        """[D] what each document costs a rank."""
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
        rows: packing.Packed,
        tokens: NDArray[np.int64],
        text_labels: NDArray[np.int64],
        record: NDArray[np.void],
    ) -> NDArray[np.float64]:
        """[row] what its pieces cost; a piece of a cut text has as many labels as it predicts tokens."""
        cut = rows.tokens != tokens[rows.document]
        labels = np.where(cut, rows.tokens - 1, text_labels[rows.document])
        pieces = self._costs(rows.tokens, labels, record[rows.document])
        return np.add.reduceat(pieces, rows.row_starts[:-1]) if len(pieces) else np.empty(0)

    def _drops(self, lane: NDArray[np.int64], sample: NDArray[np.int64], epoch: NDArray[np.int64]) -> NDArray[np.bool_]:
        drops = np.zeros(len(lane), dtype=np.bool_)
        for number, (found, line) in enumerate(zip(self.lanes, self.lines, strict=True)):
            if not SPECS[found.stream].draws_images:
                continue
            mine = lane == number
            for one in np.unique(epoch[mine]).tolist():
                here = mine & (epoch == one)
                # one more word than the order's key, so that order and drops are independent
                draws = order.chance(sample[here], order.key(*line.key_words, one, 1))
                drops[here] = draws < self.batch.cfg_drop
        return drops


def open_shards(data: DataConfig, mix: MixConfig, node_member: int = 0) -> dict[Lane, ShardSet]:
    """The shard sets of the lanes that have a share in the mix at any step, read by one reader.

    `node_member` is the rank's number on its node. DataError when a manifest is missing or does not add up.
    """
    lanes = data.lanes
    reader = Reader(data.read, node_member)
    used = {
        lane
        for _, state in mix.states()
        for lane, share in zip(lanes, lane_shares(state, list(lanes)), strict=True)
        if share > 0
    }
    return {lane: ShardSet.open(folder, reader) for lane, folder in lanes.items() if lane in used}


def _labels(stream: NDArray[np.int64], text_labels: NDArray[np.int64], record: NDArray[np.void]) -> dict[Stream, int]:
    sums = np.bincount(stream, weights=text_labels + record["image_ids"], minlength=len(STREAMS))  # exact: below 2**53
    return {name: int(total) for name, total in zip(STREAMS, sums, strict=True)}


def _check_fits(lane: Lane, shards: ShardSet, row_tokens: int) -> None:
    if shards.manifest.samples == 0:
        raise DataError(f"{lane.source} ({lane.stream}) has a share in the mix but its shard set holds no sample")
    longest = shards.manifest.shards.longest_tokens
    shard = int(longest.argmax())
    if longest[shard] > row_tokens and not SPECS[lane.stream].is_cut:
        raise DataError(
            f"sample {_key_of_longest(shards, shard)} of {shards.path(shard)} takes {longest[shard]} tokens, "
            f"more than batch.row_tokens={row_tokens}",
            f"take batch.row_tokens={longest[shard]} or more, or cut the samples shorter in the pipeline",
        )


def _key_of_longest(shards: ShardSet, shard: int) -> str:
    """The key of a shard's longest sample, its number where the shard cannot be read."""
    row = int(shards.shard_records(shard)["tokens"].argmax())
    try:
        return shard_keys(shards.folder, shards.manifest, shard)[row]
    except DataError:
        return str(row)
