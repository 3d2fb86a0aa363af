"""GQA: questions about the parts of a scene, answered by a word or two (arXiv 1902.09506).

    FOLDER/testdev_balanced_questions.json    {ID: {imageId, question, answer, ...}}
    FOLDER/images/IMAGE_ID.jpg

Sources: eval.py of GQA (cs.stanford.edu/people/dorarad/gqa/evaluate.html); haotian-liu/LLaVA scripts/v1_5/eval/gqa.sh
and scripts/convert_gqa_for_eval.py. Invariant: every question has a prediction, as the scorer requires.
"""

import json
from pathlib import Path

from janus_dist.evaluation.benchmarks.question import (
    SHORT_ANSWER,
    Answered,
    Benchmark,
    BenchmarkQuestion,
    fields,
    load_json,
    share,
)


def read(folder: Path) -> list[BenchmarkQuestion]:
    """Return the questions of testdev. Raises DataError when the file is missing or has another format."""
    path = folder / "testdev_balanced_questions.json"
    questions: list[BenchmarkQuestion] = []
    for question_id, entry in load_json(path).items():
        image, text, _ = fields(entry, ("imageId", "question", "answer"), f"{path}, question {question_id},")
        questions.append(
            BenchmarkQuestion(question_id, text + SHORT_ANSWER, (folder / "images" / f"{image}.jpg",), entry)
        )
    return questions


def write(answered: Answered) -> dict[str, str]:
    """Return `testdev_balanced_predictions.json`: [{questionId, prediction}, ...]."""
    predictions = [{"questionId": question.id, "prediction": prediction(text)} for question, text in answered]
    return {"testdev_balanced_predictions.json": json.dumps(predictions) + "\n"}


def score(answered: Answered) -> dict[str, float]:
    """Return the share of predictions that equal the answer exactly."""
    return {"accuracy": share(prediction(text) == question.entry["answer"] for question, text in answered)}


def prediction(text: str) -> str:
    """Return an answer in the spelling of the data set: lower case, without a final full stop."""
    return text.rstrip(".").lower()


GQA = Benchmark(read, write, score)
