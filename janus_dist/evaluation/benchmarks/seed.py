"""SEED-Bench: questions of four choices about images and videos (arXiv 2307.16125).

    FOLDER/SEED-Bench.json    {questions: [{question_id, data_type, data_id, question, choice_a, ..., answer}, ...]}
    FOLDER/SEED-Bench-image/DATA_ID
    FOLDER/SEED-Bench-video-image/QUESTION_ID.png    the middle frame of a video

Without the folder of frames only images are asked about.

Sources: AILab-CVC/SEED-Bench DATASET.md; haotian-liu/LLaVA docs/Evaluation.md, scripts/v1_5/eval/seed.sh and
scripts/convert_seed_for_submission.py. Invariant: predictions are in the published order.
"""

from pathlib import Path
from typing import Any

from janus_dist.errors import DataError
from janus_dist.evaluation.benchmarks.question import (
    Answered,
    Benchmark,
    BenchmarkQuestion,
    dump_lines,
    fields,
    load_json,
    share,
    with_options,
)

FRAMES = "SEED-Bench-video-image"
CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
FIELDS = ("question_id", "data_type", "data_id", "question", "answer", *CHOICES)


def read(folder: Path) -> list[BenchmarkQuestion]:
    """Return all questions about images, and those about videos when the folder of frames exists.

    Raises DataError when the file is missing or has another format.
    """
    path = folder / "SEED-Bench.json"
    with_videos = (folder / FRAMES).is_dir()
    (entries,) = fields(load_json(path), ("questions",), str(path))
    found: list[BenchmarkQuestion] = []
    for number, entry in enumerate(entries):
        fields(entry, FIELDS, f"{path}, question {number},")
        if entry["data_type"] == "image" or with_videos:
            asked = with_options(entry["question"], (entry[name] for name in CHOICES))
            found.append(BenchmarkQuestion(str(entry["question_id"]), asked, (_picture(folder, entry),), entry))
    return found


def _picture(folder: Path, entry: dict[str, Any]) -> Path:
    match entry["data_type"]:
        case "image":
            return folder / "SEED-Bench-image" / entry["data_id"]
        case "video":
            return folder / FRAMES / f"{entry['question_id']}.png"
        case other:
            raise DataError(f"question {entry['question_id']} is about {other!r}, not an image or a video",
                            "give SEED-Bench.json of SEED-Bench-1")  # fmt: skip


def write(answered: Answered) -> dict[str, str]:
    """Return `predictions.jsonl`: lines {question_id, prediction}."""
    lines = ({"question_id": question.entry["question_id"], "prediction": text} for question, text in answered)
    return {"predictions.jsonl": dump_lines(lines)}


def score(answered: Answered) -> dict[str, float]:
    """Return the share of answers that are exactly the right letter, over all questions and by kind."""
    right: dict[str, list[bool]] = {"accuracy": []}
    for question, text in answered:
        for name in ("accuracy", f"{question.entry['data_type']}/accuracy"):
            right.setdefault(name, []).append(text == question.entry["answer"])
    return {name: share(marks) for name, marks in right.items()}


SEED = Benchmark(read, write, score)
