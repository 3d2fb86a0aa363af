"""Benchmarks in their published formats: what is asked, what is written for their scorers, and scores by hand."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from janus_dist.errors import DataError
from janus_dist.evaluation.benchmarks import geneval, gqa, mmbench, mme, mmvet, pope, seed
from janus_dist.evaluation.benchmarks.question import BenchmarkQuestion
from tests import benchmarks
from tests.images import noise, png

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def objects(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_geneval(tmp_path: Path):
    asked = geneval.read(benchmarks.geneval(tmp_path))
    assert [(one.id, one.prompt) for one in asked[:2]] == [
        ("00000", "a photo of bench 0"),
        ("00001", "a photo of bench 1"),
    ]
    written = geneval.write([(one, "") for one in asked])
    assert list(written) == ["00000/metadata.jsonl", "00001/metadata.jsonl", "00002/metadata.jsonl"]
    published = (tmp_path / "evaluation_metadata.jsonl").read_text().splitlines()
    assert [json.loads(text) for text in written.values()] == [json.loads(line) for line in published]
    assert geneval.sample("00002", 3) == "00002/samples/0003.png"


def test_pope_is_asked_in_the_order_of_its_files(tmp_path: Path):
    asked = pope.read(benchmarks.pope(tmp_path))
    assert [one.id for one in asked] == [f"{name}/{place}" for name in ("popular", "random") for place in range(4)]
    assert asked[5].prompt == "Is there a random cat 1 in the image?" + SHORT
    assert asked[5].images == (tmp_path / "val2014" / "COCO_val2014_000000000000.jpg",)


def test_pope_is_written_for_both_scorers(tmp_path: Path):
    asked = pope.read(benchmarks.pope(tmp_path))
    written = pope.write([(one, f"Yes, {number}") for number, one in enumerate(asked)])
    answers, questions = objects(written["answers.jsonl"]), objects(written["questions.jsonl"])
    assert answers[6] == {"question_id": 6, "prompt": asked[6].prompt, "text": "Yes, 6"}
    assert [one["question_id"] for one in answers] == list(range(8)) == [one["question_id"] for one in questions]
    assert [one["category"] for one in questions] == ["popular"] * 4 + ["random"] * 4
    own = objects(written["answers_random.jsonl"])
    assert own[0] == {"question": "Is there a random cat 0 in the image?", "answer": "Yes, 4"}
    labels = objects((tmp_path / "coco" / "coco_pope_random.json").read_text())
    assert [one["question"] for one in own] == [one["text"] for one in labels]  # compared line by line


@pytest.mark.parametrize(
    ("text", "is_yes"),
    [
        ("Yes", True),
        ("no", False),
        ("No, there is none", False),
        ("There is not. Yes", False),
        ("A cat. No", True),  # the first sentence only
        ("NO", True),  # as the scorer has it: these three spellings
        ("none", True),
        ("", True),
    ],
)
def test_pope_counts_as_yes_what_is_not_no(text: str, is_yes: bool):
    assert pope.says_yes(text) == is_yes


def test_scores_of_pope(tmp_path: Path):
    asked = pope.read(benchmarks.pope(tmp_path))
    # labels yes, no, yes, no; popular: 1 right yes, 1 wrong yes, 1 wrong no, 1 right no; random: all right
    given = ["Yes", "Yes", "No", "No", "Yes", "No", "Yes", "No"]
    found = pope.score(list(zip(asked, given, strict=True)))
    assert found == {
        "accuracy": 0.75,
        "f1": 0.75,  # (0.5 + 1) / 2
        "popular/accuracy": 0.5,
        "popular/f1": 0.5,  # precision 1/2, recall 1/2
        "popular/yes": 0.5,
        "random/accuracy": 1.0,
        "random/f1": 1.0,
        "random/yes": 0.5,
    }
    all_no = pope.score([(one, "No") for one in asked])
    assert (all_no["f1"], all_no["accuracy"], all_no["random/yes"]) == (0.0, 0.5, 0.0)
    two_of_three = pope.score([(one, "Yes") for one in asked[:3]])  # precision 2/3, recall 1
    assert two_of_three["f1"] == pytest.approx(0.8)


def test_mme(tmp_path: Path):
    asked = mme.read(benchmarks.mme(tmp_path))
    ids = [f"existence/00000{image}/{place}" for image in (1, 2) for place in (0, 1)]
    assert [one.id for one in asked] == [*ids, "artwork/a/0", "artwork/a/1"]
    assert asked[0].prompt == "Is there a cat in 000001?" + SHORT
    assert asked[0].images == (tmp_path / "existence" / "000001.jpg",)
    assert asked[4].images == (tmp_path / "artwork" / "images" / "a.png",)
    written = mme.write([(one, "Yes,\tit\nis") for one in asked])
    assert sorted(written) == ["artwork.txt", "existence.txt"]
    assert written["existence.txt"].splitlines()[:2] == [
        "000001.jpg\tIs there a cat in 000001?  Please answer yes or no.\tYes\tYes, it is",
        "000001.jpg\tIs there a dog in 000001? Please answer yes or no.\tNo\tYes, it is",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [("Yes", "yes"), ("no.", "no"), ("  Yes, it is", "yes"), ("It is no", "other"), ("", "other"), ("nope", "no")],
)
def test_mme_reads_the_first_four_characters(text: str, said: str):
    assert mme.verdict(text) == said


def test_scores_of_mme(tmp_path: Path):
    asked = mme.read(benchmarks.mme(tmp_path))
    # existence: first image both right, second one of two; artwork: none right
    found = mme.score(list(zip(asked, ["yes", "no", "yes", "yes", "yes", "it is"], strict=True)))
    assert found == {"perception": 125.0, "cognition": 0.0, "existence": 75.0 + 50.0, "artwork": 0.0}
    assert mme.score(list(zip(asked, ["Yes", "No", "Yes", "No", "No", "Yes"], strict=True)))["perception"] == 400.0


def test_gqa(tmp_path: Path):
    asked = gqa.read(benchmarks.gqa(tmp_path))
    assert asked[0].prompt == "Is it overcast?" + SHORT
    assert asked[0].images == (tmp_path / "images" / "n161313.jpg",)
    answered = list(zip(asked, ["No.", "The woman"], strict=True))
    (text,) = gqa.write(answered).values()
    assert json.loads(text) == [
        {"questionId": "201307251", "prediction": "no"},
        {"questionId": "201640614", "prediction": "the woman"},
    ]
    assert gqa.score(answered) == {"accuracy": 0.5}


def test_mmbench(tmp_path: Path):
    asked = mmbench.read(benchmarks.mmbench(tmp_path))
    assert asked[0].prompt == 'A "hint"\nof two lines\nWhich?\nA. one\nB. two\nC. three\nD. four' + LETTER
    assert asked[1].prompt == "Is it?\nA. yes\nB. no" + LETTER
    assert asked[0].images == (png(noise(40, 30, 5)),) == asked[2].images  # named by the index of its row
    assert asked[1].images == (png(noise(20, 20, 6)),)
    (path,) = mmbench.write([(one, f"B\t{one.id}") for one in asked]).items()
    assert path[0] == "predictions.tsv"
    rows = list(csv.DictReader(path[1].splitlines(keepends=True), dialect="excel-tab"))
    assert [row["prediction"] for row in rows] == ["B\t241", "B\t252", "B\t1000241"]
    assert list(rows[0]) == ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "prediction"]
    assert (rows[0]["hint"], rows[1]["C"], rows[2]["D"]) == ('A "hint"\nof two lines', "", "one")


def test_predictions_of_mmbench_are_read_by_pandas(tmp_path: Path):
    """As VLMEvalKit's `load` reads them."""
    pandas = pytest.importorskip("pandas")
    asked = mmbench.read(benchmarks.mmbench(tmp_path))
    (text,) = mmbench.write([(one, "C") for one in asked]).values()
    (tmp_path / "out.tsv").write_text(text)
    found = pandas.read_csv(tmp_path / "out.tsv", sep="\t")
    assert list(found["index"]) == [241, 252, 1000241]
    assert list(found["prediction"]) == ["C"] * 3 and bool(pandas.isna(found["C"][1]))


def test_seed(tmp_path: Path):
    asked = seed.read(benchmarks.seed(tmp_path))
    assert [one.id for one in asked] == ["101669"]  # no frames, no videos
    assert asked[0].prompt == "How many towels are in the image?\nA. One\nB. Two\nC. Three\nD. Four" + LETTER
    asked = seed.read(benchmarks.seed(tmp_path, with_frames=True))
    assert asked[0].images == (tmp_path / "SEED-Bench-image" / "1454426_2591111986",)
    assert asked[1].images == (tmp_path / "SEED-Bench-video-image" / "v1738.png",)
    answered = list(zip(asked, ["A", "B."], strict=True))
    (text,) = seed.write(answered).values()
    assert objects(text) == [
        {"question_id": "101669", "prediction": "A"},
        {"question_id": "v1738", "prediction": "B."},
    ]
    assert seed.score(answered) == {"accuracy": 0.5, "image/accuracy": 1.0, "video/accuracy": 0.0}


def test_mmvet(tmp_path: Path):
    asked = mmvet.read(benchmarks.mmvet(tmp_path))
    assert asked[1].prompt == "What is x in equation 1?"  # nothing is added
    assert asked[1].images == (tmp_path / "images" / "v1_1.png",)
    (text,) = mmvet.write([(one, f"x is {one.id}") for one in asked]).values()
    assert json.loads(text) == {"v1_0": "x is v1_0", "v1_1": "x is v1_1"}


READERS: list[tuple[Callable[[Path], list[BenchmarkQuestion]], str]] = [
    (geneval.read, r"evaluation_metadata\.jsonl cannot be read"),
    (pope.read, r"/coco has no coco_pope_\*\.json"),
    (mme.read, r"has no folder of a task \(existence"),
    (gqa.read, r"testdev_balanced_questions\.json cannot be read"),
    (mmbench.read, r"has 0 files \*\.tsv"),
    (seed.read, r"SEED-Bench\.json cannot be read"),
    (mmvet.read, r"mm-vet\.json cannot be read"),
]


@pytest.mark.parametrize(("read", "said"), READERS)
def test_a_folder_without_the_files_is_refused(
    tmp_path: Path, read: Callable[[Path], list[BenchmarkQuestion]], said: str
):
    with pytest.raises(DataError, match=said):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "read", "said"),
    [
        ("evaluation_metadata.jsonl", '{"prompt": "a"}\n{"tag": "b"}\n', geneval.read, r"jsonl:2 has no prompt"),
        ("evaluation_metadata.jsonl", "[1]\n", geneval.read, r"jsonl:1 is list, not an object"),
        ("coco/coco_pope_random.json", '{"image": "a"', pope.read, r"coco_pope_random\.json:1 is not JSON"),
        ("coco/coco_pope_random.json", '{"image": "a"}', pope.read, r"json:1 has no question_id, text, label"),
        ("OCR/a.txt", "one?\tYes\n", mme.read, r"a\.txt does not have two lines"),
        (
            "testdev_balanced_questions.json",
            '{"1": {"answer": "a"}}',
            gqa.read,
            r"question 1, has no imageId, question",
        ),
        ("a.tsv", "index\tquestion\timage\n1\ta\tb\n", mmbench.read, r"row 1, has no A, B"),
        (
            "a.tsv",
            "index\tquestion\tA\tB\timage\n1\ta\tb\tc\t7\n",
            mmbench.read,
            r"row 1 has no image \(it names row '7'\)",
        ),
        ("SEED-Bench.json", "[]", seed.read, r"SEED-Bench\.json has no questions"),
        ("mm-vet.json", '{"v1_0": {"question": "a"}}', mmvet.read, r"question v1_0, has no imagename"),
    ],
)
def test_another_format_is_named(tmp_path: Path, name: str, text: str, read: Callable[[Path], list], said: str):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read(tmp_path)
