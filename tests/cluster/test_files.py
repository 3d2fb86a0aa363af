"""The configuration of `ray up` against Ray's own schema, the image's file, and docs/cluster.md against all of them."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli

from janus_dist.config.load import load
from janus_dist.config.recipe import StageRecipe

ROOT = Path(__file__).parents[2]
RAY_UP = yaml.safe_load((ROOT / "cluster" / "ray-up.yaml").read_text())
IMAGE = (ROOT / "cluster" / "Containerfile").read_text()
IGNORED = (ROOT / "cluster" / "Containerfile.dockerignore").read_text().split()
DOC = (ROOT / "docs" / "cluster.md").read_text()
RECIPES = [ROOT / "jobs" / "recipes" / "janus-1.3b" / name for name in ("base.yaml", "stage2.yaml")]


def constraint(name: str) -> str:
    (found,) = re.findall(rf"^{name}==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    return found


def test_ray_takes_the_configuration():
    validate_config(prepare_config(yaml.safe_load((ROOT / "cluster" / "ray-up.yaml").read_text())))


@pytest.mark.parametrize("node", ["head", "worker"])
def test_ray_start_takes_the_commands(node):
    stop, start = RAY_UP[f"{node}_start_ray_commands"]
    subprocess.run(["bash", "-n", "-c", start], check=True)
    words = shlex.split(start.replace("$RAY_HEAD_IP", "10.0.0.1"))
    arguments = words[words.index("ray") + 2 :]
    given = cli.commands["start"].make_context("start", arguments).params
    assert stop == "ray stop" and given["head"] == (node == "head")
    assert given["dashboard_host"] in (None, "127.0.0.1")
    assert given["autoscaling_config" if node == "head" else "object_store_memory"]


def test_ray_up_has_room_for_the_recipe():
    cluster, types = load(StageRecipe, RECIPES, []).recipe.cluster, RAY_UP["available_node_types"]
    gpu = types["gpu"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert gpu["max_workers"] == RAY_UP["max_workers"]
    assert gpu["max_workers"] * gpu["resources"]["GPU"] == cluster.workers
    assert gpu["resources"]["CPU"] >= gpu["resources"]["GPU"] * cluster.cpus_per_worker


def test_ray_up_gives_every_node_the_token_and_the_folders_of_the_recipes():
    options = RAY_UP["docker"]["run_options"]
    (mounted,) = RAY_UP["file_mounts"]
    assert "-e RAY_AUTH_MODE=token" in options and f"-e RAY_AUTH_TOKEN_PATH={mounted}/token" in options
    assert mounted.startswith("/home/janus/") and "--create-home janus" in IMAGE
    folders = {option.split(":")[1] for option in options if option.startswith("-v ")}
    assert folders == {f"/opt/janus-dist/{name}" for name in ("data", "runs", "weights")}


def test_the_image_is_pinned():
    bases = re.findall(r"^FROM (\S+)", IMAGE, re.M)
    assert bases[1:] == ["run"] and re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", bases[0])
    assert re.findall(r"^ARG TORCH=(.+)$", IMAGE, re.M) == [constraint("torch")]
    installs = re.findall(r"pip install [^&\n]*", IMAGE)
    assert len(installs) == 2 and all("--constraint /opt/constraints.txt" in install for install in installs)
    assert "ADD --checksum=sha256:" in IMAGE and "curl" not in IMAGE


def test_the_image_ends_as_a_user_that_is_not_root():
    stages = IMAGE.split("\nFROM ")[1:]
    assert len(stages) == 2
    assert all(re.findall(r"^USER (\w+)", stage, re.M)[-1] == "janus" for stage in stages)
    assert "--uid 1000" in stages[0]


def test_the_image_takes_what_is_there():
    taken = [word for line in re.findall(r"^COPY (.+)$", IMAGE, re.M) for word in line.split()[:-1]]
    assert {"janus_dist", "jobs", "cluster", "data_pipelines"} <= set(taken)
    assert all((ROOT / name).exists() for name in taken)
    assert set(taken) == {line[1:] for line in IGNORED if line.startswith("!")} and IGNORED[0] == "*"


@pytest.mark.parametrize("command", ["wget", "procps", "gcc"])
def test_the_image_holds_what_scripts_and_probes_call(command):
    assert re.search(rf"\b{command}\b", IMAGE.split("apt-get install")[1].split("&&")[0])


def test_the_document_names_what_is_there():
    paths = set(re.findall(r"\b((?:cluster|jobs|docs|janus_dist)/[\w./-]*\w)", DOC))
    assert len(paths) >= 10 and sorted(path for path in paths if not (ROOT / path).exists()) == []
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", DOC)
    assert links and [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_every_file_is_named_in_the_document():
    names = [path.name for path in (ROOT / "cluster").iterdir() if path.suffix in (".sh", ".py", ".yaml")]
    variants = [
        path.name for path in (ROOT / "cluster" / "kuberay").iterdir() if path.name not in ("base", "components")
    ]
    assert [name for name in [*names, *variants, "Containerfile"] if not re.search(rf"\b{name}\b", DOC)] == []


def test_commands_of_the_document_are_bash():
    blocks = re.findall(r"((?:^    .+\n(?:\n(?=    ))?)+)", DOC, re.M)
    assert len(blocks) >= 8
    for block in blocks:
        subprocess.run(["bash", "-n", "-c", block], check=True)


def test_recipes_of_the_document_load():
    commands = re.findall(r"(?:jobs/stage2\.py|janus \w+(?: show)?)[ \\\n]+(jobs/recipes[^\n]+)", DOC)
    assert len(commands) >= 4
    for command in commands:
        words = command.split()
        load(StageRecipe, [ROOT / word for word in words if "=" not in word], [word for word in words if "=" in word])
