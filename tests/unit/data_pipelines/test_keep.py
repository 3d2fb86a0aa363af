"""Rules on values of records: what is kept, and what each record that is dropped is told."""

import math
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pytest
from pydantic import ValidationError

from data_pipelines.record import DroppedByRule
from data_pipelines.steps import keep
from janus_dist.config.pipeline import InputConfig, KeepRule
from janus_dist.data import images
from tests.images import noise, png


def rule(**values):
    """As a recipe gives it."""
    return InputConfig.model_validate({"format": "jsonl", "path": "a", "where": {"x": values}}).where["x"]


def pd_nat():
    """The null of a column of time stamps."""
    return np.datetime64("NaT")


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"min": 256}, 256),
        ({"min": 256}, "256"),
        ({"min": 0.3}, " 0.30 "),
        ({"min": 0.3}, "3e-1"),
        ({"max": 2}, 2.0),
        ({"max": 2}, np.float32(2)),
        ({"max": 2}, Decimal("1.5")),
        ({"min": 0.3}, Decimal("0.40")),
        ({"min": 1}, np.int64(1)),
        ({"min": "2024-05-31"}, date(2024, 5, 31)),
        ({"min": "2024-05-31"}, "2024-06-01T10:00:00Z"),
        ({"max": "2024-05-31T12:00:00+02:00"}, datetime(2024, 5, 31, 10)),
        ({"one_of": ["2024-05-31"]}, datetime(2024, 5, 31)),
        ({"one_of": ["1"]}, 1.0),
        ({"one_of": [0.4]}, Decimal("0.40")),
        ({"one_of": [False]}, "no"),
        ({"one_of": [True]}, "Yes"),
        ({"one_of": ["true"]}, np.True_),
        ({"min": 1, "max": 1}, True),
        ({"min": -1, "max": 1}, 0),
        ({"one_of": ["en", "de"]}, "de"),
        ({"one_of": ["en", "de"]}, " de "),
        ({"one_of": [1, 2]}, 2),
        ({"one_of": [1, 2]}, "2.0"),
        ({"one_of": ["1"]}, 1),
        ({"one_of": [True]}, True),
        ({"one_of": [True]}, "True"),
        ({"one_of": [False]}, "false"),
        ({"one_of": [False]}, np.False_),
        ({"min": 1, "one_of": [1, 5]}, 5),
        ({}, "anything"),
        ({}, 0),
    ],
)
def test_what_is_kept(values, found):
    keep.check({"x": rule(**values)}, {"x": found, "other": None})


@pytest.mark.parametrize(
    ("values", "found", "expected"),
    [
        ({"min": 256}, 255, ("x >= 256", "255")),
        ({"min": 256}, "255.5", ("x >= 256", "255.5")),
        ({"min": 0.3}, 0.1 + 0.1, ("x >= 0.3", "0.2")),
        ({"min": 1_000_000}, 12, ("x >= 1000000", "12")),
        ({"max": 2}, 2.5, ("x <= 2", "2.5")),
        ({"max": 2}, math.inf, ("x <= 2", "inf")),
        ({"min": 1, "max": 2}, 3, ("x <= 2", "3")),
        ({"one_of": ["en", "de"]}, "fr", ("x is one of en, de", "fr")),
        ({"one_of": ["en", "de"]}, "EN", ("x is one of en, de", "EN")),
        ({"one_of": [1, 2.5]}, 3, ("x is one of 1, 2.5", "3")),
        ({"one_of": [1]}, True, ("x is one of 1", "True")),
        ({"one_of": [True]}, False, ("x is one of True", "False")),
        ({"one_of": ["en"]}, "x" * 500, ("x is one of en", "x" * 100)),
        ({"min": 3}, "many", ("x is no number", "many")),
        ({"min": 3}, [4], ("x is no number", "[4]")),
        ({"min": 0.3}, Decimal("0.2"), ("x >= 0.3", "0.2")),
        ({"min": "2024-05-31"}, date(2024, 5, 30), ("x >= 2024-05-31", "2024-05-30")),
        ({"min": "2024-05-31"}, 5, ("x is no date", "5")),
        ({"min": 3}, date(2024, 5, 30), ("x is no number", "2024-05-30")),
        ({"one_of": [False]}, "nein", ("x is one of False", "nein")),
        ({"min": 3}, pd_nat(), ("x is missing", "")),
        ({"min": 3}, "-nan", ("x is no number", "-nan")),
        ({"min": 3}, 10**400, ("x is no number", "1" + "0" * 99)),
        ({"min": 3}, None, ("x is missing", "")),
        ({"min": 3}, math.nan, ("x is missing", "")),
        ({"min": 3}, np.float32("nan"), ("x is missing", "")),
        ({"min": 3}, "NaN", ("x is missing", "")),
        ({"one_of": ["en"]}, " ", ("x is missing", "")),
        ({}, None, ("x is missing", "")),
    ],
)
def test_what_is_dropped(values, found, expected):
    with pytest.raises(DroppedByRule) as caught:
        keep.check({"x": rule(**values)}, {"x": found})
    assert (caught.value.rule, caught.value.value) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"one_of": [False, "en"]}, r"mixes booleans with texts; YAML reads true.*write \['false', 'en'\]"),
        ({"min": "many"}, "'many' is neither a number nor a date such as 2024-05-31"),
        ({"min": True}, "True is neither a number nor a date"),
        ({"max": math.nan}, "nan is not a finite number"),
        ({"min": 3, "max": "2024-01-01"}, "are a number and a date"),
    ],
)
def test_rules_that_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        rule(**values)


def test_a_column_that_is_not_there_is_missing():
    with pytest.raises(DroppedByRule) as caught:
        keep.check({"similarity": KeepRule(min=0.3)}, {"other": 1})
    assert caught.value.rule == "similarity is missing"


def test_the_first_broken_rule_is_named():
    rules = {"a": KeepRule(min=1), "b": KeepRule(min=1), "c": KeepRule(min=1)}
    with pytest.raises(DroppedByRule) as caught:
        keep.check(rules, {"a": 1, "b": 0, "c": 0})
    assert caught.value.rule == "b >= 1"


def test_rules_on_pictures_stand_apart():
    where = {
        "width": KeepRule(min=1),
        "language": KeepRule(),
        "aspect": KeepRule(max=2),
        "caption_chars": KeepRule(min=5),
    }
    of_records, of_pictures = keep.split(where)
    assert list(of_records) == ["language", "caption_chars"] and list(of_pictures) == ["width", "aspect"]


@pytest.mark.parametrize(("width", "height", "aspect"), [(40, 20, 2.0), (20, 50, 2.5), (30, 30, 1.0)])
def test_measures_of_a_picture(width, height, aspect):
    picture = images.peek(png(noise(width, height)), 10_000)
    assert keep.measures(picture) == {"width": width, "height": height, "aspect": aspect}
