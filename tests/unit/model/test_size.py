"""A checkpoint of another model and a tokenizer that does not fit are refused, always in the same words."""

from types import SimpleNamespace
from typing import Any

import pytest

from janus_dist.data.tokenizer import check_vocabulary
from janus_dist.errors import CheckpointError, DataError
from janus_dist.model.size import check_shapes

SHAPES = {"a": (2, 3), "b": (4,)}


def test_the_same_shapes_pass_as_lists_and_as_tuples():
    check_shapes(SHAPES, {name: list(shape) for name, shape in SHAPES.items()}, "here")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            {"a": [2, 3], "b": [5]},
            r"1 parameters differ, the first is b: \(5,\) in the checkpoint, \(4,\) in this recipe",
        ),
        ({"b": [5]}, r"2 parameters differ, the first is a: absent in the checkpoint, \(2, 3\) in this recipe"),
        ({**SHAPES, "c": [1]}, r"1 parameters differ, the first is c: \(1,\) in the checkpoint, absent in this recipe"),
    ],
)
def test_other_shapes_are_refused(found, said):
    with pytest.raises(CheckpointError, match=rf"^here holds a model of another size: {said}"):
        check_shapes(SHAPES, found, "here")


@pytest.mark.parametrize(("ids", "is_fitting"), [(63, True), (64, True), (65, False)])
def test_a_tokenizer_may_have_as_many_ids_as_the_model(ids, is_fitting):
    tokenizer: Any = SimpleNamespace(size=ids)
    model = SimpleNamespace(text=SimpleNamespace(vocab=64))
    recipe: Any = SimpleNamespace(model=model, data=SimpleNamespace(tokenizer="t.json"))
    if is_fitting:
        check_vocabulary(tokenizer, recipe)
    else:
        with pytest.raises(DataError, match=r"^data.tokenizer=t.json has 65 ids, more than model.text.vocab=64"):
            check_vocabulary(tokenizer, recipe)
