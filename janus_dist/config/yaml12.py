"""YAML 1.2 (core schema) on PyYAML, which by itself reads YAML 1.1: `2:3:5` as 7385, `010` as 8, `no` as false.

Beyond the core schema, underscores may separate the digits of a number (`5_000_000`). Invariant: a text nested too
deeply raises MarkedYAMLError, never RecursionError, and no tag runs code.
"""

import re
from typing import Any, cast

import yaml

MAX_DEPTH = 64
"""Deepest nesting of sections and lists; recipes have six levels."""

DECIMAL = r"[-+]?[0-9](?:_?[0-9])*"
INT = re.compile(rf"{DECIMAL}|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9](?:_?[0-9])*|[0-9](?:_?[0-9])*(?:\.(?:[0-9](?:_?[0-9])*)?)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
BOOL = re.compile("true|True|TRUE|false|False|FALSE")
NULL = re.compile("~|null|Null|NULL|")


class Yaml12Loader(yaml.SafeLoader):
    """PyYAML's loader with the scalars of YAML 1.2 and a limit on depth."""

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as PyYAML has it
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node. Raises MarkedYAMLError when it is nested too deeply."""
        if self.depth >= MAX_DEPTH:
            mark = cast(Any, self.get_mark())  # pyright: ignore[reportUnknownMemberType]
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_DEPTH} levels of nested sections and lists", problem_mark=mark
            )
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _integer(loader: Yaml12Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    if not INT.fullmatch(text):
        raise yaml.MarkedYAMLError(problem=f"{text!r} is not a whole number", problem_mark=node.start_mark)
    bases = {"0o": 8, "0x": 16}
    return int(text, bases.get(text[:2], 10))


def _float(loader: Yaml12Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    if not FLOAT.fullmatch(text):
        raise yaml.MarkedYAMLError(problem=f"{text!r} is not a number", problem_mark=node.start_mark)
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _bool(loader: Yaml12Loader, node: yaml.ScalarNode) -> bool:
    text = str(loader.construct_scalar(node))
    if not BOOL.fullmatch(text):
        raise yaml.MarkedYAMLError(problem=f"{text!r} is neither true nor false", problem_mark=node.start_mark)
    return text.lower() == "true"


def _register() -> None:
    """Register the core schema with `Yaml12Loader`: the first pattern that matches a plain scalar decides its type."""
    for kind, pattern, first in (
        ("null", NULL, ["~", "n", "N", ""]),
        ("bool", BOOL, list("tTfF")),
        ("int", INT, list("-+0123456789")),
        ("float", FLOAT, list("-+0123456789.")),
    ):
        for letter in first:
            Yaml12Loader.yaml_implicit_resolvers.setdefault(letter, []).append(
                (f"tag:yaml.org,2002:{kind}", re.compile(rf"(?:{pattern.pattern})\Z"))
            )
    constructors: dict[str, Any] = {"int": _integer, "float": _float, "bool": _bool}
    for kind, construct in constructors.items():
        Yaml12Loader.add_constructor(f"tag:yaml.org,2002:{kind}", construct)


_register()
