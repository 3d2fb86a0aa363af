"""The mixture: how many tokens or samples of each stream a step takes.

Cumulative quotas are exact rational arithmetic rounded down, so the realised total of a stream is within one unit of
its ideal at every step, for ever. Counted in samples, the largest stream takes what rounding left over, so that every
step has its exact number. Invariant: `cumulative(stream, step)` depends on nothing but the settings and the step, and
never falls.
"""

from dataclasses import dataclass
from fractions import Fraction

from janus_dist.config.data import STREAMS, BatchConfig, MixConfig, Stream


@dataclass(frozen=True)
class Mixture:
    """Ideal quota per step of each stream, in tokens or samples."""

    unit: str
    per_step: dict[Stream, Fraction]

    @classmethod
    def build(cls, mix: MixConfig, batch: BatchConfig) -> "Mixture":
        weights: dict[Stream, Fraction] = {
            name: Fraction(getattr(mix, name)).limit_denominator(10**6) for name in STREAMS
        }
        if mix.unit == "samples":
            assert batch.samples is not None
            total = Fraction(batch.samples)
        else:
            total = batch.rows * batch.row_tokens * Fraction(batch.fill).limit_denominator(10**6)
        per_step: dict[Stream, Fraction] = {
            name: total * weight / sum(weights.values()) for name, weight in weights.items()
        }
        return cls(mix.unit, per_step)

    def cumulative(self, stream: Stream, step: int) -> int:
        """Units of the stream that all steps before `step` (counted from 0) take together."""
        if self.unit == "samples" and stream == self._largest:
            others = sum(self._rounded_down(name, step) for name in self.per_step if name != stream)
            return int(sum(self.per_step.values()) * step) - others
        return self._rounded_down(stream, step)

    @property
    def _largest(self) -> Stream:
        return max(self.per_step, key=lambda name: self.per_step[name])

    def _rounded_down(self, stream: Stream, step: int) -> int:
        quota = self.per_step[stream] * step
        return quota.numerator // quota.denominator
