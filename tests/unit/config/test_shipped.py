"""The folder of the embedded default is written once, and what jobs take from it exists."""

import ast
from pathlib import Path

import pytest

from janus_dist.config import shipped

ROOT = Path(__file__).parents[3]
PRODUCT = [
    path
    for folder in ("janus_dist", "data_pipelines", "jobs", "cluster", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_each_stage_has_its_files(stage):
    assert all(path.is_file() for path in [*shipped.tiny(stage), *shipped.proof(stage)])


def test_the_files_of_a_copy_lie_beside_its_jobs():
    assert shipped.tiny("stage2", Path("jobs")) == [
        Path("jobs/recipes/tiny/base.yaml"),
        Path("jobs/recipes/tiny/stage2.yaml"),
    ]


def joins_of(path: Path) -> set[str]:
    """Return the texts that a module joins to paths by `/`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    divisions = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)]
    return {
        side.value
        for node in divisions
        for side in (node.left, node.right)
        if isinstance(side, ast.Constant) and isinstance(side.value, str)
    }


def test_no_other_module_builds_the_path_of_a_shipped_recipe():
    found = {path.relative_to(ROOT).as_posix() for path in PRODUCT if joins_of(path) & {"recipes", "tiny"}}
    assert found == {"janus_dist/config/shipped.py"}
