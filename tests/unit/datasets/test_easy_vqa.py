"""easy-vqa as it is read: whole, consistent, and its test split kept out of the shards."""

import hashlib

import pytest

from data_pipelines.inputs import built_in, formats
from data_pipelines.record import Record
from janus_dist.config.pipeline import InputConfig
from janus_dist.datasets import easy_vqa


@pytest.mark.parametrize(("split", "images", "questions"), [("train", 4000, 38575), ("test", 1000, 9673)])
def test_a_split_is_whole(split, images, questions):
    found = easy_vqa.load(split)
    assert len(found) == images and len({image.key for image in found}) == images
    assert sum(len(image.questions) for image in found) == questions
    assert all(image.path.is_file() for image in found)


def test_what_an_image_shows_never_contradicts_its_answers():
    for image in easy_vqa.load("train"):
        for question, answer in image.questions:
            if answer in easy_vqa.SHAPES:
                assert image.shape == answer, (image.key, question)
            if answer in easy_vqa.COLORS:
                assert image.color == answer, (image.key, question)


def test_captions():
    assert easy_vqa.caption("blue", "rectangle") == "a blue rectangle"
    assert easy_vqa.caption("blue", None) == "a blue shape"
    assert easy_vqa.caption(None, None) == ""
    said = [image for image in easy_vqa.load("train") if image.color and image.shape]
    assert len(said) > 3500
    assert {image.caption for image in said} == {f"a {c} {s}" for c in easy_vqa.COLORS for s in easy_vqa.SHAPES}


def all_records() -> list[Record]:
    of = InputConfig(stream="understanding", format="easy-vqa")
    found = [record for unit in formats.units(of, 300) for record in formats.records(of, unit)]
    assert all(isinstance(record, Record) for record in found)
    return found  # pyright: ignore[reportReturnType]


def test_the_test_split_never_becomes_a_record():
    found = all_records()
    assert [record.key for record in found] == [image.key for image in easy_vqa.load("train")]
    held_out = {str(image.path) for image in easy_vqa.load("test")}
    assert not held_out & {record.pictures[0].source for record in found}


def test_questions_keep_their_answers_in_an_order_of_the_key_alone():
    turns = tuple((f"question {number}", f"answer {number}") for number in range(12))
    one, two = built_in.in_fixed_order("train-00001", turns), built_in.in_fixed_order("train-00002", turns)
    assert sorted(one) == sorted(turns) and one != turns and one != two
    assert one == built_in.in_fixed_order("train-00001", turns)
    digest = hashlib.sha256(repr(one).encode()).hexdigest()[:16]
    assert digest == "a8973dd923429d4e", "the order of existing shards changed; raise PIPELINE_VERSION"


def test_all_questions_of_an_image_are_in_its_conversation():
    by_key = {image.key: image for image in easy_vqa.load("train")}
    for record in all_records():
        assert sorted(record.turns) == sorted(by_key[record.key].questions)
        assert record.caption == by_key[record.key].caption
