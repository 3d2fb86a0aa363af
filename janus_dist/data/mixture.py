"""The mixture: how many tokens or samples of each source a step takes, by ratios that may change over the run.

A lane is one source of one stream; in every phase of the schedule it has a fixed quota per step, an exact fraction.
Invariants: `cumulative(step)` depends on nothing but the settings and the step, costs the same at any step, and never
falls. Counted in tokens, each lane is within one token of its ideal for ever. Counted in samples, each step takes its
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
    """Steps from `first_step` on take `per_step` units of each lane."""

    first_step: int
    per_step: tuple[Fraction, ...]


@dataclass(frozen=True)
class Mixture:
    """Quotas of each lane; see the module."""

    unit: str
    phases: tuple[Phase, ...]

    @classmethod
    def build(cls, mix: MixConfig, lanes: Sequence[Lane], units_per_step: Fraction) -> "Mixture":
        """`units_per_step` is what a step takes of all lanes together, a whole number when counted in samples."""
        phases = (
            Phase(first, tuple(units_per_step * share for share in lane_shares(state, lanes)))
            for first, state in mix.states()
        )
        return cls(mix.unit, tuple(phases))

    def cumulative(self, step: int) -> tuple[int, ...]:
        """Units of each lane that all steps before `step` (counted from 0) take together."""
        number = bisect_right(self.phases, step, key=lambda phase: phase.first_step) - 1
        phase = self.phases[number]
        if self.unit == "samples":
            taken = _whole_numbers([quota * (step - phase.first_step) for quota in phase.per_step])
            return tuple(before + now for before, now in zip(self._at_phase_starts[number], taken, strict=True))
        return tuple(total.numerator // total.denominator for total in self.ideal(step))

    def ideal(self, step: int) -> tuple[Fraction, ...]:
        """What `cumulative` rounds to whole units."""
        totals = [Fraction(0)] * len(self.phases[0].per_step)
        for phase, after in zip(self.phases, (*self.phases[1:], None), strict=True):
            last = step if after is None else min(step, after.first_step)
            steps = max(0, last - phase.first_step)
            totals = [total + quota * steps for total, quota in zip(totals, phase.per_step, strict=True)]
        return tuple(totals)

    @cached_property
    def _at_phase_starts(self) -> list[tuple[int, ...]]:
        """What `cumulative` is at the first step of each phase; only for samples."""
        found = [(0,) * len(self.phases[0].per_step)]
        for phase, after in zip(self.phases, self.phases[1:], strict=False):
            taken = _whole_numbers([quota * (after.first_step - phase.first_step) for quota in phase.per_step])
            found.append(tuple(before + now for before, now in zip(found[-1], taken, strict=True)))
        return found


def _whole_numbers(ideals: Sequence[Fraction]) -> list[int]:
    """Each rounded down or up so that the sum is exact: those with the largest fractions are rounded up."""
    found = [ideal.numerator // ideal.denominator for ideal in ideals]
    left = int(sum(ideals)) - sum(found)
    by_fraction = sorted(range(len(ideals)), key=lambda lane: (found[lane] - ideals[lane], lane))
    for lane in by_fraction[:left]:
        found[lane] += 1
    return found
