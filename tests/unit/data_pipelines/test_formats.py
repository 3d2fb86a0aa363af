"""Every format that a recipe takes can be read, and every data set that a run is evaluated on has the same methods."""

from typing import Any, get_args

import pytest

from data_pipelines.inputs.formats import FORMATS, InputFormat
from janus_dist.config.pipeline import Format
from janus_dist.evaluation.easy_vqa import EasyVqa
from janus_dist.evaluation.held_out import DataSet
from janus_dist.evaluation.scenes import Scenes


def members(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")}


def test_each_format_of_a_recipe_has_a_reader():
    assert set(FORMATS) == set(get_args(Format))
    for reader in FORMATS.values():
        assert all(callable(getattr(reader, name)) for name in members(InputFormat))


@pytest.mark.parametrize(("data_set", "name"), [(EasyVqa(), "easy_vqa"), (Scenes(), "scenes")])
def test_each_data_set_has_all_that_an_evaluation_asks_for(data_set: DataSet[Any], name):
    assert data_set.name == name, "evaluation.json of earlier runs says so"
    assert all(hasattr(data_set, member) for member in members(DataSet))
