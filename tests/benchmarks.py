"""Small folders in the published format of each benchmark, with the published names of fields."""

import base64
import csv
import json
from pathlib import Path

from tests.images import noise, png


def picture(path: Path, seed: int = 0) -> Path:
    """A noise image; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(noise(40, 30, seed)))
    return path


def lines(path: Path, entries: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def geneval(folder: Path, number: int = 3) -> Path:
    entries = [
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": f"a photo of bench {place}"}
        for place in range(number)
    ]
    lines(folder / "evaluation_metadata.jsonl", entries)
    return folder


def pope(folder: Path, number: int = 4) -> Path:
    """The same ids in both categories, as POPE has them; every second label is yes."""
    for category in ("random", "popular"):
        entries = [
            {
                "question_id": place,
                "image": f"COCO_val2014_{place // 2:012d}.jpg",
                "image_id": place // 2,
                "text": f"Is there a {category} cat {place} in the image?",
                "label": "no" if place % 2 else "yes",
            }
            for place in range(number)
        ]
        lines(folder / "coco" / f"coco_pope_{category}.json", entries)
    for place in range((number + 1) // 2):
        picture(folder / "val2014" / f"COCO_val2014_{place:012d}.jpg", place)
    return folder


def mme(folder: Path) -> Path:
    """Two images of a task in one folder, and one of a task in two."""
    for name in ("000001", "000002"):
        picture(folder / "existence" / f"{name}.jpg", int(name))
        (folder / "existence" / f"{name}.txt").write_text(
            f"Is there a cat in {name}?  Please answer yes or no.\tYes\n"
            f"Is there a dog in {name}? Please answer yes or no.\tNo\n"
        )
    picture(folder / "artwork" / "images" / "a.png", 3)
    (folder / "artwork" / "questions_answers_YN").mkdir()
    (folder / "artwork" / "questions_answers_YN" / "a.txt").write_text(
        "Is it a nude? Please answer yes or no.\tNo\nIs it old? Please answer yes or no.\tYes"
    )
    return folder


def gqa(folder: Path) -> Path:
    entries = {
        "201307251": {"imageId": "n161313", "question": "Is it overcast?", "answer": "no", "isBalanced": True},
        "201640614": {"imageId": "n235859", "question": "Who wears the dress?", "answer": "woman", "isBalanced": True},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(entries))
    for entry in entries.values():
        picture(folder / "images" / f"{entry['imageId']}.jpg")
    return folder


def mmbench(folder: Path) -> Path:
    """A question of four choices with a hint, and the same turned once; one of two choices."""
    names = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    image = base64.b64encode(png(noise(40, 30, 5))).decode()
    rows = [
        ["241", "Which?", 'A "hint"\nof two lines', "one", "two", "three", "four", "B", "reasoning", image],
        ["252", "Is it?", "", "yes", "no", "", "", "A", "reasoning", base64.b64encode(png(noise(20, 20, 6))).decode()],
        ["1000241", "Which?", 'A "hint"\nof two lines', "two", "three", "four", "one", "A", "reasoning", "241"],
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "mmbench_dev_20230712.tsv").open("w", newline="") as file:
        csv.writer(file, dialect="excel-tab").writerows([names, *rows])
    return folder


def seed(folder: Path, with_frames: bool = False) -> Path:
    choices = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
    questions = [
        {
            "answer": "A",
            **choices,
            "data_id": "1454426_2591111986",
            "data_type": "image",
            "question": "How many towels are in the image?",
            "question_id": "101669",
            "question_type_id": 5,
        },
        {
            "answer": "B",
            **choices,
            "data_id": "94328.webm",
            "data_type": "video",
            "question": "What is the action?",
            "question_id": "v1738",
            "question_type_id": 10,
        },
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "SEED-Bench.json").write_text(
        json.dumps({"questions": questions, "question_type": {"Instances Counting": 5, "Action Recognition": 10}})
    )
    picture(folder / "SEED-Bench-image" / "1454426_2591111986")
    if with_frames:
        picture(folder / "SEED-Bench-video-image" / "v1738.png")
    return folder


def mmvet(folder: Path) -> Path:
    entries = {
        f"v1_{number}": {
            "imagename": f"v1_{number}.png",
            "question": f"What is x in equation {number}?",
            "answer": "-1<AND>-5",
            "imagesource": "somewhere",
            "capability": ["ocr", "math"],
        }
        for number in range(2)
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mm-vet.json").write_text(json.dumps(entries))
    for entry in entries.values():
        picture(folder / "images" / entry["imagename"])
    return folder
