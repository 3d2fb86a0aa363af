"""What documents say of commands and files is there: links, commands with their options, jobs, recipes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from janus_dist.cli.main import app
from janus_dist.config.fields import keys
from janus_dist.config.recipe import StageRecipe

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("cluster/*.md"), *ROOT.glob("jobs/recipes/*/*.md")]
)
COMMANDS = typer.main.get_command(app)
SETTINGS = {re.sub(r"\.NAME.*|\[\].*", "", key) for key in keys(StageRecipe)}


def lines_of_code(page: Path) -> Iterator[str]:
    """Indented lines and what stands in backquotes."""
    for line in page.read_text().splitlines():
        if line.startswith("    "):
            yield line.strip().removeprefix("$ ")
        yield from re.findall(r"`([^`]+)`", line)


def words(line: str) -> list[str]:
    try:
        return shlex.split(line.split(" # ")[0])
    except ValueError:
        return []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist_with_their_options(page):
    for line in lines_of_code(page):
        found = words(line)
        if len(found) < 2 or found[0] != "janus" or not re.fullmatch(r"[a-z]+,?", found[1]):
            continue
        command, rest = COMMANDS, found[1:]
        while rest and hasattr(command, "commands"):
            name = rest.pop(0).rstrip(",")
            assert name in command.commands, f"{page.name}: {line!r}: no command {name!r}"  # pyright: ignore[reportAttributeAccessIssue]
            command = command.commands[name]  # pyright: ignore[reportAttributeAccessIssue]
            if rest and not re.fullmatch(r"[a-z]+,?", rest[0]):
                break
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for word in rest[: rest.index("--")] if "--" in rest else rest:  # behind it are options of a job
            option = word.strip("[]").split("=")[0]
            if option.startswith("--"):
                assert option in options, f"{page.name}: {line!r}: no option {option}"


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md", "docs/cluster.md"])
def test_whoever_begins_here_is_told_where_the_commands_are(name):
    """`ray` and `janus` are in the virtual environment, not on the PATH of a new shell."""
    text = (ROOT / name).read_text()
    first = re.search(r"^    (?:ray|janus|python) ", text, re.M)
    assert first and ". .venv/bin/activate" in text[: first.start()]


def test_the_walk_stops_a_job_that_runs():
    """Behind a command that follows its job to the end, `touch RUN/STOP` would stop the next one."""
    before, _, _ = (ROOT / "docs" / "cluster.md").read_text().partition("\n    touch runs/tiny/stage2/STOP\n")
    submitted = re.findall(r"^    (janus submit .*)$", before, re.M)[-1]
    assert "--no-wait" in submitted


def test_what_is_said_of_others_has_a_source():
    text = (ROOT / "docs" / "comparison.md").read_text()
    sources = set(re.findall(r"^(\d+)\. ", text, re.M))
    rows = [row.strip("| ").split(" | ")[2:] for row in re.findall(r"^\| (?!---|\|).*", text, re.M)]
    assert len(rows) >= 35 and {len(row) for row in rows} == {7}
    for cell in (cell for row in rows for cell in row):
        assert cell == "-" or cell.rpartition(" ")[2] in sources, cell


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_jobs_recipes_and_settings_exist(page):
    for line in lines_of_code(page):
        for path in re.findall(
            r"\b(?:jobs|cluster|benchmarks|janus_dist|data_pipelines|tests)/[\w./-]+\.(?:py|yaml|sh|json)\b", line
        ):
            assert (ROOT / path).exists(), f"{page.name}: {line!r}: no file {path}"
        if "jobs/" in line:
            for key in re.findall(r" ([a-z_]+(?:\.[a-z_0-9]+)+)=", line):
                assert any(one == key or one.startswith(key + ".") or key.startswith(one + ".") for one in SETTINGS), (
                    f"{page.name}: {line!r}: no setting {key}"
                )


def test_the_hops_of_the_journeys_exist():
    """`FILE: FUNCTION` in docs/design.md names a function, a class or a method of that file."""
    section = (ROOT / "docs" / "design.md").read_text().split("## Three journeys")[1].split("\n## ")[0]
    hops = re.findall(r"`([\w/]+\.py): ([\w.]+)`", section)
    assert len(hops) > 25
    missing = [
        (file, name)
        for file, name in hops
        for part in name.split(".")
        if not re.search(rf"(?:def|class) {part}\b", (ROOT / file).read_text())
    ]
    assert missing == []
