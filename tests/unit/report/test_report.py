"""The run report: whole in one file, and its figures are those of the run's own files."""

import json
from pathlib import Path

import numpy as np
import pytest

from janus_dist.errors import DataError
from janus_dist.report.run import write_report
from tests.images import png
from tests.pages import Page


def write_run(folder: Path, steps: int = 30, begin: float = 0.0) -> None:
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        line = {
            "step": step, "time": begin + step, "loss/all": 3.0, "loss/understanding": 2.0, "optim/grad_norm": 1.0,
            "optim/lr": 1e-3, "optim/skipped_steps": 0, "perf/tokens_per_s": 1000.0, "perf/step_s": 2.0,
            "perf/data_wait": 0.25, "mix/understanding": 0.7, "mix/text": 0.3, "mix/generation": 0.0,
            "batch/tokens": 2000, "batch/rows": 4, "batch/fill": 0.975,
        }  # fmt: skip
        if step % 2:
            line["loss/text"] = 4.0
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    config = {"mix": {"unit": "tokens", "understanding": 7, "text": 3, "generation": 0}, "train": {"steps": 40}}
    (folder / "config.json").write_text(json.dumps(config))


def write_evaluation(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (folder / "images" / name).write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    drawing = {"image": "a.png", "prompt": "a red circle", "seen": "red, no shape"}
    found = {
        "understanding_accuracy": 0.8123, "understanding_majority": 0.373, "understanding_by_kind": {"color": 0.9},
        "majority_answer": "yes", "num_questions": 9673, "generation_accuracy": 0.5, "num_images": 2,
        "generation_color_accuracy": 1.0, "generation_shape_accuracy": 0.5, "generation_chance": 1 / 24,
        "drawings": [drawing | {"right": True}, drawing | {"right": False}],
        "questions": [
            {"image": "a.png", "question": "what <b>color</b>?", "answer": "red", "truth": "red"},
            {"image": "a.png", "question": "is it?", "answer": "", "truth": "no"},
        ],
        "vq_psnr_db": 27.25, "vq_codes_used": 500, "vq_pairs": [{"original": "a.png", "reconstruction": "b.png"}],
        "detector_accuracy_on_real": 0.989,
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(found))


def test_the_report_of_several_runs(tmp_path):
    write_run(tmp_path / "stage2", begin=100.0)
    write_run(tmp_path / "stage1")
    write_evaluation(tmp_path / "evaluation")
    path = write_report(tmp_path)
    html = path.read_text()
    page = Page(html)
    assert path == tmp_path / "report.html"
    for wanted in ("81.2%", "37.3%", "9,673", "50.0%", "4.2%", "27.2 dB", "98.9%", "30 of 40", "60k", "1m0s"):
        assert wanted in page.text, wanted
    assert page.text.index("stage1") < page.text.index("stage2")
    assert page.classes.count("right") == 1 and page.classes.count("wrong") == 1
    assert page.classes.count("ok") == 1 and page.classes.count("no") == 1
    assert "what <b>color</b>?" in page.text  # escaped, not markup
    assert html.count("<svg") == 11  # five plots a run, and one of both
    assert "Runs of the same stage" in html
    assert not page.open


def test_the_report_of_kinds_with_intervals(tmp_path):
    """As an evaluation on scenes leaves them."""
    write_run(tmp_path / "stage1")
    write_evaluation(tmp_path / "evaluation")
    path = tmp_path / "evaluation" / "evaluation.json"
    found = json.loads(path.read_text()) | {
        "generation_intervals": {"counting": {"share": 0.3, "low": 0.123, "high": 0.456, "of": 160}},
        "understanding_intervals": {"color": {"share": 0.9, "low": 0.871, "high": 0.934, "of": 600}},
        "generation_exact_accuracy": 0.222,
    }  # fmt: skip
    del found["generation_color_accuracy"], found["generation_shape_accuracy"]
    path.write_text(json.dumps(found))
    text = " ".join(Page(write_report(tmp_path).read_text()).text.split())
    for wanted in ("counting", "30.0%", "12.3% to 45.6%", "nothing else: 22.2%", "87.1% to 93.4%"):
        assert wanted in text, wanted
    assert "Colors right" not in text


def test_the_report_needs_no_network(tmp_path):
    write_run(tmp_path / "stage1")
    write_evaluation(tmp_path / "evaluation")
    html = write_report(tmp_path).read_text()
    assert all(address.startswith(("data:", "#")) for address in Page(html).addresses)
    assert "<script" not in html and "@import" not in html and "url(http" not in html


def test_the_report_of_one_run_that_is_not_over(tmp_path):
    write_run(tmp_path / "mine", steps=3)
    with (tmp_path / "mine" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "time"')  # killed while it wrote
    page = Page(write_report(tmp_path / "mine").read_text())
    assert "3 of 40" in page.text and "What it draws" not in page.text


def test_what_a_run_measured_is_shown_where_it_did(tmp_path):
    write_run(tmp_path / "mine")
    before = Page(write_report(tmp_path / "mine").read_text()).text
    assert "gradient" in before and "MFU" not in before and "most memory" not in before
    path = tmp_path / "mine" / "metrics.jsonl"
    lines = [json.loads(line) | {"perf/mfu": 0.412, "mem/peak_gib": 61.25} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = write_report(tmp_path / "mine").read_text()
    text = Page(html).text
    for wanted in ("41.2%", "61.2 GiB", "share of the device's peak", "most memory of the first rank so far"):
        assert wanted in text, wanted
    assert html.count("<svg") == 7


def test_samples_over_time_and_held_out_losses_are_shown(tmp_path):
    folder = tmp_path / "mine"
    write_run(folder)
    for step in range(10, 130, 10):
        made = folder / "samples" / f"step-{step:08d}"
        made.mkdir(parents=True)
        answers = [{"question": "what is it?", "images": [], "answer": f"answer {step}"}]
        (made / "samples.json").write_text(json.dumps({"step": step, "drawings": [{}], "answers": answers}))
        (made / "grid.png").write_bytes(png(np.full((8, 8, 3), step, np.uint8)))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[9]["validation/text"] = lines[19]["validation/text"] = 3.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = write_report(folder).read_text()
    page = Page(html)
    steps = [
        step for step in range(10, 130, 10) if f"answer {step}" in page.text.split()[-1] or f">answer {step}<" in html
    ]
    assert steps == [10, 30, 50, 80, 100, 120] and html.count("drawings at step") == 6
    assert "loss on held-out samples" in page.text


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no run under"):
        write_report(tmp_path)
