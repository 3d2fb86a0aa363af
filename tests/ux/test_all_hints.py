"""Every hint that the code gives is followed by a test, or listed with the reason why no test can follow it.

`hints.txt` lists them all below lines `= TEST` (a file beside this one and its function) or `= REASON` (of `REASONS`).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LISTED = Path(__file__).parent / "hints.txt"
CODE = ("janus_dist", "jobs", "data_pipelines", "cluster")
WITH_CAUSE = "AttemptError"
"""Its hint is the third argument, not the second."""
ADVICE = re.compile(r"did you mean|(?:(?<!\?)[;,:] |\) )(?:write|set|give|take|put|leave|name|say which|download)\b")
"""What advice inside a message begins with."""
SHOWN_CHARS = 140
"""Characters of a hint in the list."""
REASONS = {
    "cluster": "needs a cluster of Ray, its token, its dashboard, or more of its nodes",
    "decision": "asks for what only the user has or decides: other data, another folder, the right file, a repair",
    "download": "needs files from the network, or a package",
    "hardware": "needs a GPU, a full disk, or several machines",
    "network": "needs a store that refuses or fails",
    "passed on": "is no hint of its own: that of another error, or what a reader lost",
    "same command": "asks for the same command again, which tests/resume, tests/chaos and tests/jobs run",
}


def hints() -> set[str]:
    """Return `FILE: HINT` of every hint in the code: of errors, and advice inside messages."""
    found: set[str] = set()
    for path in (path for top in CODE for path in sorted((ROOT / top).rglob("*.py"))):
        texts = _texts(ast.parse(path.read_text(encoding="utf-8")))
        found |= {f"{path.relative_to(ROOT)}: {' '.join(text[:SHOWN_CHARS].split())}" for text in texts}
    return found


def _texts(tree: ast.Module) -> Iterator[str]:
    skipped = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    skipped |= {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (hint := _hint(node)) is not None:
            skipped |= set(ast.walk(hint))
            yield _text(hint)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node not in skipped and ADVICE.search(_text(node)):
            yield _text(node)


def _hint(call: ast.Call) -> ast.expr | None:
    """Return the hint of an error that is made, None for another call or an error without a hint."""
    name = ast.unparse(call.func).rpartition(".")[2]
    if not name.endswith("Error") or name in (
        "OSError",
        "PermissionError",
        "MarkedYAMLError",
        "NoAnswerError",
        "RecordError",
        "LostError",
    ):
        return None
    place = 2 if name == WITH_CAUSE else 1
    named = [word.value for word in call.keywords if word.arg == "hint"]
    hint = call.args[place] if len(call.args) > place else next(iter(named), None)
    return None if isinstance(hint, ast.Constant) and hint.value is None else hint


def _text(node: ast.expr) -> str:
    """Return a text with {} for what is filled in, and code that makes a text in angle brackets."""
    match node:
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        case ast.IfExp():
            return f"{_text(node.body)} | {_text(node.orelse)}"
        case _:
            return f"<{ast.unparse(node)}>"


def listed() -> dict[str, str]:
    """Return by hint the test that follows it, or the reason."""
    found: dict[str, str] = {}
    heading = ""
    for line in LISTED.read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            heading = line.removeprefix("= ")
        else:
            found[line] = heading
    return found


def test_every_hint_is_listed_with_its_test_or_a_reason():
    there, known = hints(), set(listed())
    assert sorted(there - known) == [], "follow these by a test, and list them in tests/ux/hints.txt"
    assert sorted(known - there) == [], "the code has no such hint any more"


@pytest.mark.parametrize("reference", sorted(set(listed().values()) - set(REASONS)))
def test_the_tests_that_are_named_exist(reference: str):
    file, _, name = reference.partition("::")
    tree = ast.parse((LISTED.parent / file).read_text(encoding="utf-8"))
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_hints_without_a_test_are_the_smaller_part_and_have_a_reason():
    found = list(listed().values())
    assert set(REASONS) <= set(found)
    assert sum(heading in REASONS for heading in found) < len(found) / 2


def test_a_new_hint_is_found():
    code = ast.parse("raise DataError(f'{x} is wrong', f'do {y} instead')\nraise ConfigError('bad; set x=1')")
    assert sorted(_texts(code)) == ["bad; set x=1", "do {} instead"]


@pytest.mark.parametrize("page", sorted(set(re.findall(r"docs/\w+\.md", "\n".join(hints())))))
def test_pages_that_hints_name_exist(page: str):
    assert (ROOT / page).is_file()
