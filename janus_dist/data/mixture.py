"""The mixture: the number of tokens or samples of each source in a step, by ratios that may change over the run.

A lane is one source of one stream; in every phase of the schedule it has a fixed quota per step, an exact fraction.
Invariants: `cumulative(step)` depends only on the settings and the step, costs the same at any step, and never
decreases. Counted in tokens, each lane is always within one token of its ideal. Counted in samples, each step takes its
exact number and each lane is within one sample of its ideal, counted from the first step of the phase.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from janus_dist.config.mix import Lane, MixConfig, lane_shares


@dataclass(frozen=True)
class Phase:
    """Quotas from `first_step` on: each step takes `per_step` units of each lane."""

    first_step: int
    per_step: tuple[Fraction, ...]


@dataclass(frozen=True)
class Mixture:
    """Quotas of each lane, as the module describes."""

    unit: str
    phases: tuple[Phase, ...]

    @classmethod
    def build(cls, mix: MixConfig, lanes: Sequence[Lane], units_per_step: Fraction) -> "Mixture":
        """Return the mixture of some lanes.

        `units_per_step` is the total of a step over all lanes, an integer when counted in samples.
        """
        phases = (
            Phase(first, tuple(units_per_step * share for share in lane_shares(state, lanes)))
            for first, state in mix.states()
        )
        return cls(mix.unit, tuple(phases))

    def cumulative(self, step: int) -> tuple[int, ...]:
        """Return the total units of each lane in all steps before `step` (counted from 0)."""
        index = bisect_right(self.phases, step, key=lambda phase: phase.first_step) - 1
        phase = self.phases[index]
        if self.unit == "samples":
            in_phase = _round_to_sum([quota * (step - phase.first_step) for quota in phase.per_step])
            return tuple(before + units for before, units in zip(self._at_phase_starts[index], in_phase, strict=True))
        return tuple(total.numerator // total.denominator for total in self.ideal(step))

    def ideal(self, step: int) -> tuple[Fraction, ...]:
        """Return the exact totals of each lane before `step`, which `cumulative` rounds to integers."""
        totals = [Fraction(0)] * len(self.phases[0].per_step)
        for phase, after in zip(self.phases, (*self.phases[1:], None), strict=True):
            last = step if after is None else min(step, after.first_step)
            steps = max(0, last - phase.first_step)
            totals = [total + quota * steps for total, quota in zip(totals, phase.per_step, strict=True)]
        return tuple(totals)

    @cached_property
    def _at_phase_starts(self) -> list[tuple[int, ...]]:
        """Return `cumulative` at the first step of each phase; only for samples."""
        totals = [(0,) * len(self.phases[0].per_step)]
        for phase, after in zip(self.phases, self.phases[1:], strict=False):
            in_phase = _round_to_sum([quota * (after.first_step - phase.first_step) for quota in phase.per_step])
            totals.append(tuple(before + units for before, units in zip(totals[-1], in_phase, strict=True)))
        return totals


def _round_to_sum(ideals: Sequence[Fraction]) -> list[int]:
    """Return the ideals as integers with the exact sum: those with the largest fractions are rounded up."""
    rounded = [ideal.numerator // ideal.denominator for ideal in ideals]
    missing = int(sum(ideals)) - sum(rounded)
    by_fraction = sorted(range(len(ideals)), key=lambda lane: (rounded[lane] - ideals[lane], lane))
    for lane in by_fraction[:missing]:
        rounded[lane] += 1
    return rounded
