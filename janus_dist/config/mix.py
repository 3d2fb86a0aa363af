"""Settings of the mixture of streams and sources, and its changes during a run."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from janus_dist.config.base import Config, SettingFault, refuse
from janus_dist.config.streams import STREAMS, Stream

PRECISION = 10**6
"""Largest denominator of the fraction that a ratio is converted to: 0.3 in YAML becomes 3/10."""


class Lane(NamedTuple):
    """One source of one stream."""

    stream: Stream
    source: str


class MixPhase(Config):
    """Change of the mixture during a run; ratios and weights that it does not name are kept."""

    from_step: PositiveInt
    """First step with the change."""
    understanding: NonNegativeFloat | None = None
    """Ratio of the understanding stream from that step on; null keeps it."""
    text: NonNegativeFloat | None = None
    """Ratio of the text stream from that step on; null keeps it."""
    generation: NonNegativeFloat | None = None
    """Ratio of the generation stream from that step on; null keeps it."""
    sources: dict[str, NonNegativeFloat] = Field(default={})
    """Weights of sources within their streams from that step on; those of other sources are kept."""


class MixConfig(Config):
    """Share of each stream in a step."""

    unit: Literal["tokens", "samples"] = "tokens"
    """Unit of the ratios of streams."""
    understanding: NonNegativeFloat
    """Ratio of the understanding stream, in `unit`; 0 leaves it out."""
    text: NonNegativeFloat
    """Ratio of the text stream, in `unit`; 0 leaves it out."""
    generation: NonNegativeFloat
    """Ratio of the generation stream, in `unit`; 0 leaves it out."""
    sources: dict[str, NonNegativeFloat] = Field(default={})
    """Weights of sources (`data.sources`) within their streams; 1 for a source that is not named."""
    then: tuple[MixPhase, ...] = ()
    """Changes during the run, in the order of their `from_step`."""

    @property
    def shares(self) -> dict[Stream, float]:
        """Return the ratios before any change as shares that add up to 1, in the order of `STREAMS`."""
        weights: dict[Stream, float] = {name: getattr(self, name) for name in STREAMS}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    def states(self) -> Iterator[tuple[int, "MixConfig"]]:
        """Yield (first step, mixture from that step on) for the beginning and each change; `then` is empty in each."""
        state = self.model_copy(update={"then": ()})
        yield 0, state
        for phase in self.then:
            changed = {name: getattr(phase, name) for name in STREAMS if getattr(phase, name) is not None}
            state = state.model_copy(update={**changed, "sources": {**state.sources, **phase.sources}})
            yield phase.from_step, state

    @model_validator(mode="after")
    def _consistent(self) -> "MixConfig":
        refuse(self._faults())
        return self

    def _faults(self) -> Iterator[SettingFault]:
        before = 0
        for phase in self.then:
            if phase.from_step <= before:
                message = f"then: from_step={phase.from_step} follows {before}; put changes in the order of steps"
                yield SettingFault(("then",), message)
            before = phase.from_step
        for first, state in self.states():
            if not any(getattr(state, name) for name in STREAMS):
                message = f"all three ratios are 0 from step {first} on; give at least one stream a share"
                yield SettingFault(("then",) if first else (), message)


def lane_shares(state: MixConfig, lanes: Sequence[Lane]) -> tuple[Fraction, ...]:
    """Return the share of each lane in a step: the stream's ratio times the source's weight. Shares add up to 1."""
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


def mix_faults(mix: MixConfig, lanes: Sequence[Lane], samples: int | None) -> Iterator[SettingFault]:
    """Yield the faults of a mixture of these lanes.

    `samples` is the number of samples in a step, or None when the unit of the mixture is tokens.
    """
    yield from _unknown_source_faults(mix, {lane.source for lane in lanes})
    for first, state in mix.states():
        idle = _idle_streams(state, lanes)
        for stream in idle:
            message = f"mix.{stream}: all its sources have weight 0 from step {first} on; give one a weight"
            yield SettingFault((f"mix.{stream}", "mix.sources"), message)
        if samples is not None and not idle:
            yield from _sample_faults(state, lanes, samples, first)


def _unknown_source_faults(mix: MixConfig, names: set[str]) -> Iterator[SettingFault]:
    """Yield a fault for each weighted source that is not among the names of sources."""
    changes = [mix.sources, *(phase.sources for phase in mix.then)]
    for name in {name: None for change in changes for name in change}:
        if name not in names:
            message = f"mix.sources: {name!r} is not in data.sources, which has {', '.join(sorted(names))}"
            yield SettingFault(("mix.sources" if name in mix.sources else "mix.then", "data.sources"), message)


def _idle_streams(state: MixConfig, lanes: Sequence[Lane]) -> list[Stream]:
    """Return the streams with a ratio above 0 whose sources all have weight 0."""
    weighted = {lane.stream for lane in lanes if state.sources.get(lane.source, 1.0)}
    return [stream for stream in STREAMS if getattr(state, stream) and stream not in weighted]


def _sample_faults(state: MixConfig, lanes: Sequence[Lane], samples: int, first: int) -> Iterator[SettingFault]:
    """Yield a fault for each lane with less than one sample a step.

    From one sample per step on, rounding keeps every lane within one sample of its ideal.
    """
    for lane, share in zip(lanes, lane_shares(state, lanes), strict=True):
        if 0 < samples * share < 1:
            message = (
                f"batch.samples={samples} gives {lane.source} {float(samples * share):.3g} samples a step from step "
                f"{first} on, but it needs at least 1; set batch.samples={-int(-1 // share)} or mix.unit=tokens"
            )
            yield SettingFault(("batch.samples", "mix.unit"), message)


def _fraction(ratio: float) -> Fraction:
    return Fraction(ratio).limit_denominator(PRECISION)
