"""The budgets of CONTRIBUTING.md: sizes of files and functions, docstrings, empty packages, ASCII."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE_LINES, FUNCTION_LINES, README_LINES = 400, 60, 150
ALLOWED = set("\uff5c\u2581")  # bars in the special tokens of the model
TEXT = {".py", ".md", ".yaml", ".toml", ".html", ".j2", ".txt", ""}


def _files() -> list[Path]:
    """Files of the repository: those that git knows or would take."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


FILES = _files()
FOREIGN = {ROOT / "tests" / "kept", ROOT / "tests" / "cases"}
"""Folders of what older versions of the program wrote, and of inputs with what users' files have."""
WRITTEN = [path for path in FILES if not FOREIGN & set(path.parents)]
MODULES = [path for path in FILES if path.suffix == ".py" and path.name != "__init__.py"]


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_repository_has_modules():
    assert {"janus_dist/errors.py", "jobs/stage2.py"} <= {_relative(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=_relative)
def test_module(path: Path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert source.count("\n") <= FILE_LINES
    assert path.name == "conftest.py" or ast.get_docstring(tree), "no module docstring"
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]
    assert not long


def test_packages_are_empty():
    assert [_relative(path) for path in FILES if path.name == "__init__.py" and path.stat().st_size] == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("path", [path for path in WRITTEN if path.suffix in TEXT], ids=_relative)
def test_ascii(path: Path):
    foreign = {character for character in path.read_text(encoding="utf-8") if ord(character) > 127} - ALLOWED
    assert not foreign


def test_readme_names_only_what_exists():
    """Links of the README, and the files of its reading order, lie in the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert not missing
