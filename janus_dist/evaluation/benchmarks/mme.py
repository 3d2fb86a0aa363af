"""MME: two yes-or-no questions about each image of 14 tasks (arXiv 2306.13394).

    FOLDER/TASK/{NAME.jpg, NAME.txt}                                   lines of NAME.txt: QUESTION <tab> Yes or No
    FOLDER/TASK/{images/NAME.jpg, questions_answers_YN/NAME.txt}       the other form of a task

FOLDER is MME_Benchmark_release_version. Sources: eval_tool/calculation.py of MME (BradyFU's
Awesome-Multimodal-Large-Language-Models, branch Evaluation) and convert_answer_to_mme.py of LLaVA's evaluation files.
Invariant: the two answers about an image are consecutive.
"""

from pathlib import Path

from janus_dist.errors import DataError
from janus_dist.evaluation.benchmarks.question import (
    SHORT_ANSWER,
    Answered,
    Benchmark,
    BenchmarkQuestion,
    read_text,
    share,
)

YES_OR_NO = "Please answer yes or no."
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def read(folder: Path) -> list[BenchmarkQuestion]:
    """Return the questions of all tasks in the folder, task by task. Raises DataError when it has no task."""
    tasks = [task for task in (*PERCEPTION, *COGNITION) if (folder / task).is_dir()]
    if not tasks:
        raise DataError(
            f"{folder} has no folder of a task ({PERCEPTION[0]}, ...)", "give MME_Benchmark_release_version"
        )
    return [question for task in tasks for question in _read_task(folder / task)]


def _read_task(folder: Path) -> list[BenchmarkQuestion]:
    is_split = (folder / "images").is_dir()
    images, texts = (folder / "images", folder / "questions_answers_YN") if is_split else (folder, folder)
    by_stem = {path.stem: path for path in images.iterdir() if path.suffix != ".txt"}
    found: list[BenchmarkQuestion] = []
    for path in sorted(texts.glob("*.txt")):
        lines = [line.split("\t") for line in read_text(path).split("\n") if line.strip()]
        if len(lines) != 2 or any(len(line) != 2 for line in lines):
            raise DataError(f"{path} does not have two lines of a question, a tab and an answer")
        picture = by_stem.get(path.stem, images / f"{path.stem}.jpg")
        for number, (question, truth) in enumerate(lines):
            entry = {"task": folder.name, "image": picture.name, "question": question.strip(), "label": truth.strip()}
            asked = entry["question"].replace(YES_OR_NO, "").strip() + SHORT_ANSWER
            found.append(BenchmarkQuestion(f"{folder.name}/{path.stem}/{number}", asked, (picture,), entry))
    return found


def write(answered: Answered) -> dict[str, str]:
    """Return `TASK.txt` with lines IMAGE <tab> QUESTION <tab> TRUTH <tab> ANSWER."""
    found: dict[str, str] = {}
    for question, text in answered:
        entry = question.entry
        columns = (entry["image"], entry["question"], entry["label"], " ".join(text.split()))
        found[f"{entry['task']}.txt"] = found.get(f"{entry['task']}.txt", "") + "\t".join(columns) + "\n"
    return found


def score(answered: Answered) -> dict[str, float]:
    """Return for each task 100 times accuracy plus 100 times the share of images with two right answers.

    `perception` and `cognition` are the sums over their available tasks.
    """
    right: dict[str, list[bool]] = {}
    for question, text in answered:
        right.setdefault(question.entry["task"], []).append(verdict(text) == question.entry["label"].lower())
    by_task = {
        task: 100 * share(marks) + 100 * share(all(both) for both in zip(marks[::2], marks[1::2], strict=False))
        for task, marks in right.items()
    }
    sums = {
        name: sum(by_task.get(task, 0.0) for task in tasks)
        for name, tasks in (("perception", PERCEPTION), ("cognition", COGNITION))
    }
    return {**sums, **by_task}


def verdict(text: str) -> str:
    """Return `yes`, `no` or `other` by the first four characters of an answer."""
    beginning = " ".join(text.split()).lower()[:4]
    return next((word for word in ("yes", "no") if word in beginning), "other")


MME = Benchmark(read, write, score)
