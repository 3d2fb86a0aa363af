"""Folders of images, one for each class, as in ImageNet; the name of the class is the caption.

Invariant: a class without a name stops the run before it begins.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.inputs import files
from data_pipelines.inputs.keys import safe_key
from data_pipelines.record import Picture, Record, Unit
from janus_dist.config.pipeline import InputConfig
from janus_dist.data import images
from janus_dist.errors import DataError
from janus_dist.inspection.inspect import Reject
from janus_dist.storage import fs

HINT = "give JSON {folder: name}, or lines `folder name, other name`"


def units(config: InputConfig, shard_samples: int) -> list[Unit]:
    """Return units of up to `shard_samples` files of one class each, and those of the files outside of all classes.

    Raises DataError when there are no folders, when `class_names` has no name for one, or when most images have a
    caption in a file of their own, which would not be used.
    """
    files_by_folder: dict[tuple[str, str], list[tuple[str, files.InputFile]]] = {}
    for file in files.find(config, ("",)):
        name, _, inside = file.path.removeprefix(f"{file.root}/").partition("/")
        files_by_folder.setdefault((file.root, name if inside else ""), []).append((inside or name, file))
    classes = {name for _, name in files_by_folder if name}
    if not classes:
        raise DataError(
            f"pipeline.inputs: no folders in {next(iter(files_by_folder))[0]}", "each class has a folder of its own"
        )
    _check_no_captions(files_by_folder)
    names = _class_names(config)
    nameless = sorted(classes - set(names)) if names is not None else []
    if nameless:
        raise DataError(
            f"{config.class_names} has no name for {len(nameless)} of {len(classes)} folders, as {nameless[0]}",
            "name every folder, or leave class_names out: folders are then captions themselves",
        )
    cut: list[Unit] = []
    for (root, name), inside in sorted(files_by_folder.items()):
        for start in range(0, len(inside), shard_samples):
            part = inside[start : start + shard_samples]
            stem = part[0][1].stem.removesuffix(part[0][0]).rstrip("/")
            size, names_in_part = sum(file.size for _, file in part), tuple(below for below, _ in part)
            cut.append(Unit(f"{root}/{name}", size, start, start + len(part), len(part), names_in_part, stem))
    return cut


def records(config: InputConfig, unit: Unit) -> Iterator[Record | Reject]:
    """Yield a record for each image, with the name of its class, and a Reject for each other file by its ending."""
    root, _, name = unit.path.rpartition("/")  # the name is empty for files outside of all classes
    names = _class_names(config)
    caption = name.replace("_", " ") if names is None else names.get(name, "")
    for below in unit.names:
        path, key = f"{unit.path.rstrip('/')}/{below}", safe_key(f"{unit.stem}/{below}" if unit.stem else below)
        ending = below.rpartition("/")[2].rpartition(".")[2] if "." in below else ""
        if not name:
            yield Reject(path, key, "no class", "no class: it is not in the folder of a class", b"")
        elif ending and ending.lower() not in images.ENDINGS:
            yield Reject(path, key, "no image", f"not an image: its name ends with .{ending}", b"")
        else:
            yield Record(key, path, (Picture(path, root=root),), caption=caption)


def _check_no_captions(classes: Mapping[tuple[str, str], Sequence[tuple[str, files.InputFile]]]) -> None:
    """Raise DataError when most images have a text file of the same name: then folders are not classes."""
    paths = {file.path for members in classes.values() for _, file in members}
    image_paths = [path for path in paths if path.rpartition(".")[2].lower() in images.ENDINGS]
    captioned = sorted(path for path in image_paths if f"{path.rpartition('.')[0]}.txt" in paths)
    if len(captioned) <= len(image_paths) / 2:
        return
    folder, _, name = captioned[0].rpartition("/")
    raise DataError(
        f"pipeline.inputs: {len(captioned):,} of {len(image_paths):,} images have a caption in a file of the same name "
        f"({name}, {name.rpartition('.')[0]}.txt), but format=folders takes the name of a folder as the caption",
        f"make a tar of each folder, `tar --sort=name -cf {folder}.tar -C {folder} .`, "
        f"and read the tars with format=webdataset, path={folder.rpartition('/')[0]}/*.tar",
    )


def _class_names(config: InputConfig) -> dict[str, str] | None:
    """Return the names of classes by folder; None when folders are named like their classes.

    The file is JSON, `{folder: name or [number, name]}` or `{number: [folder, name]}`, or has lines `folder name, other
    name`; the first of several names is used. Raises DataError when it cannot be read.
    """
    if config.class_names is None:
        return None
    try:
        text = fs.read(config.class_names).decode("utf-8-sig").strip()
        pairs = (
            [_folder_and_name(*pair) for pair in json.loads(text).items()]
            if text.startswith("{")
            else _pairs_of_lines(text)
        )
        names = {folder: name.split(",")[0].replace("_", " ").strip() for folder, name in pairs}
        nameless = [folder for folder, name in names.items() if not name]
        if nameless:
            raise ValueError(f"no name for {nameless[0]}")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"class_names={config.class_names} cannot be read: {error}", HINT) from error
    return names


def _folder_and_name(folder: str, value: Any) -> tuple[str, str]:
    match value:
        case str():
            return folder, value
        case [int(), str() as name]:
            return folder, name
        case [str() as own, str() as name]:
            return own, name
        case _:
            raise ValueError(f"no name for {folder} in {str(value)[:100]!r}")


def _pairs_of_lines(text: str) -> list[tuple[str, str]]:
    split = ([*line.split(maxsplit=1), ""][:2] for line in text.split("\n") if line.strip())
    return [(folder, name.strip()) for folder, name in split]
