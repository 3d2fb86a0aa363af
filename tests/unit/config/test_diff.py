"""Differences of settings trees: every key that differs, once, and no other."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from janus_dist.config.diff import ABSENT, changes, differences, flatten

LEAVES = st.one_of(st.integers(), st.text(max_size=3), st.none(), st.lists(st.integers(), max_size=2))
TREES: Any = st.recursive(
    st.dictionaries(st.sampled_from("abc"), LEAVES, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), st.one_of(LEAVES, inner), max_size=3),
    max_leaves=8,
)


def test_keys_are_dotted_and_lists_are_values():
    tree = {"a": {"b": 1, "c": {}}, "d": [1, 2]}
    assert list(flatten(tree)) == [("a.b", 1), ("a.c", {}), ("d", [1, 2])]
    assert list(flatten(tree, "x.")) == [("x.a.b", 1), ("x.a.c", {}), ("x.d", [1, 2])]


def test_a_key_of_one_side_is_absent_on_the_other():
    assert differences({"a": 1, "b": {"c": None}}, {"b": {"c": 2}, "d": None}) == [
        ("a", 1, ABSENT),
        ("b.c", None, 2),
        ("d", ABSENT, None),
    ]
    assert str(ABSENT) == "(absent)"


def test_an_absent_key_counts_as_none_where_values_are_told():
    """Settings that another version of the program did not write are no difference when they are not set."""
    assert list(changes({"a": None, "b": 1}, {"b": 2, "c": []})) == [("b", 1, 2), ("c", None, [])]


@given(TREES, TREES)
def test_trees_without_differences_are_equal(first: dict[str, Any], second: dict[str, Any]):
    found = differences(first, second)
    assert (found == []) == (first == second)
    back = {pair.key: (pair.now, pair.before) for pair in differences(second, first)}
    assert back == {pair.key: (pair.before, pair.now) for pair in found}
