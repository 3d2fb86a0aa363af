"""POPE: is there such an object in the image, yes or no (arXiv 2305.10355).

    FOLDER/coco/coco_pope_{random,popular,adversarial}.json   lines {question_id, image, text, label}
    FOLDER/val2014/                                           images of COCO

Sources: AoiDragon/POPE output/coco and evaluate.py; haotian-liu/LLaVA llava/eval/model_vqa_loader.py and eval_pope.py.
Invariant: answers are in the order of the published lines, since both scorers compare them line by line.
"""

from pathlib import Path

from janus_dist.errors import DataError
from janus_dist.evaluation.benchmarks.question import (
    SHORT_ANSWER,
    Answered,
    Benchmark,
    BenchmarkQuestion,
    dump_lines,
    fields,
    load_lines,
    share,
)

PREFIX = "coco_pope_"


def read(folder: Path) -> list[BenchmarkQuestion]:
    """Return the questions of all categories in the folder. Raises DataError when it has none."""
    paths = sorted((folder / "coco").glob(f"{PREFIX}*.json"))
    if not paths:
        raise DataError(f"{folder}/coco has no {PREFIX}*.json", "use output/coco of AoiDragon/POPE")
    found: list[BenchmarkQuestion] = []
    for path in paths:
        category = path.stem.removeprefix(PREFIX)
        for number, entry in enumerate(load_lines(path), start=1):
            own, image, text, _ = fields(entry, ("question_id", "image", "text", "label"), f"{path}:{number}")
            pictures = (folder / "val2014" / image,)
            found.append(
                BenchmarkQuestion(f"{category}/{own}", text + SHORT_ANSWER, pictures, {**entry, "category": category})
            )
    return found


def write(answered: Answered) -> dict[str, str]:
    """Return the answers in the formats of both scorers.

    `answers.jsonl` with `questions.jsonl` for LLaVA's, which needs ids that no two categories share;
    `answers_CATEGORY.jsonl` for POPE's own.
    """
    answers, questions = [], []
    by_category: dict[str, list[dict[str, str]]] = {}
    for number, (question, text) in enumerate(answered):
        entry = question.entry
        kept = {name: entry[name] for name in ("image", "text", "category")}
        questions.append({"question_id": number, **kept})
        answers.append({"question_id": number, "prompt": question.prompt, "text": text})
        by_category.setdefault(entry["category"], []).append({"question": entry["text"], "answer": text})
    own = {f"answers_{category}.jsonl": dump_lines(lines) for category, lines in by_category.items()}
    return {"questions.jsonl": dump_lines(questions), "answers.jsonl": dump_lines(answers), **own}


def score(answered: Answered) -> dict[str, float]:
    """Return accuracy, F1 and share of yes of each category, from 0 to 1, and the mean accuracy and F1."""
    found: dict[str, float] = {}
    categories = list(dict.fromkeys(question.entry["category"] for question, _ in answered))
    for category in categories:
        pairs = [
            (says_yes(text), question.entry["label"] != "no")
            for question, text in answered
            if question.entry["category"] == category
        ]
        right_yes = sum(said and true for said, true in pairs)
        said_yes, true_yes = (sum(side) for side in zip(*pairs, strict=True))
        found[f"{category}/accuracy"] = share(said == true for said, true in pairs)
        found[f"{category}/f1"] = 2 * right_yes / (said_yes + true_yes) if said_yes + true_yes else 0.0
        found[f"{category}/yes"] = said_yes / len(pairs)
    means = {
        name: sum(found[f"{category}/{name}"] for category in categories) / len(categories)
        for name in ("accuracy", "f1")
    }
    return {**means, **found}


def says_yes(text: str) -> bool:
    """Return True when an answer counts as yes: its first sentence has none of the words No, no and not."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


POPE = Benchmark(read, write, score)
