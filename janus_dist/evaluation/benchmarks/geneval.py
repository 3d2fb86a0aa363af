"""GenEval: prompts of objects, numbers, colors and places, whose drawings an object detector judges (arXiv 2310.11513).

    FOLDER/evaluation_metadata.jsonl    lines {tag, include, prompt, ...}

Sources: djghosh13/geneval README.md, generation/diffusers_generate.py and evaluation/evaluate_images.py. Invariant:
folder 00007 holds the drawings of line 7, counted from 0, and that line as it was published.
"""

import json
from pathlib import Path

from janus_dist.evaluation.benchmarks.question import Answered, Benchmark, BenchmarkQuestion, fields, load_lines


def read(folder: Path) -> list[BenchmarkQuestion]:
    """Return all prompts. Raises DataError when the file is missing or has another format."""
    path = folder / "evaluation_metadata.jsonl"
    questions: list[BenchmarkQuestion] = []
    for index, entry in enumerate(load_lines(path)):
        (prompt,) = fields(entry, ("prompt",), f"{path}:{index + 1}")
        questions.append(BenchmarkQuestion(f"{index:05d}", prompt, (), entry))
    return questions


def sample(prompt: str, place: int) -> str:
    """Return the path of drawing number `place` of the prompt with id `prompt`."""
    return f"{prompt}/samples/{place:04d}.png"


def write(answered: Answered) -> dict[str, str]:
    """Return the text of `NNNNN/metadata.jsonl` of each prompt; its drawings are in the same folder."""
    return {f"{question.id}/metadata.jsonl": json.dumps(question.entry) + "\n" for question, _ in answered}


def score(answered: Answered) -> dict[str, float]:
    """Return no scores, since an object detector judges the drawings."""
    return {}


GENEVAL = Benchmark(read, write, score, is_drawn=True)
