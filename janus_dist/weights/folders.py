"""A folder, or a single file, of weights of others, on a local disk, read lazily.

Taken, the first that is there: `model.safetensors`, sharded safetensors with an index, `pytorch_model.bin`, the same
sharded, else the only `.safetensors`, `.bin`, `.pt` or `.pth` file. Invariants: opening reads names and shapes alone,
reading a range touches the rows that hold it; nothing is downloaded; no code in a pickle is ever run.
"""

import json
import math
import pickle
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from janus_dist.errors import CheckpointError
from janus_dist.weights.layouts import Shape, TensorLocation, pattern

WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files that say where a folder's weights are, the best first."""
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
NESTED = ("model", "state_dict")
"""Under which a `.pt` file may hold its tensors, beside an optimizer's; LlamaGen's has `model`."""
SHOWN = 3
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """One tensor: its shape and type, and the open file, or the mapped tensor, that it is read from."""

    shape: Shape
    dtype: torch.dtype | None
    """Floating point type, or None for any other type."""
    source: Any

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Folder:
    """Weights by the names they have in the folder, and its `config.json`."""

    path: Path
    entries: Mapping[str, Entry]
    config: Mapping[str, Any] | None

    @classmethod
    def open(cls, path: str | Path, what: str) -> "Folder":
        """Open a folder or a file; `what` says in errors which setting named it.

        CheckpointError when it is absent, or a file is missing, cut short, or holds anything but plain tensors.
        """
        where = f"{what}={path}"
        path = Path(path)
        if not path.exists():
            raise CheckpointError(
                f"{where} does not exist; weights are read from a local disk, nothing is downloaded",
                "fetch them first (`hf download ORGANISATION/MODEL --local-dir DIR`) and give the folder",
            )
        files = _files(path, where) if path.is_dir() else [path]
        entries: dict[str, Entry] = {}
        for file in files:
            entries |= _safetensors(file, where) if file.suffix == ".safetensors" else _pickled(file, where)
        return cls(path, entries, _config(path / "config.json", where) if path.is_dir() else None)

    def differences(self, places: Iterable[TensorLocation], may_have_fewer_rows: Collection[str] = ()) -> list[str]:
        """Return how the tensors differ from those that `places` ask for, layers of one kind told together; [] in
        nothing.

        A tensor that is there too counts when others of its kind are asked for: a layer too many.
        """
        wanted = {place.name: place.shape for place in places}
        kinds = {pattern(name) for name in wanted}
        told: list[tuple[str, str]] = []
        for name, shape in wanted.items():
            entry = self.entries.get(name)
            if entry is None:
                told.append((pattern(name), f"absent, {show(shape)} by the recipe"))
            elif entry.dtype is None:
                told.append((pattern(name), "holds no floating point numbers"))
            elif entry.shape != shape and not (
                name in may_have_fewer_rows and entry.shape[1:] == shape[1:] and entry.shape[0] < shape[0]
            ):
                told.append((pattern(name), f"{show(entry.shape)} there, {show(shape)} by the recipe"))
        told += [
            (pattern(name), f"{show(entry.shape)} there, absent by the recipe")
            for name, entry in self.entries.items()
            if name not in wanted and pattern(name) in kinds
        ]
        counts = Counter(told)
        return [
            f"{name}{f' ({number} of them)' if number > 1 else ''}: {what}" for (name, what), number in counts.items()
        ]

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """Return elements [first, last) of the flattened tensor: [last - first] on the CPU, in the stored dtype."""
        entry = self.entries[name]
        last = entry.elements if last is None else last
        assert 0 <= first <= last <= entry.elements, f"{name}: [{first}, {last}) of {entry.elements}"
        if isinstance(entry.source, Tensor):
            return entry.source.reshape(-1)[first:last]
        if not entry.shape or first == last:
            return entry.source.get_tensor(name).reshape(-1)[first:last]
        row = entry.elements // entry.shape[0]
        top, bottom = first // row, -(-last // row)
        rows = entry.source.get_slice(name)[top:bottom]
        return rows.reshape(-1)[first - top * row : last - top * row]


def _files(folder: Path, where: str) -> list[Path]:
    """Return the files that hold the weights of a folder. Raises CheckpointError when that is ambiguous."""
    for name in WHOLE:
        if (folder / name).is_file():
            return _shards(folder / name, where) if name.endswith(".json") else [folder / name]
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(found) != 1:
        listed = ", ".join(path.name for path in found[:SHOWN])
        raise CheckpointError(
            f"{where} holds {f'{len(found)} files of weights ({listed}, ...)' if found else 'no weights'} and none of "
            f"{', '.join(WHOLE)}",
            "give the folder that the weights were published in, or the one file with all of them",
        )
    return found


def _shards(index: Path, where: str) -> list[Path]:
    try:
        named = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where}: {index.name} is not an index of weights: {error!r}") from error
    missing = [name for name in named if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{where} lacks {len(missing)} of the {len(named)} files that {index.name} names: {', '.join(missing)}",
            "fetch them; a folder of weights counts when it is whole",
        )
    return [index.parent / name for name in named]


def _safetensors(path: Path, where: str) -> dict[str, Entry]:
    try:
        file = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{where}: {path.name} is not a whole safetensors file: {error}", "fetch it again"
        ) from error
    return {name: Entry(tuple(s.get_shape()), DTYPES.get(s.get_dtype()), file) for name, s in slices.items()}


def _pickled(path: Path, where: str) -> dict[str, Entry]:
    """Return the tensors of a file of torch.save, mapped rather than read when it is of torch's own (zip) format."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{where}: {path.name} is damaged, or holds more than tensors, which could be code that runs when it is "
            "read: refused",
            "fetch it again, or take a safetensors file of the same weights",
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{where}: {path.name} is not a whole file of weights: {error}", "fetch it again"
        ) from error
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: {path.name} holds a {type(content).__name__}, not tensors by name")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    return {
        name: Entry(tuple(value.shape), value.dtype if value.is_floating_point() else None, value)
        for name, value in tensors.items()
    }


def _config(path: Path, where: str) -> Mapping[str, Any] | None:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{where}: {path.name} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: {path.name} is not a JSON object")
    return values


def show(shape: Shape) -> str:
    """Return a shape as text: 2048x5632."""
    return "x".join(map(str, shape)) or "a scalar"
