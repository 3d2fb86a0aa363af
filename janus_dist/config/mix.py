"""How streams and their sources are mixed, and how that changes over the run."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from janus_dist.config.base import Config, Fault, refuse
from janus_dist.config.streams import STREAMS, Stream

PRECISION = 10**6
"""Largest denominator that a ratio is read with; what YAML gives as 0.3 is 3/10."""


class Lane(NamedTuple):
    """One source of one stream."""

    stream: Stream
    source: str


class MixPhase(Config):
    """A change of the mixture; what it does not name stays as it was."""

    from_step: PositiveInt
    """The first step with the change."""
    understanding: NonNegativeFloat | None = None
    """Ratio of the stream from then on."""
    text: NonNegativeFloat | None = None
    """Likewise."""
    generation: NonNegativeFloat | None = None
    """Likewise."""
    sources: dict[str, NonNegativeFloat] = Field(default={})
    """Weights of sources within their streams from then on."""


class MixConfig(Config):
    """How much of each stream a step takes."""

    unit: Literal["tokens", "samples"] = "tokens"
    """What the ratio counts."""
    understanding: NonNegativeFloat
    """Ratio of the understanding stream, in `unit`; 0 leaves it out."""
    text: NonNegativeFloat
    """Ratio of the text stream."""
    generation: NonNegativeFloat
    """Ratio of the generation stream."""
    sources: dict[str, NonNegativeFloat] = Field(default={})
    """Weight of a source (`data.sources`) within its stream; 1 when not named."""
    then: tuple[MixPhase, ...] = ()
    """Changes during the run, in the order of their `from_step`."""

    @property
    def shares(self) -> dict[Stream, float]:
        """The ratio before any change as shares that add up to 1, in the order of `STREAMS`."""
        weights: dict[Stream, float] = {name: getattr(self, name) for name in STREAMS}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    def states(self) -> Iterator[tuple[int, "MixConfig"]]:
        """(first step, mixture from then on), without further changes."""
        state = self.model_copy(update={"then": ()})
        yield 0, state
        for phase in self.then:
            changed = {name: getattr(phase, name) for name in STREAMS if getattr(phase, name) is not None}
            state = state.model_copy(update={**changed, "sources": {**state.sources, **phase.sources}})
            yield phase.from_step, state

    @model_validator(mode="after")
    def _some(self) -> "MixConfig":
        refuse(self._faults())
        return self

    def _faults(self) -> Iterator[Fault]:
        before = 0
        for phase in self.then:
            if phase.from_step <= before:
                message = f"then: from_step={phase.from_step} stands after {before}; put changes in the order of steps"
                yield Fault(("then",), message)
            before = phase.from_step
        for first, state in self.states():
            if not any(getattr(state, name) for name in STREAMS):
                message = f"from step {first} on all three ratios are 0; give at least one stream a share"
                yield Fault(("then",) if first else (), message)


def lane_shares(state: MixConfig, lanes: Sequence[Lane]) -> tuple[Fraction, ...]:
    """Share of each lane in a step, adding up to 1: the stream's ratio, and in it the source's weight."""
    streams = {name: _fraction(getattr(state, name)) for name in STREAMS}
    weights = [_fraction(state.sources.get(lane.source, 1.0)) for lane in lanes]
    totals = dict.fromkeys(STREAMS, Fraction(0))
    for lane, weight in zip(lanes, weights, strict=True):
        totals[lane.stream] += weight
    all_streams = sum(streams.values())
    return tuple(
        streams[lane.stream] / all_streams * weight / totals[lane.stream] if weight else Fraction(0)
        for lane, weight in zip(lanes, weights, strict=True)
    )


def mix_faults(mix: MixConfig, lanes: Sequence[Lane], samples: int | None) -> Iterator[Fault]:
    """What is wrong with a mixture of these lanes; `samples` are those of a step when they are the unit."""
    names = {lane.source for lane in lanes}
    changes = [mix.sources, *(phase.sources for phase in mix.then)]
    for name in {name: None for change in changes for name in change}:
        if name not in names:
            message = f"mix.sources: there is no source {name!r} in data.sources; there are {', '.join(sorted(names))}"
            yield Fault(("mix.sources" if name in mix.sources else "mix.then", "data.sources"), message)
    for first, state in mix.states():
        weighted = {lane.stream for lane in lanes if state.sources.get(lane.source, 1.0)}
        idle = [stream for stream in STREAMS if getattr(state, stream) and stream not in weighted]
        for stream in idle:
            message = f"mix.{stream}: from step {first} on all its sources have weight 0; give one a weight"
            yield Fault((f"mix.{stream}", "mix.sources"), message)
        if samples is not None and not idle:
            yield from _sample_faults(state, lanes, samples, first)


def _sample_faults(state: MixConfig, lanes: Sequence[Lane], samples: int, first: int) -> Iterator[Fault]:
    """From one sample per step on, rounding keeps every lane within one sample of its ideal."""
    for lane, share in zip(lanes, lane_shares(state, lanes), strict=True):
        if 0 < samples * share < 1:
            message = (
                f"batch.samples={samples} gives {lane.source} {float(samples * share):.3g} samples a step from step "
                f"{first} on, and it takes at least 1; take batch.samples={-int(-1 // share)} or mix.unit=tokens"
            )
            yield Fault(("batch.samples", "mix.unit"), message)


def _fraction(ratio: float) -> Fraction:
    return Fraction(ratio).limit_denominator(PRECISION)
