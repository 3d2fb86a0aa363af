"""Every metric of a training run, declared once: name, unit, meaning.

Invariant: what is not declared here cannot be recorded, and docs/metrics.md is this table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One column of metrics.jsonl."""

    name: str
    unit: str
    meaning: str


METRICS = (
    Metric("step", "", "optimizer steps done, this one included"),
    Metric("time", "s", "Unix time at the end of the step"),
    Metric("loss/all", "nats", "what the step minimised: the mean over labels or over streams (train.loss_mean)"),
    Metric("loss/understanding", "nats", "mean cross-entropy per text label of understanding documents"),
    Metric("loss/text", "nats", "mean cross-entropy per label of text documents"),
    Metric("loss/generation", "nats", "mean cross-entropy per VQ id"),
    Metric("validation/understanding", "nats", "as loss/understanding, of held-out samples, in steps that validate"),
    Metric("validation/text", "nats", "likewise"),
    Metric("validation/generation", "nats", "likewise"),
    Metric("optim/grad_norm", "", "norm of the gradient over all parameters, before clipping"),
    Metric("optim/lr", "", "learning rate of the step"),
    Metric(
        "optim/skipped_steps",
        "",
        "steps so far that changed nothing: a gradient not finite, a loss that is no number, a spike",
    ),
    Metric("perf/tokens_per_s", "1/s", "tokens of all ranks over the time of the step"),
    Metric("perf/tflops_per_rank", "TFLOP/s", "model FLOPs of the step over its time and the ranks"),
    Metric("perf/mfu", "share", "of the device's dense bfloat16 peak that this is; absent where none is known"),
    Metric("perf/step_s", "s", "time of the step, waiting for data included"),
    Metric("perf/data_wait", "share", "part of the step's time that the first rank waited for data"),
    Metric("perf/slowest_rank", "", "time of the slowest rank over the median of all for the same small work"),
    Metric(
        "mem/peak_gib",
        "GiB",
        "most memory that the first rank had since it started: on its GPU, or of its process where it has none",
    ),
    Metric(
        "mix/understanding", "share", "share of the stream in all tokens (or samples, mix.unit) since the first step"
    ),
    Metric("mix/text", "share", "likewise"),
    Metric("mix/generation", "share", "likewise"),
    Metric("batch/tokens", "", "tokens of the step, over all ranks"),
    Metric("batch/rows", "", "rows of the step"),
    Metric("batch/fill", "share", "tokens over the capacity of the rows"),
    Metric("batch/cuts", "", "texts cut at the end of a row"),
    Metric("batch/straggler_ratio", "", "cost of the slowest rank over the mean of all, by the plan's costs"),
    Metric("data/read_mib", "MiB", "what the first rank asked of the shards since it started"),
    Metric("data/retries", "", "requests of the first rank that were tried again since it started"),
    Metric("data/bad_samples", "", "damaged samples that the first rank met since it started"),
)
NAMES = frozenset(metric.name for metric in METRICS)
GAUGE_LABELS = ("project", "run")
"""Labels of every metric's gauge in Ray: `WANDB_PROJECT`, else `run.root`, and `run.name`."""


def as_markdown() -> str:
    """Return the table for docs/metrics.md."""
    lines = ["| metric | unit | meaning |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| `{m.name}` | {m.unit} | {m.meaning} |" for m in METRICS)]) + "\n"
