"""MM-Vet: open questions that a language model judges (arXiv 2308.02490).

    FOLDER/mm-vet.json    {v1_0: {imagename, question, answer, ...}, ...}
    FOLDER/images/IMAGENAME

Sources: yuweihao/MM-Vet inference/utils.py and mm-vet_evaluator.py; haotian-liu/LLaVA docs/Evaluation.md (no words are
added to the question) and scripts/convert_mmvet_for_eval.py. Invariant: every question has an answer.
"""

import json
from pathlib import Path

from janus_dist.evaluation.benchmarks.question import Answered, Benchmark, BenchmarkQuestion, fields, load_json


def read(folder: Path) -> list[BenchmarkQuestion]:
    """Return all questions. Raises DataError when the file is missing or has another format."""
    path = folder / "mm-vet.json"
    questions: list[BenchmarkQuestion] = []
    for question_id, entry in load_json(path).items():
        image, text = fields(entry, ("imagename", "question"), f"{path}, question {question_id},")
        questions.append(BenchmarkQuestion(question_id, text, (folder / "images" / image,), entry))
    return questions


def write(answered: Answered) -> dict[str, str]:
    """Return `predictions.json`: {v1_0: answer, ...}."""
    return {"predictions.json": json.dumps({question.id: text for question, text in answered}, indent=2) + "\n"}


def score(answered: Answered) -> dict[str, float]:
    """Return no scores, since a language model judges the answers."""
    return {}


MMVET = Benchmark(read, write, score, max_new_tokens=1024)
