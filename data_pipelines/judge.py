"""The decision whether an input has too many bad records: by finished jobs, reports of running jobs, and an estimate.

Invariant: a run is stopped early only when the share of bad records can hardly become acceptable any more.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from data_pipelines.explain import explain
from data_pipelines.job import InputWork
from data_pipelines.outcome import shown_reasons
from data_pipelines.record import Unit
from data_pipelines.reports import Report
from data_pipelines.task import JobSummary
from janus_dist.errors import DataError
from janus_dist.inspection.inspect import QUARANTINE

JUDGED_RECORDS = 10_000
"""Records from which on `max_bad_share` applies to those read so far, not to the expected total."""
DOUBT = 1.25
"""Factor by which the number of records that is estimated from bytes of input may be too low."""


class BadRecordJudge:
    """Counts of good and bad records of an input, and the decision whether too many are bad."""

    def __init__(self, input_work: InputWork):
        self.input_work, self.expected = input_work, 0.0
        self.records_done = 0
        self.bad_done, self.bad_running = Counter[str](), Counter[str]()
        """Bad records by kind of reason, of finished and of running jobs."""
        self.records_running = 0
        self.reasons: dict[str, str] = {}
        """The first reason of each kind."""

    @property
    def records(self) -> int:
        """Return the number of records read, also by running jobs."""
        return self.records_done + self.records_running

    @property
    def bad(self) -> int:
        """Return the number of bad records, also those of running jobs."""
        return self.bad_done.total() + self.bad_running.total()

    def add(self, summary: JobSummary, share_done: float) -> None:
        """Add a finished job. `share_done`: share of the input that is done, by bytes."""
        self.records_done += summary.records
        self.bad_done.update(summary.bad_kinds)
        self.reasons = {**summary.reasons, **self.reasons}
        self.expected = self.records / share_done

    def watch(self, running: Iterable[Report], share_done: float) -> None:
        """Replace the reports of running jobs. `share_done`: share of the input that is done, by bytes, with theirs."""
        self.records_running, self.bad_running = 0, Counter()
        for report in running:
            self.records_running += report.records
            self.bad_running.update(report.bad)
            self.reasons = {**report.reasons, **self.reasons}
        self.expected = self.records / share_done

    @property
    def too_many(self) -> bool:
        """Return whether too many records are bad even if all that are generously expected to follow are good."""
        return self._exceeds(max(self.records, min(DOUBT * self.expected, JUDGED_RECORDS)))

    @property
    def failed(self) -> bool:
        """Return whether too many of the records read are bad."""
        return self._exceeds(self.records)

    def check(self, units: Sequence[Unit] = ()) -> None:
        """Raise DataError when too many of the records read are bad.

        `units`: units of the input, of which some are read to explain why nearly all records fail for one reason.
        """
        if self.failed:
            work, bad = self.input_work, self.bad_done + self.bad_running
            reason = explain(work, units, bad, self.records)
            raise DataError(
                f"{work.name}: {self.bad} of {self.records} records are bad, more than pipeline.max_bad_share="
                f"{work.recipe.pipeline.max_bad_share:g} allows: {'; '.join(shown_reasons(self.reasons, bad))}",
                f"{f'{reason}. Else ' if reason else ''}see {work.folder}/{QUARANTINE}; "
                "repair the source, or raise pipeline.max_bad_share, "
                "and run the same command again: it repeats the jobs with bad records and keeps the others",
            )

    def _exceeds(self, records: float) -> bool:
        return self.bad > self.input_work.recipe.pipeline.max_bad_share * records
