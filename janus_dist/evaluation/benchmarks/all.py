"""All benchmarks by their names in `evaluate.benchmarks`. Invariant: every name that the recipe accepts is here."""

from janus_dist.config.evaluate import BenchmarkName
from janus_dist.evaluation.benchmarks.geneval import GENEVAL
from janus_dist.evaluation.benchmarks.gqa import GQA
from janus_dist.evaluation.benchmarks.mmbench import MMBENCH
from janus_dist.evaluation.benchmarks.mme import MME
from janus_dist.evaluation.benchmarks.mmvet import MMVET
from janus_dist.evaluation.benchmarks.pope import POPE
from janus_dist.evaluation.benchmarks.question import Benchmark
from janus_dist.evaluation.benchmarks.seed import SEED

BENCHMARKS: dict[BenchmarkName, Benchmark] = {
    "geneval": GENEVAL,
    "pope": POPE,
    "mme": MME,
    "gqa": GQA,
    "mmbench": MMBENCH,
    "seed": SEED,
    "mmvet": MMVET,
}
