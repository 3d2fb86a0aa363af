"""YAML of recipes: numbers of YAML 1.2, the same values as before in every shipped recipe, bounds on what is read."""

import math
from pathlib import Path

import pytest
import yaml

from janus_dist.config.load import load
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.settings import MAX_BYTES, read
from janus_dist.config.yaml12 import MAX_DEPTH
from janus_dist.errors import ConfigError
from tests.unit.config.test_config_load import RECIPES


def value(text: str) -> object:
    """What an override with this text gives."""
    settings = read([], [f"key={text}"])
    assert settings.faults == []
    return settings.root.plain()["key"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("010", 10), ("0o10", 8), ("0x1F", 31), ("-7", -7), ("+7", 7), ("5_000_000", 5_000_000), ("0b1", "0b1"),
        ("1e-4", 1e-4), ("1.0e3", 1000.0), ("1e5", 1e5), (".5", 0.5), ("1.", 1.0), ("-1.5E+2", -150.0), ("1_0.5", 10.5),
        (".inf", math.inf), ("-.INF", -math.inf), ("1__0", "1__0"), ("_1", "_1"), ("1_", "1_"), (".", "."),
        ("2:3:5", "2:3:5"), ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("2026-11-30", "2026-11-30"),
        ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("off", "off"), ("y", "y"), ("true", True), ("FALSE", False),
        ("~", None), ("null", None), ("Null", None), ("", None), ("nULL", "nULL"), ("'10'", "10"), ("!!int '010'", 10),
        ("!!float 1", 1.0), ("!!str 10", "10"), ("[no, en, 010]", ["no", "en", 10]), ("<<", "<<"), ("=", "="),
    ],
)  # fmt: skip
def test_scalars_of_yaml_1_2(text: str, expected: object):
    found = value(text)
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize("text", ["!!int ten", "!!bool maybe", "!!float 1:30"])
def test_a_tag_that_does_not_fit_its_text_is_a_fault(text: str):
    assert [fault.message.partition(":")[0] for fault in read([], [f"key={text}"]).faults] == ["is not YAML"]


SHIPPED = sorted(RECIPES.rglob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(RECIPES)))
def test_shipped_recipes_have_the_values_that_yaml_1_1_gave(path: Path):
    """But numbers like 1e-4, which YAML 1.1 read as text, and which the settings' types made numbers of."""
    settings = read([path], [])
    assert settings.faults == []
    assert _same(settings.root.plain(), yaml.safe_load(path.read_text()))


def _same(now: object, before: object) -> bool:
    if isinstance(now, dict) and isinstance(before, dict):
        return now.keys() == before.keys() and all(_same(now[key], before[key]) for key in now)
    if isinstance(now, list) and isinstance(before, list):
        return len(now) == len(before) and all(map(_same, now, before))
    if isinstance(now, float) and isinstance(before, str):
        return now == float(before)
    return (type(now), now) == (type(before), before)


def faults(files: list[Path], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(StageRecipe, files, overrides)
    return str(caught.value)


def test_a_ratio_is_refused_with_the_right_form_and_that_form_is_taken(files: list[Path]):
    right = "mix={understanding: 2, text: 3, generation: 5}"
    for wrong in ("mix=2:3:5", "mix.understanding=2:3:5"):
        assert f"got '2:3:5'; write a ratio as one number for each stream: '{right}'" in faults(files, wrong)
    assert load(StageRecipe, files, [right]).recipe.mix.generation == 5
    for key in ("engine.timeout_s", "optim.lr"):
        assert "got '1:30'; write one number without colons" in faults(files, f"{key}=1:30")
    assert "got '1.2.3'" in faults(files, "optim.lr=1.2.3") and "colons" not in faults(files, "optim.lr=1.2.3")


def test_what_is_nested_too_deep_is_a_fault_of_its_line(files: list[Path]):
    Path("deep.yaml").write_text("# a comment\nmix: " + "[" * 3_000 + "]" * 3_000 + "\n")
    text = faults([*files, Path("deep.yaml")])
    assert f"deep.yaml:2\n    is not YAML: more than {MAX_DEPTH} levels of nested sections and lists" in text
    assert "more than" in faults(files, "mix=" + "{a: " * 3_000 + "1" + "}" * 3_000)


def test_aliases_that_multiply_are_a_fault(files: list[Path]):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 30)]
    Path("bomb.yaml").write_text("\n".join(lines) + "\n")
    assert "values after expanding every alias" in faults([*files, Path("bomb.yaml")])


def test_a_file_that_is_no_recipe_by_its_size_is_not_read_to_its_end(files: list[Path]):
    Path("large.yaml").write_text("# " + "x" * MAX_BYTES + "\n")
    for path in (Path("large.yaml"), Path("/dev/zero")):
        assert f"{path}\n    is larger than 1,048,576 bytes" in faults([*files, path])
