"""When an input has too many bad records: by those that are done, those that running jobs report, and what is expected.

Invariant: a run is stopped early only where no hope is left that the share of bad records will be as allowed.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from data_pipelines.explain import explain
from data_pipelines.job import InputWork
from data_pipelines.outcome import shown_reasons
from data_pipelines.record import Unit
from data_pipelines.reports import Report
from data_pipelines.task import Summary
from janus_dist.errors import DataError
from janus_dist.inspection.inspect import QUARANTINE

JUDGED_RECORDS = 10_000
"""From so many records on, `max_bad_share` is held against those read so far, not against all that there will be."""
DOUBT = 1.25
"""How far the number of records expected by bytes of input may be off."""


class Judge:
    """Whether too many records are bad."""

    def __init__(self, input_work: InputWork):
        self.input_work, self.expected = input_work, 0.0
        self.records_done = 0
        self.bad_done, self.bad_running = Counter[str](), Counter[str]()
        """By kind of reason, of jobs that are done and of those that run."""
        self.records_running = 0
        self.reasons: dict[str, str] = {}
        """The first reason of each kind."""

    @property
    def records(self) -> int:
        return self.records_done + self.records_running

    @property
    def bad(self) -> int:
        return self.bad_done.total() + self.bad_running.total()

    def add(self, summary: Summary, share_done: float) -> None:
        """`share_done`: of the input, by bytes."""
        self.records_done += summary.records
        self.bad_done.update(summary.bad_kinds)
        self.reasons = {**summary.reasons, **self.reasons}
        self.expected = self.records / share_done

    def watch(self, running: Iterable[Report], share_done: float) -> None:
        """Take what running jobs report; `share_done` of the input, by bytes, those jobs included."""
        self.records_running, self.bad_running = 0, Counter()
        for report in running:
            self.records_running += report.records
            self.bad_running.update(report.bad)
            self.reasons = {**report.reasons, **self.reasons}
        self.expected = self.records / share_done

    @property
    def too_many(self) -> bool:
        """Whether no hope is left, by what is expected still to come, generously."""
        return self._exceeds(max(self.records, min(DOUBT * self.expected, JUDGED_RECORDS)))

    @property
    def failed(self) -> bool:
        """Whether too many of the records read are bad."""
        return self._exceeds(self.records)

    def check(self, units: Sequence[Unit] = ()) -> None:
        """DataError when too many of the records read are bad; `units` are looked at when nearly all fail alike."""
        if self.failed:
            work, bad = self.input_work, self.bad_done + self.bad_running
            reason = explain(work, units, bad, self.records)
            raise DataError(
                f"{work.name}: {self.bad} of {self.records} records are bad, more than pipeline.max_bad_share="
                f"{work.recipe.pipeline.max_bad_share:g} allows: {'; '.join(shown_reasons(self.reasons, bad))}",
                f"{f'{reason}. Else ' if reason else ''}see {work.folder}/{QUARANTINE}; "
                "repair the source, or raise pipeline.max_bad_share, "
                "and run the same command again: it reads anew what had bad records, and keeps the rest",
            )

    def _exceeds(self, records: float) -> bool:
        return self.bad > self.input_work.recipe.pipeline.max_bad_share * records
