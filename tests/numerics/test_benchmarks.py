"""What benchmarks compare is the same work, and what they print has the figures that docs/benchmarks.md speaks of."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.checkpoint import document_of
from benchmarks.handmade import Handmade, padded
from benchmarks.train_step import BOI, EOI, IMAGE, PAD, TINY, make_samples
from janus_dist.config.streams import STREAMS
from janus_dist.data.collate import DocumentFormat, collate
from janus_dist.model import janus, native
from tests import tiny
from tests.limits import HANG_S

ROOT = Path(__file__).parents[2]
RUNNABLE = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "def main(" in path.read_text())


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_benchmark_says_what_it_measures(name, monkeypatch, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "--json" in said
    assert " ".join(str(module.__doc__).splitlines()[0].split()) in " ".join(said.split())


@pytest.mark.parametrize("stream", STREAMS)
def test_handmade_training_has_our_loss(stream):
    """The same weights and documents: padded and by transformers there, packed in rows here."""
    ours = janus.build(TINY, 3)
    config = janus.transformers_config(TINY)
    config.image_token_id = IMAGE
    theirs = Handmade(config)
    found = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not found.unexpected_keys and not found.missing_keys, found
    samples = make_samples(TINY, 256)[stream][:3]
    form = DocumentFormat(PAD, IMAGE, BOI, EOI, TINY.image_tokens, TINY.image_size, answers_only=False)
    batch = collate([document_of(sample, TINY) for sample in samples], form)
    with torch.no_grad():
        _, sums = ours(batch, torch.ones(len(STREAMS)))
        expected = theirs(padded(samples, IMAGE, TINY.image_tokens, TINY.image_size))
    place = STREAMS.index(stream)
    labels = tiny.label_counts(batch)
    assert labels[place] > 0 and sum(labels) == labels[place]
    assert float(sums[place] / labels[place]) == pytest.approx(float(expected), rel=1e-4)


def run(name: str, *arguments: str) -> dict:
    """The JSON line of a benchmark."""
    command = [sys.executable, f"benchmarks/{name}.py", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_train_step_prints_its_ratios():
    found = run("train_step", "--model", "tiny", "--row-tokens", "256", "--rounds", "1", "--steps", "1")
    assert found["dtype"] == native.best_dtype(gpu=False)
    assert found["ratio_handmade"] > 0 and found["ratio_bare"] > 0
    assert found["peak_rss_mb"].keys() == {"ours", "handmade", "bare"}
    assert found["step_seconds"]["ours"].keys() == {"data", "forward", "backward", "optimizer"}


@pytest.mark.long
def test_checkpoint_prints_its_ratios(tmp_path):
    found = run(
        "checkpoint",
        "--world",
        "2",
        "--model",
        "tiny",
        "--row-tokens",
        "256",
        "--rounds",
        "1",
        "--folder",
        str(tmp_path),
    )
    assert found["dtype"] == native.best_dtype(gpu=False)
    assert 1 <= found["bytes_over_minimum"] < 3, "small tensors have headers"
    assert all(found[key] > 0 for key in ("stall_ratio", "save_over_raw", "load_over_raw"))
    assert found["ratio_deepspeed"].keys() == {"stall", "save", "load", "bytes"}
