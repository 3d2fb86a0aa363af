"""MMBench: questions of two to four choices, each asked with its choices in several orders (arXiv 2307.06281).

    FOLDER/*.tsv (one)    columns index, question, hint, A, B, C, D, image (base64); answer, category where published

Sources: haotian-liu/LLaVA llava/eval/model_vqa_mmbench.py; open-compass/VLMEvalKit vlmeval/dataset/image_base.py, where
an image of 64 characters or fewer is the index of the row that holds it, and vlmeval/smp/file.py (load, dump).
Invariant: the rows that are written are all rows that were read, in their order.
"""

import binascii
import csv
import io
from base64 import b64decode
from collections.abc import Mapping, Sequence
from pathlib import Path

from janus_dist.errors import DataError
from janus_dist.evaluation.benchmarks.question import (
    Answered,
    Benchmark,
    BenchmarkQuestion,
    fields,
    read_text,
    with_options,
)

OPTIONS = ("A", "B", "C", "D")
NOTHING = {"", "nan", "none"}
"""Texts of a cell without a value."""
REFERENCE_CHARS = 64
FIELD_CHARS = 1 << 30


def read(folder: Path) -> list[BenchmarkQuestion]:
    """Return the questions of the single table in the folder. Raises DataError unless it has one valid table."""
    paths = sorted(folder.glob("*.tsv"))
    if len(paths) != 1:
        raise DataError(
            f"{folder} has {len(paths)} files *.tsv, one is expected", "put each table of MMBench into its own folder"
        )
    csv.field_size_limit(FIELD_CHARS)  # an image is one field
    rows = list(csv.DictReader(io.StringIO(read_text(paths[0]), newline=""), dialect="excel-tab"))
    for number, row in enumerate(rows, start=1):
        fields(row, ("index", "question", "A", "B", "image"), f"{paths[0]}, row {number},")
    pictures = _pictures(rows, paths[0])
    return [
        BenchmarkQuestion(row["index"], _prompt(row), (pictures[row["index"]],), _without_image(row)) for row in rows
    ]


def _pictures(rows: Sequence[Mapping[str, str]], path: Path) -> dict[str, bytes]:
    """Return the encoded image of each row by its index."""
    columns = {row["index"]: row["image"] for row in rows}
    found: dict[str, bytes] = {}
    for index, image in columns.items():
        holder = image if len(image) <= REFERENCE_CHARS else index
        if holder not in found:
            try:
                found[holder] = b64decode(columns.get(holder, ""), validate=True)
            except binascii.Error as error:
                raise DataError(f"{path}: the image of row {holder} is not base64: {error}") from error
        if not found[holder]:
            raise DataError(f"{path}: row {index} has no image (it names row {holder!r})")
        found[index] = found[holder]
    return found


def _prompt(row: Mapping[str, str]) -> str:
    hint = "" if _is_nothing(row.get("hint")) else f"{row['hint']}\n"
    return with_options(hint + row["question"], _options(row))


def _options(row: Mapping[str, str]) -> list[str]:
    """Return the choices up to the first missing one."""
    count = next((number for number, name in enumerate(OPTIONS) if _is_nothing(row.get(name))), len(OPTIONS))
    return [row[name] for name in OPTIONS[:count]]


def _is_nothing(value: str | None) -> bool:
    return value is None or value.lower() in NOTHING


def _without_image(row: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name != "image"}


def write(answered: Answered) -> dict[str, str]:
    """Return `predictions.tsv`: the published columns without the image, and `prediction`."""
    text = io.StringIO()
    names = [*answered[0][0].entry, "prediction"]
    table = csv.DictWriter(text, names, dialect="excel-tab", quoting=csv.QUOTE_ALL, lineterminator="\n")
    table.writeheader()
    table.writerows({**question.entry, "prediction": answer} for question, answer in answered)
    return {"predictions.tsv": text.getvalue()}


def score(answered: Answered) -> dict[str, float]:
    """Return no scores, since the scorer needs a judge to extract letters from the answers in all orders."""
    return {}


MMBENCH = Benchmark(read, write, score, max_new_tokens=1024)
