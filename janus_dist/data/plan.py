"""The plan: what is trained at step s, as a pure function of (seed, manifests, mixture, step).

Nothing is carried from one step to the next: a step owns the samples whose start lies between the cumulative quotas
of two steps on its stream's endless line of epochs. Invariant: `Plan.step(s)` is the same for every number of ranks,
on every machine, whether or not steps before s were ever planned.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus_dist.config.data import STREAMS, BatchConfig, MixConfig, Stream
from janus_dist.data import order, packing
from janus_dist.data.manifest import ShardSet
from janus_dist.data.mixture import Mixture
from janus_dist.errors import DataError

PLAN_VERSION = 1  # goes into the digest; raise it with every change of what a plan gives


@dataclass(frozen=True)
class StepPlan:
    """The documents of one step in their global order, D of them, and the rows they are packed into."""

    step: int
    stream: NDArray[np.int64]
    """[D] index into STREAMS."""
    sample: NDArray[np.int64]
    """[D] index of the sample in its shard set."""
    epoch: NDArray[np.int64]
    """[D] how often its stream has been through before."""
    tokens: NDArray[np.int64]
    """[D] row positions that the document takes."""
    drop_prompt: NDArray[np.bool_]
    """[D] whether a generation document's prompt is replaced by pad tokens."""
    rows: list[list[int]]
    """Documents of each row."""
    labels: dict[Stream, int]
    """Labels that each stream contributes to the loss of this step, over all ranks."""

    @property
    def num_tokens(self) -> int:
        return int(self.tokens.sum())

    def stream_tokens(self, stream: Stream) -> int:
        return int(self.tokens[self.stream == STREAMS.index(stream)].sum())

    def digest(self) -> str:
        """A hash of everything in the step, for golden tests and comparisons across worlds."""
        state = hashlib.sha256()
        for values in (self.stream, self.sample, self.epoch, self.tokens, self.drop_prompt):
            state.update(np.ascontiguousarray(values).tobytes())
        state.update(json.dumps([self.rows, self.labels], sort_keys=True).encode())
        return state.hexdigest()


class StreamLine:
    """One stream as an endless line of samples: epochs one behind the other, each in its own order."""

    def __init__(self, shards: ShardSet, seed: int, stream: Stream):
        self.shards = shards
        self.seed = seed
        self.stream = STREAMS.index(stream)
        self.tokens = shards.records["tokens"].astype(np.int64)
        self.total_tokens = int(self.tokens.sum())
        self._epoch = lru_cache(maxsize=2)(self._build_epoch)

    def take(self, unit: str, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(samples, epochs) that start in [start, stop) of the line, counted in tokens or samples."""
        length = self.total_tokens if unit == "tokens" else len(self.tokens)
        samples, epochs = [], []
        for epoch in range(start // length, -(-stop // length)):
            indices, starts = self._epoch(epoch)
            low, high = max(start - epoch * length, 0), min(stop - epoch * length, length)
            if unit == "tokens":
                low, high = (int(np.searchsorted(starts, bound)) for bound in (low, high))
            samples.append(indices[low:high])
            epochs.append(np.full(high - low, epoch, dtype=np.int64))
        if not samples:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        return np.concatenate(samples), np.concatenate(epochs)

    def _build_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample indices in this epoch's order, and the token position where each starts."""
        size = len(self.tokens)
        indices = order.permute(np.arange(size), size, order.key(self.seed, self.stream, epoch))
        ends = np.cumsum(self.tokens[indices])
        return indices, ends - self.tokens[indices]


class Plan:
    """The plan of one run."""

    def __init__(
        self,
        shards: Mapping[Stream, ShardSet],
        mix: MixConfig,
        batch: BatchConfig,
        seed: int,
        answers_only: bool,
    ):
        """`shards` holds a shard set for every stream with a share in `mix`; DataError if one cannot be planned."""
        self.mix, self.batch, self.seed, self.answers_only = mix, batch, seed, answers_only
        self.mixture = Mixture.build(mix, batch)
        self.lines: dict[Stream, StreamLine] = {name: StreamLine(found, seed, name) for name, found in shards.items()}
        self.manifests = {name: found.manifest.digest for name, found in shards.items()}
        for name, line in self.lines.items():
            _check_fits(name, line.tokens, batch.row_tokens)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the plan is a function of, beside the step."""
        return {
            "version": PLAN_VERSION,
            "seed": self.seed,
            "mix": self.mix.model_dump(),
            "batch": self.batch.model_dump(exclude={"micro_rows"}),
            "answers_only": self.answers_only,
            "manifests": self.manifests,
        }

    @property
    def digest(self) -> str:
        """Two runs with the same digest train the same documents at every step."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def step(self, step: int) -> StepPlan:
        """What step `step` (counted from 0) trains on."""
        parts = []
        for name, line in self.lines.items():
            start, stop = self.mixture.cumulative(name, step), self.mixture.cumulative(name, step + 1)
            samples, epochs = line.take(self.mixture.unit, start, stop)
            parts.append((np.full(len(samples), STREAMS.index(name), dtype=np.int64), samples, epochs))
        stream, sample, epoch = (np.concatenate(column) for column in zip(*parts, strict=True))
        tokens = np.zeros(len(sample), dtype=np.int64)
        labels: dict[Stream, int] = dict.fromkeys(STREAMS, 0)
        for name, line in self.lines.items():
            mine = stream == STREAMS.index(name)
            tokens[mine] = line.tokens[sample[mine]]
            labels[name] = self._labels(name, line.shards.records[sample[mine]])
        return StepPlan(
            step,
            stream,
            sample,
            epoch,
            tokens,
            self._drops(stream, sample, epoch),
            packing.pack(tokens, self.batch.row_tokens),
            labels,
        )

    def _labels(self, stream: Stream, records: NDArray[np.void]) -> int:
        if stream == "generation":
            return int(records["image_ids"].astype(np.int64).sum())
        column = "answer_labels" if self.answers_only else "text_labels"
        return int(records[column].astype(np.int64).sum())

    def _drops(
        self, stream: NDArray[np.int64], sample: NDArray[np.int64], epoch: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        generation = STREAMS.index("generation")
        drops = np.zeros(len(stream), dtype=np.bool_)
        for number in np.unique(epoch[stream == generation]).tolist():
            mine = (stream == generation) & (epoch == number)
            # one more word than the order's key, so that order and drops are independent
            drops[mine] = order.chance(sample[mine], order.key(self.seed, generation, number, 1)) < self.batch.cfg_drop
        return drops


def row_costs(plan: StepPlan) -> NDArray[np.float64]:
    """Cost of each row of a step: its tokens, for now; what is dealt to ranks is balanced by it."""
    return np.array([plan.tokens[row].sum() for row in plan.rows], dtype=np.float64)


def _check_fits(stream: Stream, tokens: NDArray[np.int64], row_tokens: int) -> None:
    if len(tokens) == 0:
        raise DataError(f"the {stream} stream has a share in the mix but its shard set holds no sample")
    longest = int(tokens.argmax())
    if tokens[longest] > row_tokens:
        raise DataError(
            f"sample {longest} of the {stream} stream takes {tokens[longest]} tokens, "
            f"more than batch.row_tokens={row_tokens}",
            f"take batch.row_tokens={tokens[longest]} or more, or cut the samples shorter in the pipeline",
        )
