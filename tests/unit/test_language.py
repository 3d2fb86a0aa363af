"""How the code reads: openings of docstrings, one name for one class, plain words in messages, simple functions.

What is counted here is what a reader stumbles over; CONTRIBUTING.md has the rules.
"""

import ast
import builtins
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOPS = ("janus_dist", "data_pipelines", "jobs", "cluster")
MODULES = [path for top in TOPS for path in sorted((ROOT / top).rglob("*.py")) if path.stat().st_size]
MAX_COMPLEXITY = 15
OPENINGS = {"A", "An", "As", "How", "Likewise", "Of", "One", "The", "What", "Where", "Whether", "Which", "Who", "Why"}
"""Words that a function's docstring does not begin with: it begins with a verb."""
FILLERS = re.compile(
    r"\b(?:stands? (?:for|still)|goes on|go on|mend|beside|whatever|whoever|likewise|so many|of which|"
    r"there (?:is|are) none|what is there|(?<!there )is no (?!longer|space)|in the way)\b",
    re.IGNORECASE,
)
"""Private English that messages do without."""
ARRAYS = re.compile(r"\b(?:NDArray|Tensor)\b")
SHAPE = re.compile(r"\[[^\]]*\]|shape|scalar|flattened", re.IGNORECASE)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> Iterator[Function]:
    """Yield all functions of a module, methods and nested ones included."""
    yield from (node for node in ast.walk(tree(path)) if isinstance(node, Function))


@pytest.mark.parametrize("path", MODULES, ids=_relative)
def test_docstrings_of_functions_begin_with_a_verb(path: Path):
    first = {node.name: (ast.get_docstring(node) or "").split(maxsplit=1)[:1] for node in functions(path)}
    assert {name: words for name, words in first.items() if words and words[0].strip(",.:;") in OPENINGS} == {}


def test_a_class_name_means_one_thing():
    places: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(_relative(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def messages(path: Path) -> Iterator[str]:
    """Yield the texts that errors are raised with; {} stands for what is filled in."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error"):
            for part in [*node.args, *(keyword.value for keyword in node.keywords)]:
                for text in ast.walk(part):
                    if isinstance(text, ast.JoinedStr):
                        yield "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in text.values)
                    elif isinstance(text, ast.Constant) and isinstance(text.value, str):
                        yield text.value


@pytest.mark.parametrize("path", MODULES, ids=_relative)
def test_messages_are_in_plain_words(path: Path):
    assert [text for text in messages(path) if FILLERS.search(text)] == []


def complexity(function: Function) -> int:
    """Return 1 + the branches of a function, those within expressions and comprehensions included."""
    count = 1
    for node in ast.walk(function):
        match node:
            case ast.If() | ast.For() | ast.AsyncFor() | ast.While() | ast.ExceptHandler() | ast.IfExp():
                count += 1
            case ast.Assert() | ast.match_case():
                count += 1
            case ast.BoolOp():
                count += len(node.values) - 1
            case ast.comprehension():
                count += 1 + len(node.ifs)
            case _:
                pass
    return count


def test_complexity_counts_what_hides_in_expressions():
    source = "def f(xs, y):\n return [x if x or y else 0 for x in xs if x and y]"
    (function,) = (node for node in ast.walk(ast.parse(source)) if isinstance(node, Function))
    assert complexity(function) == 6


@pytest.mark.parametrize("path", MODULES, ids=_relative)
def test_functions_are_simple(path: Path):
    counted = {node.name: complexity(node) for node in functions(path)}
    assert {name: count for name, count in counted.items() if count > MAX_COMPLEXITY} == {}


@pytest.mark.parametrize("path", MODULES, ids=_relative)
def test_public_functions_on_arrays_say_their_shapes(path: Path):
    silent = []
    for node in functions(path):
        annotations = [part.annotation for part in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
        is_on_arrays = any(part is not None and ARRAYS.search(ast.unparse(part)) for part in annotations)
        docstring = ast.get_docstring(node) or ""
        if is_on_arrays and docstring and not node.name.startswith("_") and not SHAPE.search(docstring):
            silent.append(node.name)
    assert silent == []


def imports() -> dict[str, set[str]]:
    """Return by module the modules of this repository that it imports, when it is imported."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    found: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for node in tree(path).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                found[name] |= wanted & names.keys()
    return found


def test_no_imports_go_in_a_circle():
    left = imports()
    assert len(left) > 100 and sum(map(len, left.values())) > 500
    while free := [name for name, wanted in left.items() if not wanted & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == []


PLACEHOLDERS = {"MASTER_ADDR", "MASTER_PORT", "SAVED_IN", "WORLD_SIZE"}
"""Names in docstrings that are no names of the code: variables of torchrun's environment, and a folder in a drawing."""
CODE_NAME = re.compile(r"(?<![\w/$.{-])(?:[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|[A-Z][a-z]+[A-Za-z]*Error)(?![\w/*])")


def test_constants_and_errors_that_docstrings_name_exist():
    names, docstrings, texts = set(dir(builtins)) | PLACEHOLDERS, [], ""
    for path in MODULES:
        expressions = {id(node.value) for node in ast.walk(tree(path)) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree(path)):
            match node:
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.ClassDef(name=name) | ast.alias(name=name):
                    names.add(name)
                case ast.Constant(value=str(text)) if id(node) in expressions:
                    docstrings.append((_relative(path), text))
                case ast.Constant(value=str(text)):
                    texts += f"{text}\n"
                case _:
                    pass
    names |= set(CODE_NAME.findall(texts))  # of environments and tables, named by strings
    missing = [(path, name) for path, text in docstrings for name in CODE_NAME.findall(text) if name not in names]
    assert docstrings and missing == []
