"""What of `kubectl kustomize` the files under cluster/kuberay use, so that they are tested where there is no kubectl.

Resources, components, patches (JSON 6902, and the deletion of an object), one kind of replacement. Where kubectl is
there, test_kuberay.py compares the two.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

import yaml

LOCAL = "config.kubernetes.io/local-config"
"""Objects with this annotation are there for others to take from."""


def render(folder: Path) -> list[dict[str, Any]]:
    """The objects that `kubectl apply --kustomize FOLDER` would send."""
    return [one for one in _collect(folder, []) if LOCAL not in one["metadata"].get("annotations", {})]


def _collect(folder: Path, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    for name in plan.get("resources", []):
        path = folder / name
        objects = _collect(path, objects) if path.is_dir() else [*objects, *_load(path)]
    for name in plan.get("components", []):
        objects = _collect(folder / name, objects)
    for patch in plan.get("patches", []):
        objects = _patch(objects, yaml.safe_load(patch["patch"]), patch.get("target"))
    for replacement in plan.get("replacements", []):
        _replace(objects, replacement)
    unknown = set(plan) - {"apiVersion", "kind", "resources", "components", "patches", "replacements"}
    assert not unknown, f"{folder}: {unknown} are not done here"
    return objects


def _load(path: Path) -> list[dict[str, Any]]:
    """Objects of a file; what anchors of YAML share is a copy each, as in kustomize."""
    return [json.loads(json.dumps(one)) for one in yaml.safe_load_all(path.read_text())]


def _patch(objects: list[dict[str, Any]], patch: Any, target: dict[str, str] | None) -> list[dict[str, Any]]:
    if target is None:
        assert patch.get("$patch") == "delete"
        return [one for one in objects if not _is(one, patch["kind"], patch["metadata"]["name"])]
    (found,) = (one for one in objects if _is(one, target["kind"], target["name"]))
    for step in patch:
        *way, last = (part.replace("~1", "/").replace("~0", "~") for part in step["path"].lstrip("/").split("/"))
        place: Any = found
        for part in way:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if last == "-":
            place.append(step["value"])
        else:
            assert step["op"] == "add" or last in place, f"nothing to replace at {step['path']}"
            place[last] = step["value"]
    return objects


def _replace(objects: list[dict[str, Any]], replacement: dict[str, Any]) -> None:
    source = replacement["source"]
    (taken,) = (one[source["fieldPath"]] for one in objects if _is(one, source["kind"], source["name"]))
    for target in replacement["targets"]:
        for one in objects:
            if one["kind"] == target["select"]["kind"]:
                for path in target["fieldPaths"]:
                    parent, field = re.fullmatch(r"(\w+)\.(\w+)", path).groups()  # type: ignore[union-attr]
                    one[parent][field] = copy.deepcopy(taken)


def _is(one: dict[str, Any], kind: str, name: str) -> bool:
    return one["kind"] == kind and one["metadata"]["name"] == name
