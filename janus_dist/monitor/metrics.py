"""Every metric of a training run, declared once: name, unit, meaning.

Invariant: a metric that is not declared here cannot be recorded, and docs/metrics.md holds this table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """Name, unit and meaning of one value in the lines of metrics.jsonl."""

    name: str
    unit: str
    meaning: str


METRICS = (
    Metric("step", "", "number of optimizer steps so far, including this one"),
    Metric("time", "s", "Unix time at the end of the step"),
    Metric("loss/all", "nats", "loss that the step minimised: mean over labels or over streams (train.loss_mean)"),
    Metric("loss/understanding", "nats", "mean cross-entropy per text label of understanding documents"),
    Metric("loss/text", "nats", "mean cross-entropy per label of text documents"),
    Metric("loss/generation", "nats", "mean cross-entropy per VQ id of generation documents"),
    Metric(
        "validation/understanding",
        "nats",
        "mean cross-entropy per text label of held-out understanding documents; only at steps that validate",
    ),
    Metric(
        "validation/text",
        "nats",
        "mean cross-entropy per label of held-out text documents; only at steps that validate",
    ),
    Metric(
        "validation/generation",
        "nats",
        "mean cross-entropy per VQ id of held-out generation documents; only at steps that validate",
    ),
    Metric("optim/grad_norm", "", "L2 norm of the gradient of all parameters before clipping"),
    Metric("optim/lr", "", "learning rate of the step"),
    Metric(
        "optim/skipped_steps",
        "",
        "number of steps so far that left the weights unchanged: a loss or gradient was NaN, infinite or a spike",
    ),
    Metric("perf/tokens_per_s", "1/s", "tokens of all ranks divided by the time of the step"),
    Metric("perf/tflops_per_rank", "TFLOP/s", "model FLOPs of the step divided by its time and by the number of ranks"),
    Metric(
        "perf/mfu",
        "share",
        "perf/tflops_per_rank divided by the device's dense bfloat16 peak; absent when the peak is not known",
    ),
    Metric("perf/step_s", "s", "time of the step, including the wait for data"),
    Metric("perf/data_wait", "share", "share of the step's time that rank 0 waited for data"),
    Metric(
        "perf/slowest_rank",
        "",
        "time of the slowest rank for a small fixed workload divided by the median over all ranks",
    ),
    Metric(
        "mem/peak_gib",
        "GiB",
        "peak memory of rank 0 since it started: on its GPU, or of its process on a machine without a GPU",
    ),
    Metric(
        "mix/understanding",
        "share",
        "share of the understanding stream in all tokens (or samples, see mix.unit) since the first step",
    ),
    Metric(
        "mix/text",
        "share",
        "share of the text stream in all tokens (or samples, see mix.unit) since the first step",
    ),
    Metric(
        "mix/generation",
        "share",
        "share of the generation stream in all tokens (or samples, see mix.unit) since the first step",
    ),
    Metric("batch/tokens", "", "number of tokens of the step over all ranks"),
    Metric("batch/rows", "", "number of packed rows of the step over all ranks"),
    Metric("batch/fill", "share", "tokens divided by the capacity of the rows"),
    Metric("batch/cuts", "", "number of texts that were cut at the end of a row"),
    Metric("batch/straggler_ratio", "", "largest planned cost of a rank divided by the mean over all ranks"),
    Metric("data/read_mib", "MiB", "data that rank 0 requested from the shards since it started"),
    Metric("data/retries", "", "number of requests that rank 0 retried since it started"),
    Metric("data/bad_samples", "", "number of damaged samples that rank 0 read since it started"),
)
NAMES = frozenset(metric.name for metric in METRICS)
GAUGE_LABELS = ("project", "run")
"""Labels of the gauge of every metric in Ray: `WANDB_PROJECT` (or `run.root` when it is not set), and `run.name`."""


def as_markdown() -> str:
    """Return the table of all metrics for docs/metrics.md."""
    lines = ["| metric | unit | meaning |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| `{m.name}` | {m.unit} | {m.meaning} |" for m in METRICS)]) + "\n"
