"""Report at the end of a run: counts of refused and dropped records, and the error of a run without a sample.

Invariant: a shard set without a sample is never committed.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from data_pipelines.explain import explain
from data_pipelines.gather import Gathered
from data_pipelines.inputs.columns import check_rule_columns, rule_columns
from data_pipelines.inputs.contents import contents
from data_pipelines.job import InputWork
from data_pipelines.record import Unit
from data_pipelines.task import JobSummary
from janus_dist.errors import DataError

SHOWN_COUNTS = 8
"""Kinds of reasons whose counts a line lists."""
SHOWN_REASONS = 3
"""Reasons that a message lists."""
WATCHED_RECORDS = 10_000
"""Records without a value for a rule, after which entries of the remaining input are sampled."""

log = logging.getLogger("janus_dist")


class RuleWatch:
    """A check that ends a run early when a rule needs a column that the input does not have."""

    def __init__(self, input_work: InputWork, units: Sequence[Unit]):
        self.input_work, self.units, self.columns = input_work, units, set[str]()
        self.records = 0
        self.is_settled = not rule_columns(input_work.source.where)

    def add(self, summary: JobSummary) -> None:
        """Add a finished job.

        Raises DataError when after WATCHED_RECORDS neither the records read nor the first entries of units that are
        spread evenly over the input have a value for a rule.
        """
        if self.is_settled:
            return
        self.records += summary.records - summary.bad
        self.columns |= summary.columns or set()
        if self.records >= WATCHED_RECORDS:
            self.is_settled = True
            check_rule_columns(
                self.input_work.name, self.input_work.source.where, {*self.columns, *self._columns_elsewhere()}
            )

    def _columns_elsewhere(self) -> set[str]:
        """Return the names in sampled units of the input; empty when all rules have their columns."""
        if all(name in self.columns for name in rule_columns(self.input_work.source.where)):
            return set()
        return set(contents(self.input_work.source, self.units))


def check_outcome(input_work: InputWork, gathered: Gathered, units: Sequence[Unit] = ()) -> None:
    """Raise DataError when a rule needs a column that no record has, or when no sample was made.

    `units`: units of the input, of which some are read to explain why nearly all records failed for one reason.
    """
    if gathered.columns is not None and gathered.records > gathered.bad.total():
        check_rule_columns(input_work.name, input_work.source.where, gathered.columns)
    if any(entry.samples for entry in gathered.entries):
        return
    if not gathered.records:
        raise DataError(
            f"{input_work.name}: the input has no records, so nothing can be trained",
            f"see pipeline.inputs.{input_work.name}.path={_paths(input_work)} (format={input_work.source.format})",
        )
    reasons = [text for text in (_refused_line(gathered.bad), _dropped_line(gathered.dropped)) if text]
    reasons += shown_reasons(gathered.reasons, gathered.bad)
    reason = explain(input_work, units, gathered.bad, gathered.records)
    hints = [reason] if reason else []
    if gathered.bad:
        hints.append(f"`janus data quarantine {input_work.folder}` lists the refused records")
    if gathered.dropped:
        hints.append(f"loosen pipeline.inputs.{input_work.name}.where")
    raise DataError(
        f"{input_work.name}: none of {gathered.records:,} records became a sample: {'; '.join(reasons)}",
        f"{'; '.join(hints)}; nothing was committed",
    )


def shown_reasons(reasons: Mapping[str, str], bad: Mapping[str, int]) -> list[str]:
    """Return one reason of each of the most frequent kinds; `reasons` by kind, `bad` records by kind."""
    return [reasons[kind] for kind, _ in Counter(bad).most_common(SHOWN_REASONS) if kind in reasons]


def report_counts(input_work: InputWork, gathered: Gathered) -> None:
    """Print how many records were refused and dropped, by reason, and warn of losses of unknown size."""
    for line in filter(None, (_refused_line(gathered.bad), _dropped_line(gathered.dropped))):
        log.info("%s: %s", input_work.name, line)
    if gathered.cut_short:
        log.warning(
            "%s: %d files end too early and lack an unknown number of records: see `janus data quarantine %s`",
            *(input_work.name, gathered.cut_short, input_work.folder),
        )


def _refused_line(bad: Mapping[str, int]) -> str:
    """Return the counts of refused records by kind of reason, the most frequent first; empty without any."""
    return f"refused: {_counts(bad)}" if bad else ""


def _dropped_line(dropped: Mapping[str, int]) -> str:
    """Return the counts of dropped records by rule, the most frequent first; empty without any."""
    return f"dropped by rules: {_counts(dropped)}" if dropped else ""


def _counts(counts: Mapping[str, int]) -> str:
    """Format counts as `too small (12), missing (3)`."""
    ordered = Counter(counts).most_common()
    other_records = sum(count for _, count in ordered[SHOWN_COUNTS:])
    parts = [f"{name} ({count:,})" for name, count in ordered[:SHOWN_COUNTS]]
    return ", ".join([*parts, f"{len(ordered) - SHOWN_COUNTS} others ({other_records:,})"] if other_records else parts)


def _paths(input_work: InputWork) -> str:
    return input_work.source.path if isinstance(input_work.source.path, str) else ", ".join(input_work.source.path)
